"""CIFAR from its binary and python files, folders, archives and a server on this machine."""

import hashlib
import io
import os
import pickle
import tarfile
import threading
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from kilolayer.data import Data, load
from kilolayer.data.registry import DATASETS
from kilolayer.data.sources.cifar_files import CIFAR_FORMATS
from kilolayer.errors import InputError

TEN, HUNDRED, TEN_PY, HUNDRED_PY = CIFAR_FORMATS
MIRROR = "KILOLAYER_CIFAR_URL"


def fails(match, **description):
    with pytest.raises(InputError, match=match) as error:
        load(Data(**description))
    assert "\n" not in str(error.value)
    return str(error.value)


def outcome(data):
    """The error's text, or nothing where the data are still readable."""
    try:
        load(data)
    except InputError as error:
        return str(error)
    return ""


def table(name, classes, n=20):
    """Pixels and labels that differ from file to file."""
    random = np.random.default_rng(len(name) + sum(map(ord, name)))
    return random.integers(0, 256, (n, 3072), dtype=np.uint8), random.integers(0, classes, n)


def binary_files(layout):
    files = {}
    for name in layout.record_sizes:
        pixels, labels = table(name, layout.classes)
        columns = [labels[:, None].astype(np.uint8)] * (layout.record - 3072)
        files[name] = np.hstack([*columns, pixels]).tobytes()
    return files | {layout.meta: "\n".join(f"class{i}" for i in range(layout.classes)).encode() + b"\n\n"}


def opcodes_of_numpy_1(pixels):
    """A Python 2 pickle of the array, as in CIFAR's files."""
    shape = b"K" + bytes([len(pixels)]) + b"M" + (3072).to_bytes(2, "little") + b"\x86"
    raw = pixels.tobytes()
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01" + shape
        + b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + b"T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    )  # fmt: skip


def python_file(name, classes, key):
    pixels, labels = table(name, classes)
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    keyed = b"U" + bytes([len(key)]) + key.encode() + listed
    remembered = b"".join(b"U\x05a.pngr" + number.to_bytes(4, "little") for number in range(300, 320))
    filenames = b"U\x09filenames](" + remembered + b"e"
    keyed = keyed.replace(b"](", b"]r\x00\x02\x00\x00(", 1)  # the list of labels is remembered as number 512
    return b"\x80\x02}(U\x04data" + opcodes_of_numpy_1(pixels) + filenames + keyed + b"u."


def python_files(layout):
    key = "labels" if layout.classes == 10 else "fine_labels"
    files = {name: python_file(name, layout.classes, key) for name in layout.record_sizes}
    names = {
        "label_names" if layout.classes == 10 else "fine_label_names": [
            f"class{i}" for i in range(layout.classes)
        ]
    }
    return files | {layout.meta: pickle.dumps(names, protocol=2)}


def files_of(layout):
    return python_files(layout) if layout.record == 1 else binary_files(layout)


def as_folder(layout, root, **changed):
    folder = root / layout.folder
    folder.mkdir(parents=True)
    for name, raw in {**files_of(layout), **changed}.items():
        (folder / name).write_bytes(raw)
    return folder


def as_archive(layout, path, more=()):
    with tarfile.open(path, "w:gz") as tar:
        for member, raw in [
            *more,
            *((f"{layout.folder}/{name}", raw) for name, raw in files_of(layout).items()),
        ]:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return path


def agrees(splits, layout):
    pixels, labels = zip(*(table(name, layout.classes) for name in layout.train), strict=True)
    assert np.array_equal(splits.train.pixels.flatten(1).numpy(), np.concatenate(pixels))
    assert splits.train.labels.tolist() == np.concatenate(labels).tolist()
    assert np.array_equal(splits.test.pixels.flatten(1).numpy(), table(layout.test, layout.classes)[0])
    assert splits.classes == tuple(f"class{i}" for i in range(layout.classes))
    assert splits.name == f"{DATASETS[layout.source].title} ({len(splits.train)} training images)"


@pytest.mark.parametrize("layout", CIFAR_FORMATS, ids=lambda layout: layout.folder)
def test_folder_by_name_and_by_path(layout, tmp_path):
    folder = as_folder(layout, tmp_path)
    agrees(load(Data(layout.source, folder=str(tmp_path))), layout)
    agrees(load(Data(str(folder))), layout)
    agrees(load(Data(str(tmp_path))), layout)


@pytest.mark.parametrize("layout", CIFAR_FORMATS, ids=lambda layout: layout.folder)
def test_archive_by_name_and_renamed(layout, tmp_path):
    archive = as_archive(layout, tmp_path / layout.archive)
    agrees(load(Data(layout.source, folder=str(tmp_path))), layout)
    renamed = archive.rename(tmp_path / "renamed.tar.gz")
    agrees(load(Data(str(renamed))), layout)


def test_default_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KILOLAYER_DATA", str(tmp_path))
    as_folder(TEN, tmp_path)
    agrees(load(Data("cifar10")), TEN)


def test_the_test_file_is_read_last(tmp_path):
    folder = as_folder(TEN, tmp_path)
    splits = load(Data("cifar10", folder=str(tmp_path)))
    (folder / TEN.test).unlink()
    with pytest.raises(InputError, match=r"lacks test_batch\.bin"):
        _ = splits.test


def test_class_names_without_a_list(tmp_path):
    (as_folder(TEN, tmp_path / "ten") / TEN.meta).unlink()
    (as_folder(HUNDRED, tmp_path / "hundred") / HUNDRED.meta).unlink()
    assert load(Data(str(tmp_path / "ten"))).classes[:2] == ("airplane", "automobile")
    assert load(Data(str(tmp_path / "hundred"))).classes[99] == "99"


def test_missing_says_where_and_how(tmp_path):
    message = fails("cifar10 is not in", source="cifar10", folder=str(tmp_path))
    assert str(tmp_path) in message
    assert "--download" in message


@pytest.mark.parametrize("layout", [TEN, TEN_PY], ids=["binary", "python"])
@pytest.mark.parametrize("which", ["train", "test"])
def test_damage_is_seen_before_training(layout, which, tmp_path):
    name = layout.train[2] if which == "train" else layout.test
    for number, raw in enumerate([b"", files_of(layout)[name][:-100]]):
        as_folder(layout, tmp_path / str(number), **{name: raw})
        fails("damaged", source="cifar10", folder=str(tmp_path / str(number)))


def test_missing_file(tmp_path):
    (as_folder(TEN, tmp_path) / TEN.test).unlink()
    fails(r"lacks test_batch\.bin", source="cifar10", folder=str(tmp_path))


def test_label_outside_the_classes(tmp_path):
    raw = bytearray(files_of(TEN)[TEN.train[0]])
    raw[3073 * 7] = 10
    as_folder(TEN, tmp_path, **{TEN.train[0]: bytes(raw)})
    assert "image 7 has label 10" in fails("allowed: 0 to 9", source="cifar10", folder=str(tmp_path))


def test_damaged_archives(tmp_path):
    archive = as_archive(TEN, tmp_path / TEN.archive)
    whole = archive.read_bytes()
    flipped = whole[:100_000] + bytes([whole[100_000] ^ 1]) + whole[100_001:]
    for raw in (b"", b"no archive", whole[: len(whole) // 2], whole[:-6000] + bytes(6000), flipped):
        archive.write_bytes(raw)
        fails("damaged", source="cifar10", folder=str(tmp_path))


class Gadget:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", range(6))
def test_a_gadget_is_refused_and_does_not_run(protocol, tmp_path):
    marker = tmp_path / "the gadget ran"
    hostile = pickle.dumps({"data": Gadget(marker), "labels": [1]}, protocol)
    as_folder(TEN_PY, tmp_path, data_batch_3=hostile)
    fails("as no CIFAR file does", source="cifar10", folder=str(tmp_path))
    assert not marker.exists()
    pickle.loads(hostile)  # noqa: S301 - the test's own gadget, to show that it would have run
    assert marker.exists()


def test_a_gadget_beside_good_data_is_refused(tmp_path):
    marker = tmp_path / "the gadget ran"
    good = files_of(TEN_PY)["test_batch"]
    hostile = good[:-1] + b"0cos\nmkdir\n(U" + bytes([len(str(marker))]) + str(marker).encode() + b"tR."
    as_folder(TEN_PY, tmp_path, test_batch=hostile)
    fails("os mkdir", source="cifar10", folder=str(tmp_path))
    assert not marker.exists()


def test_noise_in_python_files_is_one_line(tmp_path):
    random = np.random.default_rng(0)
    good = files_of(TEN_PY)["data_batch_1"]
    folder = as_folder(TEN_PY, tmp_path)
    for number in range(60):
        damaged = bytearray(good)
        head = 200 if number % 2 else len(good)
        for at in random.integers(0, head, 3):
            damaged[at] = random.integers(0, 256)
        (folder / "data_batch_1").write_bytes(bytes(damaged[: random.integers(1, len(good) + 1)]))
        assert "\n" not in outcome(Data("cifar10", folder=str(tmp_path)))


def evil_members(outside):
    link = tarfile.TarInfo("cifar-10-batches-bin/link")
    link.type, link.linkname = tarfile.SYMTYPE, str(outside)
    device = tarfile.TarInfo("device")
    device.type = tarfile.CHRTYPE
    return [("../escaped", b"evil"), (str(outside / "absolute"), b"evil"), (link, b""), (device, b""),
            ("cifar-10-batches-bin/link/through", b"evil")]  # fmt: skip


@contextmanager
def serving(folder, monkeypatch):
    """A server of this folder on the loopback; every checksum is that of the file there."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv(MIRROR, f"http://127.0.0.1:{server.server_port}/")
    for path in folder.iterdir():
        digest = hashlib.md5(path.read_bytes()).hexdigest()  # noqa: S324
        for name, entry in DATASETS.items():
            if entry.archive and entry.archive.name == path.name:
                archive = replace(entry.archive, md5=digest)
                monkeypatch.setitem(DATASETS, name, replace(entry, archive=archive))
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def site(tmp_path):
    (tmp_path / "site").mkdir()
    return tmp_path / "site"


@pytest.mark.parametrize("layout", [TEN, HUNDRED], ids=["ten", "hundred"])
def test_download(layout, tmp_path, site, monkeypatch):
    as_archive(layout, site / layout.archive)
    asked = Data(layout.source, folder=str(tmp_path / "home"), download=True)
    with serving(site, monkeypatch):
        agrees(load(asked), layout)
    agrees(load(asked), layout)  # the server is gone: what was fetched is used
    left = {path.name for path in (tmp_path / "home").iterdir()} - {f".{layout.folder}.lock"}
    assert left == {layout.folder}


def test_wrong_checksum_keeps_nothing(tmp_path, site, monkeypatch):
    archive = as_archive(TEN, site / TEN.archive)
    with serving(site, monkeypatch):
        archive.write_bytes(archive.read_bytes() + b"\0")
        fails("arrived damaged", source="cifar10", folder=str(tmp_path / "home"), download=True)
    assert not [path for path in (tmp_path / "home").iterdir() if not path.name.endswith(".lock")]


def test_absent_and_unreachable(tmp_path, site, monkeypatch):
    home = str(tmp_path / "home")
    with serving(site, monkeypatch):
        fails("404", source="cifar10", folder=home, download=True)
    fails("did not arrive", source="cifar10", folder=home, download=True)
    monkeypatch.setenv(MIRROR, "file:///etc")
    fails("not an http", source="cifar10", folder=home, download=True)


def test_nothing_leaves_a_hostile_archive(tmp_path, site, monkeypatch):
    outside = tmp_path / "outside"
    outside.mkdir()
    as_archive(TEN, site / TEN.archive, evil_members(outside))
    home = tmp_path / "a" / "home"
    with serving(site, monkeypatch):
        agrees(load(Data("cifar10", folder=str(home), download=True)), TEN)
    assert not list(outside.iterdir())
    assert {path.name for path in (home / TEN.folder).iterdir()} == set(files_of(TEN))
    assert not list(tmp_path.rglob("escaped"))


def test_bombs_are_capped(tmp_path, monkeypatch):
    from kilolayer.data.sources import archive

    as_archive(TEN, tmp_path / TEN.archive)
    monkeypatch.setattr(archive, "MOST_BYTES", 100_000)
    fails("not CIFAR", source="cifar10", folder=str(tmp_path))
