"""Weights of other classes and channels: what is carried over, what is new, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kilolayer.__main__ import main
from kilolayer.data import InputStatistics, Splits, measure_statistics
from kilolayer.errors import InputError
from kilolayer.networks import ResidualNetwork, build
from kilolayer.runs import Run
from kilolayer.runs.weights_file import write_weights
from kilolayer.training import Trainer
from kilolayer.training.experiment import Experiment, InitialWeights
from kilolayer.units import Scaled
from kilolayer.values import from_json, to_json
from kilolayer.weights import init_from_file, load_initial_weights, load_weights, read_state_dict
from kilolayer.weights.adaptation import adapt_statistics, adapt_weights
from tiny_runs import HERE, PREACT, Poll, network, outcome, splits_of, tiny, train

DIGITS = tuple("0123456789")
LETTERS = tuple("abcdefghij")


def model_of(**fields: Any) -> ResidualNetwork:
    return build(replace(network(), **fields))


def numbered_rows(count: int) -> dict[str, Tensor]:
    """A state whose classifier's row i is full of i."""
    state = model_of(num_classes=count).state_dict()
    rows = torch.arange(count).float()
    return state | {"classifier.weight": rows[:, None].repeat(1, 8), "classifier.bias": rows.clone()}


@pytest.mark.parametrize(
    ("of_file", "rows", "classes", "carried", "note"),
    [
        (DIGITS, 10, DIGITS, range(10), ""),
        (None, 10, DIGITS, range(10), ""),
        (DIGITS[::-1], 10, DIGITS, range(9, -1, -1), "in the order of the data's classes, by name"),
        (DIGITS, 10, ("7", "2"), (7, 2), "keeps the rows of 2 of its 10 classes, by name"),
        (LETTERS, 10, DIGITS, None, "new: the file's classes are a, b, c"),
        (DIGITS, 10, (*DIGITS[:9], "a"), None, "the classifier is new: the file's classes are"),
        (None, 100, DIGITS, None, "the classifier is new: 100 → 10 classes"),
        (tuple(map(str, range(20, 120))), 100, DIGITS, None, "the classifier is new: 100 → 10 classes"),
        (None, 3, DIGITS, None, "the classifier is new: 3 → 10 classes"),
    ],
)
def test_classes_go_by_name(
    of_file: tuple[str, ...] | None, rows: int, classes: tuple[str, ...], carried: Any, note: str
) -> None:
    model, state = model_of(num_classes=len(classes)), numbered_rows(rows)
    own = {key: value.clone() for key, value in model.state_dict().items()}
    adapted = adapt_weights(state, model, classes=classes, file_classes=of_file)
    load_weights(model, adapted.state)
    now = model.state_dict()
    assert [note in said for said in adapted.notes] == [True] * bool(note)
    if carried is None:
        assert all(torch.equal(now[name], own[name]) for name in own if name.startswith("classifier"))
    else:
        assert now["classifier.bias"].tolist() == list(carried)
        assert now["classifier.weight"][:, 3].tolist() == list(carried)
    trunk = [name for name in now if not name.startswith("classifier")]
    assert all(torch.equal(now[name], state[name]) for name in trunk)


def test_without_a_classifier_it_is_new() -> None:
    model = model_of()
    state = {name: value for name, value in model_of().state_dict().items() if "classifier" not in name}
    own = model.classifier.weight.clone()  # type: ignore[union-attr, operator]
    adapted = adapt_weights(state, model, classes=DIGITS)
    assert adapted.notes == ("the classifier is new, for 10 classes: the file has none",)
    load_weights(model, adapted.state)
    assert torch.equal(model.classifier.weight, own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("given", "wanted"), [(3, 1), (1, 3)])
def test_a_grey_picture_gives_the_same_response(given: int, wanted: int, dtype: torch.dtype) -> None:
    before, after = model_of(in_chans=given), model_of(in_chans=wanted)
    before = before.to(dtype).float()
    state = {name: value.to(dtype) for name, value in before.state_dict().items()}
    adapted = adapt_weights(state, after, classes=DIGITS)
    load_weights(after, adapted.state)
    assert len(adapted.notes) == 1
    grey = torch.randn(4, 1, 8, 8)
    first, other = (
        model.eval()(grey.expand(-1, channels, -1, -1))
        for model, channels in ((before, given), (after, wanted))
    )
    torch.testing.assert_close(first, other, rtol=1e-4, atol=1e-4)


def without(state: Mapping[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name not in names}


STEM = "stem.conv1.weight"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (lambda s: without(s, "classifier.bias"), "missing: classifier.bias"),
        (lambda s: s | {"classifier.weight": torch.zeros(7, 9)}, r"classifier.weight \(7×9, not 10×8\)"),
        (lambda s: s | {"classifier.weight": torch.zeros(8, 8)}, r"classifier.weight \(8×8, not 10×8\)"),
        (lambda s: s | {STEM: torch.zeros(8, 2, 3, 3)}, r"stem.conv1.weight \(8×2×3×3, not 8×1×3×3\)"),
        (lambda s: s | {STEM: torch.zeros(8, 4, 3, 3)}, r"stem.conv1.weight \(8×4×3×3, not 8×1×3×3\)"),
        (
            lambda s: s | {STEM: torch.zeros(9, 3, 3, 3)},
            r"stem.conv1.weight \(9×1×3×3, not 8×1×3×3\)|9×3×3×3",
        ),
        (lambda s: s | {STEM: torch.full((8, 3, 3, 3), torch.nan)}, "not finite: stem.conv1.weight"),
        (lambda s: s | {"classifier.0.weight": torch.zeros(7, 8)}, "unexpected: classifier.0.weight"),
        (lambda s: without(s, "stage1.0.F.conv1.weight"), "missing: stage1.0.F.conv1.weight"),
        (
            lambda s: {"fc.weight": torch.zeros(7, 8), "conv1.weight": torch.zeros(8, 3, 7, 7)},
            "another network",
        ),
    ],
)
def test_whatever_else_does_not_fit_is_refused_and_nothing_is_loaded(
    changed: Callable[[dict[str, Tensor]], dict[str, Tensor]], says: str, tmp_path: Path
) -> None:
    path = tmp_path / "w.pt"
    torch.save(changed(numbered_rows(7)), path)
    training = begun_from(path, load=False)
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    with pytest.raises(InputError, match=says):
        load_initial_weights(training)
    assert all(torch.equal(value, before[name]) for name, value in training.model.state_dict().items())


def begun_from(path: Path, *, load: bool = True, splits: Splits | None = None) -> Trainer:
    experiment = tiny(init=init_from_file(str(path)))
    training = Trainer(experiment, splits or splits_of(experiment), HERE)
    if load:
        load_initial_weights(training)
    return training


def of_ours(path: Path, classes: tuple[str, ...] = DIGITS, **fields: Any) -> InputStatistics:
    """A file of ours, whose input statistics no measurement gives."""
    description = replace(network(), num_classes=len(classes), **fields)
    channels = description.in_chans
    statistics = InputStatistics(torch.full((channels, 1, 1), 11.0), torch.full((channels, 1, 1), 13.0))
    write_weights(path, description, build(description).state_dict(), classes, statistics)
    return statistics


def test_a_file_of_ours_says_how_pixels_are_normalised(tmp_path: Path) -> None:
    given = of_ours(tmp_path / "w.safetensors", LETTERS)
    training = begun_from(tmp_path / "w.safetensors")
    assert torch.equal(training.statistics.mean, given.mean)
    assert torch.equal(training.statistics.scale, given.scale)
    assert training.experiment.init is not None
    assert training.experiment.init.normalization == "file"


def test_another_file_leaves_normalisation_to_the_data(tmp_path: Path) -> None:
    torch.save(model_of().state_dict(), tmp_path / "w.pt")
    training = begun_from(tmp_path / "w.pt")
    assert torch.equal(training.statistics.mean, measure_statistics(training.splits.train).mean)
    assert "input.mean" not in training.tensors()


def test_a_run_of_an_older_release_keeps_the_normalisation_of_its_data() -> None:
    older = {"path": "w.safetensors", "sha256": "0"}
    assert from_json(json.dumps(older), InitialWeights).normalization == "data"
    text = json.loads(to_json(tiny())) | {"init": older}
    assert from_json(json.dumps(text), Experiment).init == InitialWeights("w.safetensors", "0")


@pytest.mark.parametrize(
    ("shape", "in_chans", "side", "wanted"),
    [
        ((3, 8, 8), 3, 8, (3, 8, 8)),
        ((3, 4, 4), 3, 8, (3, 1, 1)),
        ((1, 8, 8), 3, 8, (3, 8, 8)),
        ((3, 8, 8), 1, 8, (1, 8, 8)),
        ((3, 1, 1), 1, 8, (1, 1, 1)),
        ((1, 1, 1), 3, 8, (3, 1, 1)),
    ],
)
def test_statistics_for_other_images(
    shape: tuple[int, ...], in_chans: int, side: int, wanted: tuple[int, ...]
) -> None:
    given = InputStatistics(torch.rand(shape), torch.rand(1, 1, 1))
    adapted = adapt_statistics(given, in_chans=in_chans, side=side)
    assert adapted.mean.shape == wanted
    torch.testing.assert_close(adapted.mean.mean(), given.mean.mean())
    adapted.normalize(torch.zeros(2, in_chans, side, side, dtype=torch.uint8))


@pytest.mark.parametrize("scale", [0.0, -1.0, torch.nan, torch.inf])
def test_statistics_that_divide_by_nothing_are_refused(scale: float, tmp_path: Path) -> None:
    description, path = network(), tmp_path / "w.safetensors"
    bad = InputStatistics(torch.zeros(1, 1, 1), torch.full((1, 1, 1), scale))
    write_weights(path, description, build(description).state_dict(), DIGITS, bad)
    with pytest.raises(InputError, match=r"input\.scale"):
        begun_from(path)


@pytest.mark.parametrize(
    ("mean", "scale"),
    [
        ((), (1, 1, 1)),
        ((1,), (1, 1, 1)),
        ((2, 1, 1), (1, 1, 1)),
        ((1, 1, 1), (3, 1, 1)),
        ((1, 1, 1), (0,)),
        ((1, 4, 8), (1, 1, 1)),
    ],
)
def test_statistics_of_other_images_are_refused(
    mean: tuple[int, ...], scale: tuple[int, ...], tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    bad = InputStatistics(torch.ones(mean), torch.ones(scale))
    write_weights(path, network(), build(network()).state_dict(), DIGITS, bad)
    with pytest.raises(InputError, match=r"not those of images of 1 channels"):
        begun_from(path)


@pytest.mark.parametrize("at", [0, 2, 6])
def test_a_stopped_run_goes_on_with_the_files_normalisation_after_the_file_is_gone(
    at: int, tmp_path: Path
) -> None:
    given = of_ours(tmp_path / "w.safetensors", LETTERS)
    whole, stopped = begun_from(tmp_path / "w.safetensors"), begun_from(tmp_path / "w.safetensors")
    finish(tmp_path / "whole", whole)
    finish(tmp_path / "stopped", stopped, Poll(at))
    (tmp_path / "w.safetensors").unlink()
    resumed = train(tmp_path / "stopped", stopped.experiment)
    assert resumed.is_finished
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")
    assert torch.equal(Run(tmp_path / "stopped").weights().statistics.mean, given.mean)


def finish(folder: Path, training: Trainer, stop: Callable[[], bool] = lambda: False) -> None:
    from kilolayer.runs import train_run

    with Run.open_or_create(folder, training.experiment) as run:
        for _ in train_run(run, training, stop=stop):
            pass


TINY = ("--data", "digits", "--subset", "32", "--iterations", "2", "--batch-size", "8", "--no-tensorboard")


def test_a_run_gives_its_network_and_the_size_of_its_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    of_ours(source / "weights.safetensors", LETTERS, in_chans=3, image_size=16)
    (source / "config.json").write_text("{}")
    assert main(["train", *TINY, "--init", str(source), "--out", str(tmp_path / "run")]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("kilolayer:")]
    assert len(said) == 1
    assert "the classifier is new" in said[0]
    assert "; the stem's weights were summed over 3 channels" in said[0]
    experiment = Run(tmp_path / "run").experiment()
    assert experiment.network == replace(network(), image_size=16)
    assert experiment.init is not None
    digest = hashlib.sha256((source / "weights.safetensors").read_bytes()).hexdigest()
    assert experiment.init == InitialWeights(str(source / "weights.safetensors"), digest, "file")


def test_a_run_that_is_not_done_says_how_to_finish_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "run", tiny(), Poll(2))
    assert main(["train", *TINY, "--init", str(tmp_path / "run"), "--out", str(tmp_path / "new")]) == 2
    assert f"finish it: kilolayer train --resume {tmp_path / 'run'}" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("", "has an empty name"),
        (".", "'.': is not the folder of a run; name the folder of a run, or a file of weights"),
        ("none", "none: no such file or folder"),
        ("run/config.json", "'run/config.json': not a file of weights"),
        ("run/checkpoints/000000002-000000.safetensors", "holds the state of an unfinished training"),
    ],
)
def test_what_is_no_file_of_weights_is_named(
    given: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    train(tmp_path / "run", tiny(), Poll(2))
    assert main(["train", *TINY, "--init", given, "--out", "new"]) == 2
    shown = capsys.readouterr().err
    assert says in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("lengthened", ["weights", "nothing"])
def test_an_endless_file_is_refused_before_it_is_hashed(
    lengthened: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.safetensors"
    of_ours(path)
    experiment = tiny(init=init_from_file(str(path)))
    path.write_bytes(path.read_bytes() if lengthened == "weights" else b"")
    os.truncate(path, 40 * 10**9)
    monkeypatch.setattr("hashlib.file_digest", None)
    refused = r"not a readable safetensors file|not a file of weights"
    with pytest.raises(InputError, match=refused):
        init_from_file(str(path))
    with pytest.raises(InputError, match=refused):
        load_initial_weights(Trainer(experiment, splits_of(experiment), HERE))


def test_another_network_with_the_same_tensors_is_named(tmp_path: Path) -> None:
    of_ours(tmp_path / "w.safetensors")
    experiment = tiny(replace(PREACT, h=Scaled(0.5)), init=init_from_file(str(tmp_path / "w.safetensors")))
    found = load_initial_weights(Trainer(experiment, splits_of(experiment), HERE))
    assert found is not None
    assert "the file's network has the same tensors, but another unit" in found.notes


def test_the_weights_of_a_run_are_read_as_before(tmp_path: Path) -> None:
    of_ours(tmp_path / "w.safetensors")
    assert read_state_dict(tmp_path / "w.safetensors").keys() == model_of().state_dict().keys()
