"""What saving costs a run of ResNet-110 on CIFAR-sized images.

    python benchmarks/saving.py [STEPS SAVES] [--out FILE]

Measures a training step (batch 128, 32×32 pixels) and a whole save (the look for what is not finite, tensors
to bytes, SHA-256, two files and their fsyncs, a line of metrics and one of timing). A run saves at the end of
every epoch of 351 steps, and at least every 300 s; the share is that of its time. Writes results/saving.json.
"""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from sweeps import arguments, record

from kilolayer.data import Data, Images, Splits
from kilolayer.networks import describe
from kilolayer.runs import Run
from kilolayer.runs.recorder import _resume, trainer_environment
from kilolayer.training import Experiment, Trainer, distributed_context, recipe_by_name

EPOCH = 351
INTERVAL = 300.0
BATCH = 128


def training(steps: int, where: Any) -> Trainer:
    """ResNet-110 on noise; with a validation split, so that the best weights are saved too."""
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> Images:
        pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return Images(pixels, torch.arange(count) % 10)

    held_out = images(64)
    splits = Splits("noise", tuple("0123456789"), images(BATCH * 2), held_out, lambda: held_out)
    chosen = recipe_by_name("paper", 45_000).with_iterations(10 * steps)
    return Trainer(Experiment(describe("resnet110_cifar"), Data("cifar10"), chosen), splits, where)


def measure(steps: int, saves: int) -> dict[str, Any]:
    with distributed_context() as where, tempfile.TemporaryDirectory() as folder, ExitStack() as resources:
        train = training(steps, where)
        times: list[float] = []
        for step in train.steps():
            times.append(time.perf_counter())
            if step.iteration > steps:
                break
        # A step that closes an epoch is followed by an evaluation.
        step_seconds = median(b - a for a, b in pairwise(times))
        train.state.best_weights = {key: value.clone() for key, value in train.model.state_dict().items()}
        found = list[float]()
        run = resources.enter_context(Run.open_or_create(Path(folder) / "run", train.experiment))
        recording = _resume(run, train, trainer_environment(train))
        for number in range(saves):
            train.state.iteration += 1
            began = time.perf_counter()
            recording.append({"epoch": number}, {"epoch": number})
            recording.save()
            found.append(time.perf_counter() - began)
        size = max(path.stat().st_size for path in run.file("checkpoints").iterdir())
    every = min(INTERVAL, EPOCH * step_seconds)
    return {
        "device": str(where.device),
        "threads": torch.get_num_threads(),
        "step_seconds": step_seconds,
        "save_seconds": {"median": median(found), "most": max(found)},
        "state_bytes": size,
        "seconds_between_saves": every,
        "share_percent": 100 * median(found) / every,
        "steps_per_second_at_which_it_would_be_2_percent": EPOCH * 0.02 / median(found),
    }


def main() -> int:
    (steps, saves), path = arguments((6, 20), "saving.json")
    found = measure(steps, saves)
    record(path, found)
    save, between = found["save_seconds"]["median"], found["seconds_between_saves"]
    print(f"a save takes {save:.3f} s, once in {between:.0f} s: {found['share_percent']:.3f} % of the time")
    return 0 if found["share_percent"] < 2 else 1


if __name__ == "__main__":
    sys.exit(main())
