"""Experiments small enough to be repeated in every test, and what is compared of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from kilolayer.data import Augmentation, Data, Images, Splits, load
from kilolayer.networks import Network, Stage, Stem
from kilolayer.runs import Run, train_run
from kilolayer.training import DistributedContext, Experiment, Recipe, Steps, Trainer
from kilolayer.units import BASIC, FULL_PREACT, Unit

HERE = DistributedContext(torch.device("cpu"))
PREACT = replace(BASIC, arrangement=FULL_PREACT)
TIMING = ("images_per_second", "seconds", "train_seconds", "peak_memory_bytes")


def network(unit: Unit = PREACT, units: int = 1) -> Network:
    """Two stages of `units` units, for the digits."""
    return Network(Stem(8), (Stage(units, 8), Stage(units, 8, stride=2)), unit, in_chans=1, image_size=8)


def tiny(unit: Unit = PREACT, *, validation: int = 0, **changes: Any) -> Experiment:
    """Seven steps of 16 of 50 digits: two epochs of three steps, and a third of one."""
    recipe = Recipe("tiny", 7, Steps(0.1, ((4, 0.01),)), 16, augmentation=Augmentation(pad=1, flip=False))
    return replace(Experiment(network(unit), Data(subset=50, validation=validation), recipe), **changes)


def with_recipe(experiment: Experiment, **changes: Any) -> Experiment:
    return replace(experiment, recipe=replace(experiment.recipe, **changes))


def splits_of(experiment: Experiment, tests: int = 40) -> Splits:
    """The experiment's digits, of the test set only the first."""
    found = load(experiment.data)
    return replace(found, read_test=lambda: found.read_test()[:tests])


def training_of(experiment: Experiment, place: DistributedContext = HERE) -> Trainer:
    return Trainer(experiment, splits_of(experiment), place)


def never() -> bool:
    return False


class Poll:
    """A `stop()` that turns true when it is asked for the `at`-th time, counted from 0."""

    def __init__(self, at: float = float("inf")) -> None:
        self.at, self.asked = at, 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked > self.at


def train(
    folder: Path, experiment: Experiment, stop: Callable[[], bool] = never, splits: Splits | None = None
) -> Trainer:
    """Trains into `folder`, from where it was left, to the end or until `stop()`."""
    with Run.open_or_create(folder, experiment) as run:
        training = Trainer(experiment, splits or splits_of(experiment), HERE)
        for _ in train_run(run, training, stop=stop):
            pass
    return training


def outcome(folder: Path) -> dict[str, Any]:
    """Whatever has to be the same when a run was stopped on its way: all but what the clock decides."""
    result = json.loads((folder / "result.json").read_text())
    return {
        "weights": hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest(),
        "metrics": [_timeless(row) for row in Run(folder).metrics()],
        "result": _timeless(result),
        "config": (folder / "config.json").read_bytes(),
    }


def _timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in TIMING}


def losses(training: Trainer, steps: int) -> list[float]:
    """The training loss of each of the first steps, as long as they lie in one epoch."""
    taken = list(islice(training.steps(), steps))
    assert all(step.epoch is None for step in taken)
    return [step.loss.item() for step in taken]


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in _files(folder)}


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def numbered(count: int, classes: int, side: int = 1) -> Images:
    """Image i has every pixel i; its label is i modulo the number of classes."""
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, side, side)
    return Images(pixels.contiguous(), torch.arange(count) % classes)
