"""What one waits for beside the training steps: start, build, first step, data, checkpoint, evaluation.

    python benchmarks/startup.py [--out FILE]

Processor seconds of one thread, medians of five. torchvision's augmentation of the same batch stands beside
ours where it can be imported. Writes results/startup.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from typing import Any

import torch

from kilolayer import durable
from kilolayer.data import Augmentation, Images, batch, measure
from kilolayer.networks import build, describe
from kilolayer.runs import checkpoints
from kilolayer.runs.environment import environment
from kilolayer.training import Place, evaluate

HERE = Place(torch.device("cpu"))
DEEP = "preact_resnet1001_cifar"


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    found = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return statistics.median(found)


def program(*words: str) -> float:
    """Processor seconds of a whole `kilolayer …`."""

    return statistics.median(program_once(*words) for _ in range(3))


def program_once(*words: str) -> float:
    before = getrusage(RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "kilolayer", *words], check=True, capture_output=True)  # noqa: S603
    after = getrusage(RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def pictures(count: int = 10_000) -> Images:
    source = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=source)
    return Images(pixels, torch.randint(0, 10, (count,), generator=source))


def augmentation(images: Images) -> dict[str, float | None]:
    """Images a second through crop, flip and normalisation, in batches of 128."""
    statistic = measure(images, "channel")
    ours = 128 / seconds(lambda: batch(images, statistic, Augmentation(), 0, 0, range(128)), 50)
    return {"images_per_second": ours, "torchvision_images_per_second": _torchvision(images)}


def _torchvision(images: Images) -> float | None:
    try:
        from torchvision.transforms import v2
    except (ImportError, RuntimeError):
        return None
    chain = v2.Compose([
        v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
    ])  # fmt: skip
    return 128 / seconds(lambda: torch.stack([chain(image) for image in images.pixels[:128]]), 5)


def checkpoint(folder: Path) -> dict[str, float]:
    tensors = {f"model.{key}": value for key, value in build(describe(DEEP)).state_dict().items()}
    began = time.perf_counter()
    checkpoints.write(folder, tensors, {"iteration": 1, "epochs_closed": 0}, b"")
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {"wall_seconds": time.perf_counter() - began, "bytes": float(size)}


def evaluation(images: Images) -> float:
    model = build(describe("preact_resnet110_cifar"))
    some, statistic = images[:512], measure(images, "channel")
    return 512 / seconds(lambda: evaluate(model, some, statistic, place=HERE, num_classes=10), 3)


def found() -> dict[str, Any]:
    images = pictures()
    with tempfile.TemporaryDirectory() as folder:
        first = [
            "--iterations",
            "1",
            "--subset",
            "64",
            "--batch-size",
            "16",
            "--threads",
            "1",
            "--no-tensorboard",
        ]
        return {
            "help_seconds": program("--help"),
            "train_help_seconds": program("train", "--help"),
            "one_step_of_20_layers_and_out_seconds": program_once("train", *first, "--out", f"{folder}/run"),
            "build_1001_layers_seconds": seconds(lambda: build(describe(DEEP))),
            "describe_1001_layers_seconds": seconds(lambda: describe(DEEP).parameters),
            "augmentation": augmentation(images),
            "checkpoint_1001_layers": checkpoint(Path(folder)),
            "evaluation_110_layers_images_per_second": evaluation(images),
        }


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--out", type=Path, default=Path("results/startup.json"))
    asked = options.parse_args()
    torch.set_num_threads(1)
    record = {"environment": environment(HERE, "fp32"), **found()}
    durable.write(asked.out, json.dumps(record, indent=1).encode())
    print(json.dumps(record, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
