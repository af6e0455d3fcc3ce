"""Weights come back bit for bit, and a file that is none of ours is refused without running it."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kilolayer.errors import InputError
from kilolayer.networks import build
from kilolayer.runs import Run, SavedNetwork, read_weights, write_weights
from kilolayer.training import Trainer
from kilolayer.units import BASIC, BOTTLENECK, Aggregated, ShortcutGate, Unit
from tiny_runs import PREACT, network, splits_of, tiny, train, training_of

UNITS: dict[str, Unit] = {
    "basic": BASIC,
    "pre-activation": PREACT,
    "bottleneck": BOTTLENECK,
    "gated": replace(PREACT, h=ShortcutGate(-3.0)),
    "aggregated": replace(BASIC, branch=Aggregated(2, 8)),
}


def written(path: Path, unit: Unit = PREACT) -> Trainer:
    """A network after two steps, so that its running averages are not what they began as."""
    training = training_of(tiny(unit))
    for step in training.steps():
        if step.iteration == 2:
            break
    of = training.experiment.network
    write_weights(path, of, training.model.state_dict(), training.splits.classes, training.statistics)
    return training


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    written(path)
    return path


def logits(found: SavedNetwork, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        answer: Tensor = found.model(found.statistics.normalize(pixels))
    return answer


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_logits_come_back_bit_for_bit(unit: Unit, tmp_path: Path) -> None:
    training = written(tmp_path / "weights.safetensors", unit)
    found = read_weights(tmp_path / "weights.safetensors")
    assert found.model.description == training.experiment.network
    assert found.classes == tuple("0123456789")
    assert not any(module.training for module in found.model.modules())
    images = splits_of(training.experiment).test
    training.model.eval()
    with torch.no_grad():
        expected = training.model(training.statistics.normalize(images.pixels))
    assert torch.equal(logits(found, images.pixels), expected)


def test_equal_weights_are_equal_files(tmp_path: Path) -> None:
    for name in ("first", "second"):
        written(tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_others_read_the_same_tensors_under_the_same_names(good: Path) -> None:
    """The format is plain safetensors: no reader of ours is needed."""
    tensors, found = load_file(good), read_weights(good)
    state = found.model.state_dict()
    assert tensors.keys() == state.keys() | {"input.mean", "input.scale"}
    assert all(torch.equal(tensors[key], value) for key, value in state.items())


def test_a_run_gives_its_weights_when_it_is_done(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", tiny())
    with pytest.raises(InputError, match="no weights yet; finish it: kilolayer train --resume"):
        run.weights()
    training = train(run.path, tiny())
    pixels = training.splits.test.pixels
    training.model.eval()
    with torch.no_grad():
        expected = training.model(training.statistics.normalize(pixels))
    assert torch.equal(logits(run.weights(), pixels), expected)
    run.file("weights.safetensors").unlink()
    with pytest.raises(InputError, match=r"finished, but its weights\.safetensors is missing; bring it back"):
        run.weights()


def header_of(path: Path) -> dict[str, str]:
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    metadata: dict[str, str] = json.loads(content[8 : 8 + length])["__metadata__"]
    return metadata


def rewritten(path: Path, good: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], None]) -> None:
    tensors, said = load_file(good), json.loads(header_of(good)["kilolayer"])
    change(tensors, said)
    save_file(tensors, path, {"kilolayer": json.dumps(said)})


def other_network(tensors: dict[str, Tensor], said: dict[str, Any]) -> None:
    said["network"]["stages"][0]["units"] = 2


def other_width(tensors: dict[str, Tensor], said: dict[str, Any]) -> None:
    tensors["classifier.weight"] = tensors["classifier.weight"][:, :-1].contiguous()


def renamed(tensors: dict[str, Tensor], said: dict[str, Any]) -> None:
    tensors["module.classifier.bias"] = tensors.pop("classifier.bias")


def one_more(tensors: dict[str, Tensor], said: dict[str, Any]) -> None:
    tensors["extra"] = torch.zeros(1)


def no_statistics(tensors: dict[str, Tensor], said: dict[str, Any]) -> None:
    del tensors["input.scale"]


def too_few_classes(tensors: dict[str, Tensor], said: dict[str, Any]) -> None:
    said["classes"].pop()


def not_finite(tensors: dict[str, Tensor], said: dict[str, Any]) -> None:
    tensors["classifier.bias"][0] = torch.nan
    said["sha256"] = ""


def negative_variance(tensors: dict[str, Tensor], said: dict[str, Any]) -> None:
    tensors["stem.bn1.running_var"][0] = -1
    said["sha256"] = ""


def nonsense(tensors: dict[str, Tensor], said: dict[str, Any]) -> None:
    said["network"] = "resnet"


def unknown_field(tensors: dict[str, Tensor], said: dict[str, Any]) -> None:
    said["license"] = "mine"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_network, "weights of another network: .* of .* tensors match"),
        (other_width, "weights of another network"),
        (renamed, "weights of another network"),
        (one_more, "weights of another network"),
        (no_statistics, "no input statistics"),
        (too_few_classes, "9 class names for 10 classes"),
        (not_finite, "values that are not finite: classifier.bias"),
        (negative_variance, "variances below 0: stem.bn1.running_var"),
        (nonsense, "network"),
        (unknown_field, "license"),
    ],
)
def test_what_does_not_fit_is_refused(change: Any, words: str, good: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    rewritten(path, good, change)
    with pytest.raises(InputError, match=words) as refused:
        read_weights(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_another_network_matches_what_it_shares(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    rewritten(path, good, other_network)
    first, second = network().stages
    larger = build(replace(network(), stages=(replace(first, units=2), second)))
    with pytest.raises(InputError) as refused:
        read_weights(path)
    assert f"{len(load_file(good)) - 2} of {len(larger.state_dict())} tensors match" in str(refused.value)


def test_a_file_of_someone_else(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for header in (None, {"format": "pt"}):
        save_file({"weight": torch.zeros(2)}, path, header)
        with pytest.raises(InputError, match="no network description in its header; it was not written by"):
            read_weights(path)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.1, 0.5, 0.999])
def test_a_torn_file(share: float, good: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(good.read_bytes()[: int(share * good.stat().st_size)])
    with pytest.raises(InputError, match=r"not a readable safetensors file") as refused:
        read_weights(path)
    assert "\n" not in str(refused.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path / 'none'}: no such file"):
        read_weights(tmp_path / "none")
    with pytest.raises(InputError, match=f"^{tmp_path} is not a readable safetensors file: "):
        read_weights(tmp_path)


class Gadget:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def plain_pickle(gadget: Gadget) -> bytes:
    return pickle.dumps(gadget)


def torch_file(gadget: Gadget) -> bytes:
    file = io.BytesIO()
    torch.save({"weight": torch.zeros(1), "run me": gadget}, file)
    return file.getvalue()


def zipped(gadget: Gadget) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(gadget))
    return file.getvalue()


@pytest.mark.parametrize("form", [plain_pickle, torch_file, zipped])
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "weights.pkl"])
def test_no_pickle_is_ever_opened(form: Callable[[Gadget], bytes], name: str, tmp_path: Path) -> None:
    content = form(Gadget(tmp_path / "ran"))
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a readable safetensors file"):
        read_weights(path)
    assert not (tmp_path / "ran").exists()
    if form is plain_pickle:
        pickle.loads(content)  # noqa: S301 - the gadget works where a pickle is opened
        assert (tmp_path / "ran").exists()
