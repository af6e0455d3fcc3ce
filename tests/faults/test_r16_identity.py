"""R16: the state of another run or of another configuration is refused by name; a copy of a run goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hostile import status

from kilolayer.data import Images, Splits, load
from kilolayer.errors import InputError
from kilolayer.runs import Run, checkpoints, train_run
from kilolayer.training import Trainer
from tiny_runs import HERE, Poll, files_in, outcome, tiny, train

Harm = Callable[[Path, dict[str, Path]], None]
VARIANTS = {"the other seed": tiny(seed=1), "the same again": tiny(), "held out": tiny(validation=10)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A stopped run, and others that are stopped as far."""
    folder = tmp_path_factory.mktemp("r16")
    for name, experiment in {"run": tiny(), **VARIANTS}.items():
        train(folder / name, experiment, stop=Poll(7), splits=load(experiment.data))
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("r16") / "done"
    train(path, tiny(), splits=load(tiny().data))
    return outcome(path)


def states_of(name: str, only: str = "*") -> Harm:
    """The states of another run lie in this one's folder: all of them, or some beside its own."""

    def harm(run: Path, runs: dict[str, Path]) -> None:
        for path in (run / "checkpoints").glob(only):
            path.unlink()
        for path in (runs[name] / "checkpoints").glob(only):
            shutil.copy(path, run / "checkpoints")

    return harm


def config(change: Callable[[str], str]) -> Harm:
    def harm(run: Path, runs: dict[str, Path]) -> None:
        path = run / "config.json"
        text = path.read_text()
        path.write_text(change(text))
        assert path.read_text() != text

    return harm


def config_of(name: str) -> Harm:
    return lambda run, runs: shutil.copy(runs[name] / "config.json", run / "config.json") and None


def no_id(run: Path, runs: dict[str, Path]) -> None:
    """The starts were lost; states of another configuration are seen all the same."""
    (run / "environment.json").unlink()
    states_of("the other seed")(run, runs)


def metrics_of_the_other(run: Path, runs: dict[str, Path]) -> None:
    states_of("the other seed")(run, runs)
    shutil.copy(runs["the other seed"] / "metrics.jsonl", run)


HARMS: dict[str, tuple[Harm, str]] = {
    "all states of the other seed": (states_of("the other seed"), "the state of another run"),
    "the newest of the other seed": (states_of("the other seed", "*5-*"), "the state of another run"),
    "all states of the same experiment": (states_of("the same again"), "the state of another run"),
    "the newest of the same experiment": (states_of("the same again", "*5-*"), "the state of another run"),
    "states of another split": (states_of("held out"), "the state of another run"),
    "states and metrics": (metrics_of_the_other, "the state of another run"),
    "no starts": (no_id, "another config.json"),
    "another seed": (config(lambda text: text.replace('"seed": 0', '"seed": 1')), "another config.json"),
    "another rate": (config(lambda text: text.replace("0.01", "0.02")), "another config.json"),
    "a space more": (config(lambda text: text + " "), "another config.json"),
    "the configuration of the other seed": (config_of("the other seed"), "another config.json"),
}


def test_states_of_another_run_are_refused_by_name(
    runs: dict[str, Path], tmp_path: Path, chosen: Callable[[Sequence[str]], list[str]], count: Any
) -> None:
    cases, bad = chosen([*HARMS]), {}
    for name in cases:
        run = Path(shutil.copytree(runs["run"], tmp_path / name))
        harm, words = HARMS[name]
        harm(run, runs)
        before = {file: raw for file, raw in files_in(run).items() if file != ".lock"}
        code, _, err = status(["train", "--resume", str(run), "--threads", "1", "--no-tensorboard"])
        after = {file: raw for file, raw in files_in(run).items() if file != ".lock"}
        if code != 2 or words not in err or "checkpoints/0" not in err or after != before:
            bad[name] = f"status {code}: {err}{', changed' * (after != before)}"
    print(bad)
    count("R16", tried=len(cases), held=len(cases) - len(bad), note="states and configurations")


def copied(run: Path, target: Path) -> Path:
    return Path(shutil.copytree(run, target))


def renamed(run: Path, target: Path) -> Path:
    return copied(run, target.with_name("first")).rename(target)


def linked(run: Path, target: Path) -> Path:
    target.symlink_to(copied(run, target.with_name("real")))
    return target


@pytest.mark.parametrize("way", [copied, renamed, linked])
def test_a_copy_goes_on_to_the_same_bits(
    way: Callable[[Path, Path], Path], runs: dict[str, Path], done: dict[str, Any], tmp_path: Path, count: Any
) -> None:
    run = way(runs["run"], tmp_path / "copy")
    code, _, err = status(["train", "--resume", str(run), "--threads", "1", "--no-tensorboard"])
    print(err)
    count("R16", tried=1, held=int(code == 0 and outcome(run) == done), note=way.__name__)


def changed(splits: Splits, part: str) -> Splits:
    def relabelled(images: Images) -> Images:
        labels = images.labels.clone()
        labels[0] = (labels[0] + 1) % 10
        return Images(images.pixels, labels)

    if part == "test":
        return replace(splits, read_test=lambda: relabelled(splits.test))
    return replace(splits, train=relabelled(splits.train))


@pytest.mark.parametrize("part", ["train", "test"])
def test_other_images_are_refused_by_the_part(
    part: str, runs: dict[str, Path], tmp_path: Path, count: Any
) -> None:
    run = Run(copied(runs["run"], tmp_path / "run"))
    trainer = Trainer(tiny(), changed(load(tiny().data), part), HERE)
    with pytest.raises(InputError, match=f"the {'training' if part == 'train' else 'test'} set has changed"):
        next(train_run(run, trainer))
    count("R16", tried=1, held=1, note=f"another {part} set")


def test_what_is_edited_under_way_is_not_sealed(tmp_path: Path, count: Any) -> None:
    """The state keeps the configuration and the figures that the process began with."""
    with Run.open_or_create(tmp_path, tiny()) as run:
        for step in train_run(run, Trainer(tiny(), load(tiny().data), HERE), save_seconds=-1.0):
            if step.iteration == 4:
                config(lambda text: text + " ")(tmp_path, {})
                (tmp_path / "metrics.jsonl").write_text("{}\n")
    seal = json.loads(max((tmp_path / "checkpoints").glob("*.json")).read_text())
    held = [row["epoch"] for row in run.metrics()] == [1, 2, 3] and seal["config"] != run.owner().config
    count("R16", tried=1, held=int(held), note="edited under way")


def test_the_harness_sees_a_seeded_fault(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "_check_owner", lambda path, manifest, owner: None)
    run = copied(runs["run"], tmp_path / "run")
    states_of("the other seed")(run, runs)
    assert status(["train", "--resume", str(run), "--threads", "1", "--no-tensorboard"])[0] == 0
