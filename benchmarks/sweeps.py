"""What the benchmarks of sweeps share: thirty tiny runs, their figures, and the record of a measurement."""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import kilolayer
from kilolayer.data.config import Data
from kilolayer.networks.families import cifar
from kilolayer.sweep import RunSpec
from kilolayer.training import Experiment, recipe_by_name, recipe_for_data
from kilolayer.units import BASIC, FULL_PREACT, ORIGINAL

TIMING = ("images_per_second", "seconds", "train_seconds", "peak_memory_bytes")
"""What the clock and the operating system decide."""


def tiny_runs(folder: Path, count: int, iterations: int = 120) -> list[RunSpec]:
    """Small networks on the embedded digits, with a checkpoint after every fourth iteration."""
    return [RunSpec(folder / f"run-{number:02d}", _experiment(number, iterations)) for number in range(count)]


def _experiment(number: int, iterations: int) -> Experiment:
    depth, unit = (8, 14, 20)[number % 3], (ORIGINAL, FULL_PREACT)[number // 3 % 2]
    network = cifar(depth, replace(BASIC, arrangement=unit), in_chans=1, image_size=8)
    data = Data("digits", subset=128)
    chosen = replace(
        recipe_for_data(recipe_by_name("short", 128), data).with_iterations(iterations), batch_size=32
    )
    return Experiment(network, data, chosen, seed=number)


def figures(one: RunSpec) -> dict[str, Any]:
    """A run's weights by their SHA-256, its metrics and its result, without what the clock decides."""
    metrics = (one.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    result = json.loads((one.path / "result.json").read_text(encoding="utf-8"))
    return {
        "weights_sha256": hashlib.sha256((one.path / "weights.safetensors").read_bytes()).hexdigest(),
        "metrics": [_timeless(json.loads(line)) for line in metrics],
        "result": _timeless(result),
    }


def _timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in TIMING}


def starts(one: RunSpec) -> int:
    """How often a worker began or went on with a run."""
    path = one.path / "environment.json"
    return len(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else 0


def compared(ours: Iterable[RunSpec], undisturbed: Iterable[RunSpec]) -> list[dict[str, Any]]:
    """Every run beside the undisturbed one of the same name."""
    return [
        {
            "run": one.key,
            "starts": starts(one),
            "weights_sha256": figures(one)["weights_sha256"],
            "identical": figures(one) == figures(other),
        }
        for one, other in zip(ours, undisturbed, strict=True)
    ]


def arguments(numbers: Sequence[int], name: str) -> tuple[list[int], Path]:
    """The numbers of the command line, or these; and where to write, otherwise results/`name`."""
    words = argparse.ArgumentParser()
    words.add_argument("numbers", nargs="*", type=int)
    words.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / name)
    given = words.parse_args()
    return [*given.numbers, *numbers[len(given.numbers) :]], given.out


def record(path: Path, value: dict[str, Any]) -> None:
    """Writes a measurement with versions, machine, command and date."""
    head = {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "kilolayer": kilolayer.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(head | value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _processor() -> str:
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return found[1] if found else platform.processor()
