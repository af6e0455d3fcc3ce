"""The self-test: a few training steps, repeated, saved and read back, must give the same bits."""

from __future__ import annotations

import hashlib
import logging
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kilolayer.data import Data, load
from kilolayer.networks import describe
from kilolayer.runs import Run, train_run
from kilolayer.runs.weights_file import read_tensors
from kilolayer.training import DistributedContext, Experiment, Trainer, network_for_data, recipe_by_name
from kilolayer.training.experiment import Precision, memory_format_for

STEPS, HALF = 6, 3
PROMISES = ("repeats", "resumes", "finite")


def run_self_test(device: torch.device, precision: Precision) -> dict[str, Any]:
    """Trains 8 layers on digits three times: twice the same, and once with a stop and a resume half-way.

    In the result, `repeats` and `resumes` say whether the weights were saved and have the same bits; `finite`
    says whether every loss is finite.
    """
    began = time.perf_counter()
    context = DistributedContext(device)
    with tempfile.TemporaryDirectory(prefix="kilolayer-doctor-") as name, _quiet():
        folder = Path(name)
        first, steps_per_second = _run(folder / "first", context, precision)
        second, _ = _run(folder / "second", context, precision)
        _run(folder / "third", context, precision, until=HALF)
        third, _ = _run(folder / "third", context, precision)
        losses = [row["train_loss"] for row in Run(folder / "first").metrics()]
    return {
        "device": device.type,
        "precision": precision,
        "repeats": first != "" and first == second,
        "resumes": first != "" and first == third,
        "finite": all(math.isfinite(loss) for loss in losses),
        "steps_per_second": round(steps_per_second, 1),
        "seconds": round(time.perf_counter() - began, 1),
    }


def _run(
    folder: Path, context: DistributedContext, precision: Precision, until: int | None = None
) -> tuple[str, float]:
    """The SHA-256 of the weights ("" after a stop before the end), and the steps per second."""
    data = Data(subset=128, validation=0)
    splits = load(data)
    network = network_for_data(describe("preact_resnet8_cifar"), classes=10, in_chans=1, image_size=8)
    short_recipe = replace(recipe_by_name("smoke", 128), iterations=STEPS, batch_size=32)
    experiment = Experiment(
        network, data, short_recipe, precision=precision, memory_format=memory_format_for(precision)
    )
    training = Trainer(experiment, splits, context)
    began = time.perf_counter()
    with Run.open_or_create(folder, experiment) as run:
        for _ in train_run(run, training, stop=lambda: training.state.iteration == until):
            pass
    speed = STEPS / (time.perf_counter() - began)
    weights = folder / "weights.safetensors"
    return (_sha256(weights) if weights.exists() else "", speed)


def _sha256(path: Path) -> str:
    tensors, _ = read_tensors(path)  # checks that the file can be read back
    return hashlib.sha256(path.read_bytes()).hexdigest() if tensors else ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides the runs' log messages."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
