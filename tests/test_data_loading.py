"""What every data set keeps to: disjoint parts, nested subsets, a test set that is read last."""

import numpy as np
import pytest
import torch

from kilolayer.data import Data, load
from kilolayer.data.loading import split_indices
from kilolayer.errors import InputError
from kilolayer.system import memory_limit as memory_module


def fails(match, **description):
    with pytest.raises(InputError, match=match) as error:
        load(Data(**description))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_digits():
    splits = load(Data())
    assert (len(splits.train), len(splits.test)) == (1437, 360)
    assert splits.validation is None
    assert (splits.name, splits.num_classes, splits.in_chans, splits.image_size) == ("digits", 10, 1, 8)
    assert splits.train.pixels.dtype == torch.uint8
    assert splits.train.pixels.max() == 255
    assert set(splits.test.labels.tolist()) == set(range(10))


def test_digits_are_scikit_learns():
    sklearn = pytest.importorskip("sklearn.datasets")
    original = sklearn.load_digits()
    splits = load(Data())
    pixels = torch.cat([splits.train.pixels, splits.test.pixels])[:, 0]
    assert np.array_equal(np.round(pixels.numpy() / 255 * 16), original.images)
    assert torch.cat([splits.train.labels, splits.test.labels]).tolist() == original.target.tolist()


def test_validation_and_training_are_a_partition():
    train, validation = split_indices(1000, Data(validation=100, split_seed=4))
    assert len(validation) == 100
    assert sorted([*train, *validation]) == list(range(1000))
    assert not np.array_equal(validation, split_indices(1000, Data(validation=100, split_seed=5))[1])


def test_validation_images_are_not_trained_on():
    whole, parts = load(Data()), load(Data(validation=200))
    train, held_out = split_indices(1437, Data(validation=200))
    assert torch.equal(parts.train.pixels, whole.train.pixels[train])
    assert torch.equal(parts.validation.labels, whole.train.labels[held_out])


def test_subsets_are_nested_and_leave_validation_alone():
    parts = [split_indices(1000, Data(validation=100, subset=size)) for size in (10, 50, 900)]
    assert set(parts[0][0]) < set(parts[1][0]) < set(parts[2][0])
    assert all(np.array_equal(part[1], parts[0][1]) for part in parts)


def test_too_much_held_out():
    fails("validation", validation=1437)
    fails("subset", validation=437, subset=1001)


def test_resized():
    splits = load(Data(image_size=16, subset=20))
    assert splits.image_size == 16
    assert splits.test.pixels.shape == (360, 1, 16, 16)


def test_fingerprint_sees_one_pixel():
    first, second = load(Data()).train, load(Data()).train
    assert first.fingerprint() == second.fingerprint()
    second.pixels[3, 0, 2, 2] ^= 1
    assert first.fingerprint() != second.fingerprint()


def test_missing_path_names_what_there_is(tmp_path):
    message = fails("no such file or folder", source=str(tmp_path / "no\nwhere"))
    assert "digits, cifar10, cifar100" in message


@pytest.mark.parametrize("source", ["~nobody-of-this-name/x", "x" * 5000, "/proc/1/root/x"])
def test_odd_paths(source):
    fails("no such file or folder", source=source)


def test_neither_kind_of_file(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    fails("neither a parquet file", source=str(path))


def test_too_large_for_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(memory_module, "available_memory", lambda: 10_000_000)
    message = fails("half of the 0.0 GB", image_size=512)
    assert "--image-size" in message


def test_available_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(memory_module, "MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 5 kB\n")
    monkeypatch.setattr(memory_module, "CGROUPS", tmp_path)
    monkeypatch.setattr(memory_module, "OWN_CGROUPS", tmp_path / "cgroup")
    assert memory_module.available_memory() == 5 * 1024
    own = tmp_path / "user" / "job"
    own.mkdir(parents=True)
    (tmp_path / "cgroup").write_text("0::/user/job\n")
    for folder, limit in ((own, "4096"), (own.parent, "3072"), (tmp_path, "max")):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text("1024\n")
    assert memory_module.available_memory() == 2048  # the least that is left, in a group around ours
    (own.parent / "memory.stat").write_text("anon 24\ninactive_file 700\nactive_file 300\n")
    assert memory_module.available_memory() == 3048  # files in memory make room
    (own.parent / "memory.max").write_text("max\n")
    (own / "memory.max").write_text("max\n")
    (tmp_path / "meminfo").unlink()
    assert memory_module.available_memory() > 10**6


def test_available_memory_in_groups_of_the_first_version(monkeypatch, tmp_path):
    monkeypatch.setattr(memory_module, "CGROUPS", tmp_path)
    monkeypatch.setattr(memory_module, "OWN_CGROUPS", tmp_path / "cgroup")
    (tmp_path / "cgroup").write_text("5:cpu,cpuacct:/\n4:memory:/job\n")
    own = tmp_path / "memory" / "job"
    own.mkdir(parents=True)
    (own / "memory.limit_in_bytes").write_text("9000\n")
    (own / "memory.usage_in_bytes").write_text("5000\n")
    (own / "memory.stat").write_text("cache 9\ntotal_inactive_file 200\ntotal_active_file 100\n")
    assert memory_module.available_memory() == 4300


def test_available_memory_under_ulimit(monkeypatch, tmp_path):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(memory_module, "OWN_MEMORY", tmp_path / "statm")
    (tmp_path / "statm").write_text("10 5 3 1 0 4 0\n")
    page = resource.getpagesize()
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (30 * page, resource.RLIM_INFINITY))
    assert memory_module.available_memory() == 20 * page
