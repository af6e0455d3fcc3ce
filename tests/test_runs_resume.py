"""A run that was stopped, wherever and however often, ends as if it had not been: the same bytes."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from kilolayer.__main__ import main
from kilolayer.data import PHOTO_AUGMENTATION, Images
from kilolayer.errors import InputError
from kilolayer.runs import Run, train_run
from kilolayer.runs.checkpoints import UnusableStates
from kilolayer.training import SGD, AdamW, Experiment, ProgressiveDepth, ProgressiveResize, Trainer
from kilolayer.training.experiment import InitialWeights
from kilolayer.units import Dropout
from tiny_runs import (
    HERE,
    PREACT,
    Poll,
    files_in,
    network,
    outcome,
    splits_of,
    tiny,
    train,
    training_of,
    with_recipe,
)

POLLS = 7 + 3 + 1
"""How often the tiny run asks whether to stop: before each step, in each evaluation, in the final one."""

VARIANTS = {
    "plain": tiny(),
    "dropout": tiny(replace(PREACT, h=Dropout(0.5))),
    "bf16, channels last": tiny(precision="bf16", memory_format="channels_last"),
    "validation": tiny(validation=20),
    "recomputed": tiny(replace(PREACT, h=Dropout(0.5)), activation_memory="balanced"),
    "seldom evaluated": tiny(evaluate_every=2),
    "no momentum": with_recipe(tiny(), optimizer=SGD(0.0)),
    "adamw": with_recipe(tiny(), optimizer=AdamW()),
    "adamw, growing depth": with_recipe(
        tiny(network=network(units=3)),
        optimizer=AdamW(),
        progressive_depth=ProgressiveDepth(0.3, ((0.2, 0.6), (0.5, 1.0))),
    ),
    "photographs": with_recipe(tiny(), augmentation=PHOTO_AUGMENTATION),
    "slower trunk": with_recipe(tiny(), trunk_rate=0.1),
    "frozen trunk": with_recipe(tiny(init=InitialWeights("w.pt", "0")), trunk_rate=0.0, ema=0.5),
    "averaged": with_recipe(tiny(validation=20), ema=0.5),
    "growing images": with_recipe(
        tiny(), progressive_resize=ProgressiveResize(0.5, ((0.2, 0.75), (0.5, 1.0)))
    ),
    "growing depth": with_recipe(
        tiny(network=network(units=3)), progressive_depth=ProgressiveDepth(0.3, ((0.2, 0.6), (0.5, 1.0)))
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """What each variant comes to when nothing stops it."""
    known: dict[str, dict[str, Any]] = {}

    def of(name: str) -> dict[str, Any]:
        if name not in known:
            folder = tmp_path_factory.mktemp("whole")
            assert train(folder, VARIANTS[name]).is_finished
            known[name] = outcome(folder)
        return known[name]

    return of


def test_the_run_asks_as_often_as_it_says(tmp_path: Path) -> None:
    stop = Poll()
    train(tmp_path / "run", tiny(), stop)
    assert stop.asked == POLLS


@pytest.mark.parametrize("at", range(POLLS))
def test_stopped_once_anywhere(at: int, tmp_path: Path, whole: Any) -> None:
    folder = tmp_path / "run"
    stopped = train(folder, tiny(), Poll(at))
    assert not stopped.is_finished
    assert Run(folder).result() is None
    resumed = train(folder, tiny())
    assert resumed.is_finished
    assert outcome(folder) == whole("plain")


@pytest.mark.parametrize("variant", VARIANTS)
def test_stopped_again_and_again(variant: str, tmp_path: Path, whole: Any) -> None:
    """After 1, 3 and 2 more looks in turn: several times in an epoch, at its end, and in evaluations."""
    folder, reached = tmp_path / "run", []
    for looks in cycle((1, 3, 2)):
        training = train(folder, VARIANTS[variant], Poll(looks))
        reached.append(training.state.iteration)
        if training.is_finished:
            break
    assert len(reached) > 4
    assert reached == sorted(reached)
    assert outcome(folder) == whole(variant)


def test_the_variants_are_not_the_same_run(whole: Any) -> None:
    figures = {name: whole(name)["weights"] for name in VARIANTS}
    # Looking seldom and holding images back from a larger set change no step.
    assert figures["seldom evaluated"] == figures["plain"]
    assert figures["recomputed"] == figures["dropout"]
    assert len(set(figures.values())) == len(VARIANTS) - 2


def test_stopped_before_the_first_step_nothing_is_lost_or_begun(tmp_path: Path) -> None:
    training = train(tmp_path / "run", tiny(), lambda: True)
    assert training.state.iteration == 0
    assert Run(tmp_path / "run").metrics() == []
    assert [path.name for path in sorted((tmp_path / "run/checkpoints").iterdir())] == [
        "000000000-000000.json",
        "000000000-000000.safetensors",
    ]


def test_a_stop_that_is_taken_back_in_an_evaluation_still_stops(tmp_path: Path, whole: Any) -> None:
    """Else the next epoch would begin before this one was closed."""
    asked = Poll()

    def only_then() -> bool:
        asked()
        return asked.asked == 4  # three steps, then the evaluation

    stopped = train(tmp_path / "run", tiny(), only_then)
    assert (stopped.state.iteration, stopped.state.epochs_closed) == (3, 0)
    train(tmp_path / "run", tiny())
    assert outcome(tmp_path / "run") == whole("plain")


def test_a_run_that_is_done_stays_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder, tiny())
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}
    training = train(folder, tiny())
    assert training.state.iteration == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"} == before


def test_the_selected_weights_survive(tmp_path: Path) -> None:
    """The best epoch is the first here, and the run is stopped after it."""
    experiment = with_recipe(
        tiny(validation=20), rate=tiny().recipe.rate.scale_rate(0.0)
    )  # none is better later
    first = train(tmp_path / "run", experiment, Poll(5))
    assert (first.state.best_epoch, first.state.epochs_closed) == (1, 1)
    second = train(tmp_path / "run", experiment)
    assert second.state.best_epoch == 1
    assert second.state.best_weights.keys() == first.state.best_weights.keys()
    assert all(
        torch.equal(first.state.best_weights[key], value) for key, value in second.state.best_weights.items()
    )
    assert any(
        not torch.equal(second.model.state_dict()[key], value)
        for key, value in first.state.best_weights.items()
    )


# Damaged checkpoints


def flip(path: Path, at: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a flipped bit of a tensor": (".safetensors", lambda path: flip(path, 0.9)),
    "a flipped bit of the header": (".safetensors", lambda path: flip(path, 0.001)),
    "a torn state": (".safetensors", truncate),
    "an empty state": (".safetensors", lambda path: path.write_bytes(b"")),
    "a zeroed state": (".safetensors", lambda path: path.write_bytes(bytes(path.stat().st_size))),
    "a missing state": (".safetensors", Path.unlink),
    "a missing seal": (".json", Path.unlink),
    "a torn seal": (".json", truncate),
    "an empty seal": (".json", lambda path: path.write_bytes(b"")),
    "a seal of a list": (".json", lambda path: path.write_bytes(b"[]")),
    "another state's seal": (
        ".json",
        lambda path: path.write_bytes(min(path.parent.glob("*.json")).read_bytes()),
    ),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two states: after 3 steps, one epoch, and after 5."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    train(folder, tiny(), Poll(6))
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == [
        f"{name}.{ending}"
        for name in ("000000003-000001", "000000005-000001")
        for ending in ("json", "safetensors")
    ]
    return folder


@pytest.fixture
def copy(stopped: Path, tmp_path: Path) -> Path:
    return copytree(stopped, tmp_path / "copy")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_passed_over_for_the_one_before(
    damage: str, copy: Path, whole: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ending, harm = DAMAGES[damage]
    harm(copy / f"checkpoints/000000005-000001{ending}")
    checkpoint = Run(copy).latest_checkpoint()
    assert checkpoint is not None
    assert checkpoint.counters["iteration"] == 3
    (warning,) = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert "000000005-000001." in warning.getMessage()
    assert "\n" not in warning.getMessage()
    train(copy, tiny())
    assert outcome(copy) == whole("plain")


@pytest.mark.parametrize("ending", ["json", "safetensors"])
def test_no_bit_flips_unseen(ending: str, copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = copy / f"checkpoints/000000005-000001.{ending}"
    good = path.read_bytes()
    caplog.set_level(logging.CRITICAL)
    for bit in range(0, 8 * len(good), max(1, 8 * len(good) // 150)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        found = Run(copy).latest_checkpoint()
        assert found is not None
        assert found.counters["iteration"] == 3, f"bit {bit}"


def test_without_any_whole_state_the_run_begins_anew_at_your_word(copy: Path, whole: Any) -> None:
    for state in (copy / "checkpoints").glob("*.safetensors"):
        truncate(state)
    before = files_in(copy)
    with pytest.raises(UnusableStates, match=r"none can be used: .*begin anew with --start-over"):
        train(copy, tiny())
    assert files_in(copy) | {".lock": b""} == before | {".lock": b""}
    with Run(copy).lock() as run:
        run.start_over()
    assert train(copy, tiny()).is_finished
    assert outcome(copy) == whole("plain")
    kept = files_in(copy)
    for name, content in before.items():
        if name.startswith("checkpoints/") or name in ("metrics.jsonl", "timing.jsonl"):
            assert kept[f"{name}.set-aside"] == content


def test_what_is_damaged_never_crowds_out_what_is_whole(copy: Path) -> None:
    truncate(copy / "checkpoints/000000005-000001.safetensors")
    training = train(copy, tiny(), Poll(1))
    assert training.state.iteration == 4
    names = {path.name.partition(".")[0::2] for path in (copy / "checkpoints").iterdir()}
    assert names == {
        (name, f"{ending}{aside}")
        for name, aside in (
            ("000000003-000001", ""), ("000000004-000001", ""), ("000000005-000001", ".set-aside")
        )
        for ending in ("json", "safetensors")
    }  # fmt: skip


@pytest.mark.parametrize(
    "harm", [None, b"", b"{}\n", lambda good: good[:-9], lambda good: good.replace(b"1", b"2", 1)]
)
def test_lost_or_changed_figures_are_restored_from_the_state(
    harm: Any, copy: Path, whole: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = copy / "metrics.jsonl"
    changed = harm(path.read_bytes()) if callable(harm) else harm
    path.unlink()
    if changed is not None:
        path.write_bytes(changed)
    train(copy, tiny())
    assert "metrics.jsonl is not what the state was saved with" in caplog.text
    assert outcome(copy) == whole("plain")
    if changed:
        assert (copy / "metrics.jsonl.set-aside").read_bytes() == changed


def test_figures_from_after_the_state_are_cut_off(copy: Path, whole: Any) -> None:
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "iteration": 6}\n{"epoch": 3, "iter')
    train(copy, tiny())
    assert outcome(copy) == whole("plain")


def test_what_kills_left_is_cleared_away(copy: Path) -> None:
    left = [copy / "checkpoints/.000000005-000001.json.0123abcd", copy / ".result.json.89abcdef"]
    for path in left:
        path.write_bytes(b"half")
    train(copy, tiny())
    assert not any(path.exists() for path in left)


def test_at_most_two_states_are_kept(tmp_path: Path) -> None:
    experiment = tiny()
    with Run.open_or_create(tmp_path / "run", experiment) as run:
        for step in train_run(run, training_of(experiment), save_seconds=-1.0):
            names = sorted(path.name for path in run.file("checkpoints").iterdir())
            assert len(names) == 2 * min(2, step.iteration)
            assert names[-1].startswith(f"{step.iteration:09d}")


def test_saving_a_state_twice_leaves_it_alone(copy: Path) -> None:
    """Who stops right after a save saves again: at no moment may the first be at risk."""
    before = {path: path.stat().st_mtime_ns for path in (copy / "checkpoints").iterdir()}
    training = train(copy, tiny(), lambda: True)
    assert training.state.iteration == 5
    assert {path: path.stat().st_mtime_ns for path in (copy / "checkpoints").iterdir()} == before


# What has to agree


def starts(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "environment.json").read_text())
    return found


def test_another_environment_is_named_in_one_line(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    (before,) = starts(copy)
    (copy / "environment.json").write_text(json.dumps([before | {"threads": 64, "torch": "1.0", "cores": 3}]))
    train(copy, tiny(), Poll(1))
    (warning,) = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert f"torch {before['torch']} (was 1.0), threads {before['threads']} (was 64)" in warning
    assert "cores" not in warning
    assert "\n" not in warning
    train(copy, tiny())  # its beginning was still computed elsewhere
    assert caplog.text.count("(was 64)") == 2
    assert len(starts(copy)) == 3


def test_the_same_environment_is_not_mentioned(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(copy, tiny())
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


def changed(experiment: Experiment, part: str) -> Trainer:
    splits = splits_of(experiment)
    images: Images = getattr(splits, part)
    labels = images.labels.clone()
    labels[0] = (labels[0] + 1) % 10
    other: dict[str, Any] = {part: Images(images.pixels, labels)}
    return Trainer(experiment, replace(splits, **other), HERE)


@pytest.mark.parametrize("part", ["train", "validation"])
def test_other_data_are_refused_and_nothing_is_written(part: str, tmp_path: Path) -> None:
    experiment, run = tiny(validation=20), Run(tmp_path / "run")
    train(run.path, experiment, Poll(2))
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    name = {"train": "training", "validation": "validation"}[part]
    with pytest.raises(InputError, match=f"^the {name} set has changed since the run began[^\n]*$"):
        next(train_run(run, changed(experiment, part)))
    after = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    lock = run.file(".lock")
    assert after | {lock: b""} == before | {lock: b""}


def test_a_state_of_other_tensors_is_refused(copy: Path) -> None:
    run = Run(copy)
    checkpoint = run.latest_checkpoint()
    assert checkpoint is not None
    tensors = {key: value for key, value in checkpoint.tensors.items() if key != "model.classifier.bias"}
    with pytest.raises(InputError, match="another release"):
        training_of(tiny()).restore(tensors, checkpoint.counters)


# States that were changed and sealed again


def reseal(
    folder: Path, counters: dict[str, Any], metrics: str | None, change: Callable[[dict[str, Any]], object]
) -> None:
    """Changes the newest state, as a stranger would, under seals that fit; removes the others."""
    *older, newest = sorted((folder / "checkpoints").glob("*.json"))
    for path in older:
        path.unlink()
        path.with_suffix(".safetensors").unlink()
    manifest = json.loads(newest.read_text())
    tensors = load_file(newest.with_suffix(".safetensors"))
    change(tensors)
    content = save(tensors)
    newest.with_suffix(".safetensors").unlink()
    newest.unlink()
    del manifest["seal"]
    manifest["counters"] |= counters
    manifest["tensors"] = hashlib.sha256(content).hexdigest()
    manifest["metrics"] = manifest["metrics"] if metrics is None else metrics
    seal = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    now = manifest["counters"]
    name = newest.with_name(f"{now['iteration']:09d}-{now['epochs_closed']:06d}")
    name.with_suffix(".json").write_text(json.dumps({**manifest, "seal": seal}, indent=2, sort_keys=True))
    name.with_suffix(".safetensors").write_bytes(content)


def rows_of(epochs: int) -> str:
    return "".join(f'{{"epoch": {epoch}, "iteration": {3 * epoch}}}\n' for epoch in range(1, epochs + 1))


def nothing(tensors: dict[str, Any]) -> None:
    pass


BIAS = "classifier.bias"
RESEALED: dict[str, tuple[str, dict[str, Any], str | None, Callable[[dict[str, Any]], object]]] = {
    "an iteration beyond the last": (
        "is of iteration 99,999,999 of 7;", {"iteration": 99999999}, None, nothing
    ),
    "an iteration of ten digits": (
        "is of iteration 1,000,000,000 of 7;", {"iteration": 10**9}, None, nothing
    ),
    "many closed epochs": ("5 of 7 with 9,999 closed", {"epochs_closed": 9999}, rows_of(9999), nothing),
    "too many closed epochs": ("5 of 7 with 3 closed", {"epochs_closed": 3}, rows_of(3), nothing),
    "too few closed epochs": ("5 of 7 with 0 closed", {"epochs_closed": 0, "best_epoch": 0}, "", nothing),
    "a best epoch to come": ("with epoch 2 as the best of 1", {"best_epoch": 2}, None, nothing),
    "words as metrics": (".json: metrics, line 1", {}, "garbage\n", nothing),
    "a list as metrics": (".json: metrics, line 1", {}, "[1]\n", nothing),
    "bytes as metrics": (".json: metrics, line 1", {}, "\udc80\n", nothing),
    "half a character as metrics": ("its own checksum does not match", {}, "\ud800\n", nothing),
    "no metrics": ("other lines than those of its 1 closed", {}, "", nothing),
    "metrics of more epochs": ("other lines than those of its 1 closed", {}, rows_of(2), nothing),
    "metrics with half a line": ("other lines than", {}, rows_of(1) + '{"epo', nothing),
    "no weight": (f"model.{BIAS} is missing", {}, None, lambda found: found.pop(f"model.{BIAS}")),
    "no best weight": (f"best.{BIAS} is missing", {}, None, lambda found: found.pop(f"best.{BIAS}")),
    "no momentum": (f"momentum.{BIAS} is missing", {}, None, lambda found: found.pop(f"momentum.{BIAS}")),
    "a best weight of another shape": (
        f"best.{BIAS} is float32 (1,), and has to be float32 (10,)", {}, None,
        lambda found: found.update({f"best.{BIAS}": torch.zeros(1)}),
    ),
    "a best weight of another type": (
        f"best.{BIAS} is float64 (10,)", {}, None,
        lambda found: found.update({f"best.{BIAS}": torch.zeros(10, dtype=torch.float64)}),
    ),
    "sums of another shape": (
        "sums is float64 (1,)", {}, None,
        lambda found: found.update(sums=torch.zeros(1, dtype=torch.float64)),
    ),
    "an extra tensor": (
        "more\\u001b is none of them", {}, None, lambda found: found.update({"more\x1b": torch.zeros(1)})
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def selecting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run stopped after 5 of 7 steps that keeps its best weights."""
    folder = tmp_path_factory.mktemp("selecting") / "run"
    train(folder, tiny(validation=20), Poll(6))
    return folder


@pytest.mark.parametrize("change", RESEALED)
def test_a_state_sealed_again_that_does_not_fit_is_refused(
    change: str, selecting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    says, *changes = RESEALED[change]
    folder = copytree(selecting, tmp_path / "run")
    reseal(folder, *changes)
    before = files_in(folder)
    assert main(["train", "--resume", str(folder), "--no-tensorboard"]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert files_in(folder) == before


def test_a_state_sealed_again_that_fits_is_taken(selecting: Path, tmp_path: Path) -> None:
    folder = copytree(selecting, tmp_path / "run")
    reseal(folder, {}, None, nothing)
    assert main(["train", "--resume", str(folder), "--no-tensorboard"]) == 0


def test_states_are_ordered_by_their_numbers(copy: Path) -> None:
    for name in ("1000000000-000001", "999999999-000001"):
        (copy / f"checkpoints/{name}.json").write_bytes(b"")
    (copy / "checkpoints/notes-000001.json").write_bytes(b"")
    assert Run(copy).saved_iteration() == 10**9
    train(copy, tiny(), Poll(1))
    names = {path.name for path in (copy / "checkpoints").glob("*.json*")}
    assert {f"{name}.json.set-aside" for name in ("1000000000-000001", "999999999-000001")} < names
    assert "notes-000001.json" in names
