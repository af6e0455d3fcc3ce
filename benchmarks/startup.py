"""The waiting times beside the steps: compiling, start, build, first step, data, checkpoint, evaluation.

    python benchmarks/startup.py [--out FILE]

The figures are medians of CPU seconds on one thread; the kernels are compiled once, on all cores.
Augmentation is random crop, flip and normalisation of 32-pixel images, a whole epoch in batches of 128. If
torchvision can be imported (it needs the PyTorch build that it is for), it is measured too: as scripts use
it, image by image through a DataLoader, and v2 on whole batches, which gives all images of a batch the same
crop and flip. Writes results/startup.json.
"""

from __future__ import annotations

import argparse
import json
import os
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

from kilolayer.bench.machine import describe_machine
from kilolayer.data import Augmentation, Images, batch_at, measure_statistics
from kilolayer.kernels.folding import fold
from kilolayer.networks import build, describe
from kilolayer.runs import checkpoints
from kilolayer.runs.start_environment import environment_record
from kilolayer.system import durable
from kilolayer.system.opened_folder import open_folder
from kilolayer.training import DistributedContext, evaluate
from kilolayer.training.experiment import EvaluationMode, Precision

HERE = DistributedContext(torch.device("cpu"))
DEEP = "preact_resnet1001_cifar"


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return statistics.median(times)


def program(*words: str) -> float:
    """CPU seconds of a whole `kilolayer …`."""

    return statistics.median(program_once(*words) for _ in range(3))


def program_once(*words: str) -> float:
    before = getrusage(RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "kilolayer", *words], check=True, capture_output=True)  # noqa: S603
    after = getrusage(RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


COMPILE = """
import os, time
from kilolayer.kernels import compute_dtype
compute_dtype.mul_dtype()
wall, before = time.perf_counter(), os.times()
compute_dtype.load_unit_library()
print(time.perf_counter() - wall, os.times().children_user - before.children_user)
"""


def compiling() -> dict[str, float]:
    """Compiling the kernels at their first use, on all cores."""
    with tempfile.TemporaryDirectory() as cache:
        process = subprocess.run(  # noqa: S603
            [sys.executable, "-c", COMPILE],
            env=os.environ | {"XDG_CACHE_HOME": cache},
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    wall, processor = map(float, process.stdout.split())
    return {"wall_seconds": wall, "processor_seconds": processor}


def pictures(count: int = 10_000) -> Images:
    source = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=source)
    return Images(pixels, torch.randint(0, 10, (count,), generator=source))


def augmentation(images: Images) -> dict[str, float | None]:
    """Images per second, with all random decisions; every repeat is a new epoch."""
    statistic, epochs = measure_statistics(images, "channel"), iter(range(1_000))
    count = len(images) // 128 * 128

    def ours() -> None:
        epoch = next(epochs)
        for start in range(0, count, 128):
            batch_at(images, statistic, Augmentation(), 0, epoch, range(start, start + 128))

    return {"images_per_second": count / seconds(ours), **_torchvision(images, count)}


def _torchvision(images: Images, count: int) -> dict[str, float | None]:
    try:
        from torchvision.transforms import v2
    except (ImportError, RuntimeError):
        return dict.fromkeys(("torchvision_loader_images_per_second", "torchvision_batch_images_per_second"))
    chain = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
    floats = [v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))]
    batch_chain, picture_chain = (
        v2.Compose([*chain, *floats]),
        v2.Compose([v2.PILToTensor(), *chain, *floats]),
    )
    pictures = [(v2.functional.to_pil_image(image), 0) for image in images.pixels[:count]]

    class Pictures(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            image, label = pictures[index]
            return picture_chain(image), label

    loader = torch.utils.data.DataLoader(Pictures(), 128, shuffle=True)
    return {
        "torchvision_loader_images_per_second": count / seconds(lambda: list(loader), 3),
        "torchvision_batch_images_per_second": count
        / seconds(lambda: [batch_chain(part) for part in torch.split(images.pixels[:count], 128)], 3),
    }


def checkpoint(folder: Path) -> dict[str, float]:
    tensors = {f"model.{key}": value for key, value in build(describe(DEEP)).state_dict().items()}
    began = time.perf_counter()
    with open_folder(folder) as opened:
        owner = checkpoints.Owner(None, "")
        checkpoints.save_checkpoint(opened, tensors, {"iteration": 1, "epochs_closed": 0}, b"", owner)
    size = sum(path.stat().st_size for path in (folder / checkpoints.FOLDER).iterdir())
    return {"wall_seconds": time.perf_counter() - began, "bytes": float(size)}


def evaluation(images: Images) -> dict[str, float]:
    """Images per second through 110 layers, and the seconds of folding, which they include."""
    model = build(describe("preact_resnet110_cifar")).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    deep = build(describe(DEEP))
    calibration, statistic = images[:1024], measure_statistics(images, "channel")

    def of(precision: Precision, way: EvaluationMode) -> float:
        return 1024 / seconds(
            lambda: evaluate(
                model, calibration, statistic, context=HERE, num_classes=10, precision=precision,
                channels_last=precision == "bf16", evaluation=way,
            ), 3)  # fmt: skip

    return {
        "fp32_plain_images_per_second": of("fp32", "plain"),
        "bf16_plain_images_per_second": of("bf16", "plain"),
        "bf16_folded_images_per_second": of("bf16", "folded"),
        "fold_110_layers_seconds": seconds(lambda: fold(model, torch.bfloat16)),
        "fold_1001_layers_seconds": seconds(lambda: fold(deep, torch.bfloat16), 3),
    }


def found() -> dict[str, Any]:
    images = pictures()
    with tempfile.TemporaryDirectory() as folder:
        small = ("--iterations", "1", "--subset", "64", "--batch-size", "16", "--threads", "1")
        return {
            "compiling_kernels": compiling(),
            "help_seconds": program("--help"),
            "train_help_seconds": program("train", "--help"),
            "one_step_of_20_layers_and_out_seconds": program_once(
                "train", *small, "--no-tensorboard", "--out", f"{folder}/run"
            ),
            "build_1001_layers_seconds": seconds(lambda: build(describe(DEEP))),
            "describe_1001_layers_seconds": seconds(lambda: describe(DEEP).parameters),
            "augmentation": augmentation(images),
            "checkpoint_1001_layers": checkpoint(Path(folder)),
            "evaluation_110_layers": evaluation(images),
        }


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--out", type=Path, default=Path("results/startup.json"))
    asked = options.parse_args()
    torch.set_num_threads(1)
    record = {"environment": environment_record(HERE, "fp32"), "machine": describe_machine(), **found()}
    durable.write_file(asked.out, json.dumps(record, indent=1).encode())
    print(json.dumps(record, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
