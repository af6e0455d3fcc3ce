"""How little training gives which error: short recipes for pre-activation networks on CIFAR-10.

    python benchmarks/short_recipes.py [PATTERN …] [--data PATH] [--threads N] [--out FILE]

Runs every trial below whose name fits a pattern (all by default) and that FILE does not have yet, and
writes FILE (results/short-recipes.json) after each: the experiment, the curve, the seconds and the PFLOP.
Every trial trains on 45,000 images. Recipes are chosen by the error on the 5,000 held out (trials
"tune/…"); the chosen ones see the test set once, at the end (trials "test/…"). Draws short-recipes.svg
beside FILE.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from short_recipes_figures import figure, table

from kilolayer.data import Augmentation, Data, Images, Splits, load
from kilolayer.networks import describe
from kilolayer.runs.start_environment import environment_record
from kilolayer.system import durable
from kilolayer.training import (
    DistributedContext,
    Evaluation,
    Experiment,
    OneCycle,
    ProgressiveDepth,
    ProgressiveResize,
    Recipe,
    Trainer,
    choose_kernels,
    network_for_data,
    recipe_by_name,
)
from kilolayer.values import to_json

HERE = DistributedContext(torch.device("cpu"))
HELD_OUT = 5_000


@dataclass(frozen=True)
class Trial:
    """A network of so many layers, trained for `epochs` by the short recipe, changed as `options` say.

    `options` are fields of `Recipe`, and `peak` and `rise` of its schedule; `pad` is the crop's.
    """

    layers: int
    epochs: float
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    pad: int = 4


GROWING = {"progressive_resize": ProgressiveResize(0.5, ((0.4, 0.75), (0.7, 1.0)))}
SMALL_BATCH = {"batch_size": 64, "peak": 0.1}
# The mean changes no step, so each of these tells the error with and without it.
MEAN = {"ema": 0.05}
SPRINT = GROWING | SMALL_BATCH
THIRD = {"progressive_depth": ProgressiveDepth(1 / 3, ((0.4, 2 / 3), (0.7, 1.0)))}
NINTH = {"progressive_depth": ProgressiveDepth(1 / 9, ((0.4, 1 / 3), (0.7, 1.0)))}

TRIALS: dict[str, Trial] = {
    "tune/20, 3 epochs, short": Trial(20, 3),
    "tune/20, 3 epochs, growing": Trial(20, 3, GROWING),
    "tune/20, 3 epochs, growing, batch 64": Trial(20, 3, GROWING | SMALL_BATCH | MEAN),
    "tune/20, 3 epochs, growing, batch 64, crop of 2": Trial(20, 3, GROWING | SMALL_BATCH | MEAN, pad=2),
    "tune/20, 3 epochs, sprint, rate 0.2": Trial(20, 3, SPRINT | {"peak": 0.2}, pad=2),
    "tune/20, 3 epochs, sprint, label smoothing": Trial(20, 3, SPRINT | {"label_smoothing": 0.1}, pad=2),
    "tune/20, 3 epochs, sprint, no Nesterov": Trial(20, 3, SPRINT | {"nesterov": False}, pad=2),
    "tune/20, 3 epochs, sprint, whole images": Trial(
        20, 3, SPRINT | {"progressive_resize": ProgressiveResize()}, pad=2
    ),
    "test/20, 5 epochs": Trial(20, 5, SPRINT, pad=2),
    "test/20, 5 epochs, seed 1": Trial(20, 5, SPRINT, seed=1, pad=2),
    "test/20, 5 epochs, seed 2": Trial(20, 5, SPRINT, seed=2, pad=2),
    "test/20, 15 epochs": Trial(20, 15, SPRINT, pad=2),
    "test/20, 40 epochs": Trial(20, 40, SPRINT, pad=2),
    "test/20, 80 epochs": Trial(20, 80, SPRINT, pad=2),
    "tune/110, 3 epochs": Trial(110, 3, SPRINT, pad=2),
    "tune/110, 3 epochs, from a third of the units": Trial(110, 3, SPRINT | THIRD, pad=2),
    "tune/110, 3 epochs, from a ninth of the units": Trial(110, 3, SPRINT | NINTH, pad=2),
    "test/56, 3 epochs": Trial(56, 3, SPRINT, pad=2),
    "test/110, 3 epochs": Trial(110, 3, SPRINT, pad=2),
    "test/164, 3 epochs": Trial(164, 3, SPRINT, pad=2),
    "test/56, 15 epochs": Trial(56, 15, SPRINT, pad=2),
    "test/110, 5 epochs, from a third of the units": Trial(110, 5, SPRINT | THIRD, pad=2),
}


class Timed(Trainer):
    """Training that knows how long its evaluations took."""

    evaluating = (0.0, 0.0)

    def evaluate(self, images: Images, stop: Callable[[], bool] = lambda: False) -> Evaluation | None:
        before = clocks()
        measured = super().evaluate(images, stop)
        spent, now = self.evaluating, clocks()
        self.evaluating = (spent[0] + now[0] - before[0], spent[1] + now[1] - before[1])
        return measured


def clocks() -> tuple[float, float]:
    """Processor seconds and wall seconds."""
    return time.process_time(), time.perf_counter()


def made(trial: Trial, images: int) -> Recipe:
    options = dict(trial.options)
    base = recipe_by_name("short", images)
    base = replace(base, batch_size=options.pop("batch_size", base.batch_size))
    iterations = round(trial.epochs * (images // base.batch_size))
    assert isinstance(base.rate, OneCycle)  # noqa: S101 - what the short recipe has
    peak, rise = options.pop("peak", base.rate.peak), options.pop("rise", base.rate.rise)
    rate = OneCycle(peak, iterations, rise)
    return replace(base, name="trial", iterations=iterations, rate=rate, **options)


def experiment(trial: Trial, data: Data, splits: Splits) -> Experiment:
    kernels = choose_kernels("auto", HERE.device, "bf16", channels_last=True)
    network = network_for_data(
        describe(f"preact_resnet{trial.layers}_cifar"),
        classes=splits.num_classes,
        in_chans=splits.in_chans,
        image_size=splits.image_size,
    )
    chosen = replace(made(trial, len(splits.train)), augmentation=Augmentation(pad=trial.pad))
    return Experiment(
        network, data, chosen, trial.seed, "bf16", memory_format="channels_last", kernels=kernels
    )


def run(name: str, trial: Trial, data: Data, splits: Splits) -> dict[str, Any]:
    """Trains; the figures of the trial as JSON can hold them."""
    chosen = experiment(trial, data, splits)
    training = Timed(chosen, splits, HERE)
    before, curve = clocks(), []
    for step in training.steps():
        if step.epoch:
            curve.append(asdict(step.epoch) | {"processor_seconds": seconds(training, before)[0]})
            print(f"{name}: {curve[-1]}", flush=True)
    trained, whole = seconds(training, before), clocks()
    final = training.conclude() if name.startswith("test/") else None
    images = chosen.recipe.iterations * chosen.recipe.batch_size
    return {
        "options": json.loads(to_json(trial)),
        "data": splits.name,
        "validation_error": curve[-1]["monitored_error"],
        "validation_error_of_last_weights": last_weights(training) if training.state.ema else None,
        "test_error": final.last.error if final else None,
        "images": images,
        "pflop": pflop(chosen),
        "training_processor_seconds": trained[0],
        "training_wall_seconds": trained[1],
        "processor_seconds": whole[0] - before[0],
        "wall_seconds": whole[1] - before[1],
        "curve": curve,
        "experiment": json.loads(to_json(chosen)),
        "environment": environment_record(HERE, "bf16", channels_last=True, kernels=chosen.kernels),
    }


def last_weights(training: Trainer) -> float:
    """Where the reported weights are a mean: the error of those it ended in."""
    assert training.splits.validation is not None and training.state.ema is not None  # noqa: S101, PT018
    mean, training.state.ema = training.state.ema, None
    try:
        found = training.evaluate(training.splits.validation)
    finally:
        training.state.ema = mean
    assert found is not None  # noqa: S101 - only a stop gives none
    return found.error


def seconds(training: Timed, start: tuple[float, float]) -> tuple[float, float]:
    """Processor and wall seconds since `start` without evaluations."""
    now, spent = clocks(), training.evaluating
    return now[0] - start[0] - spent[0], now[1] - start[1] - spent[1]


def pflop(chosen: Experiment) -> float:
    """10¹⁵ operations of training: a multiply-add is two, and backward costs twice forward."""
    return 6e-15 * chosen.multiply_adds


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("patterns", nargs="*", default=["*"])
    options.add_argument("--data", default="../shared/data/cifar10-jpeg")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--out", type=Path, default=Path("results/short-recipes.json"))
    asked = options.parse_args()
    torch.set_num_threads(asked.threads)
    wanted = [name for name in TRIALS if any(fnmatch(name, pattern) for pattern in asked.patterns)]
    data, splits = Data(asked.data, validation=HELD_OUT), None
    for name in wanted:
        done = json.loads(asked.out.read_text(encoding="utf-8")) if asked.out.exists() else {}
        if name in done:
            continue
        splits = splits or load(data)
        figures = run(name, TRIALS[name], data, splits)
        durable.write_file(
            asked.out, json.dumps(done | {name: figures}, indent=1, ensure_ascii=False).encode()
        )
    found = json.loads(asked.out.read_text(encoding="utf-8"))
    durable.write_file(asked.out.with_suffix(".svg"), figure(found).encode())
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
