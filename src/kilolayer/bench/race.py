"""The contest: everyone is built in a process of its own, and then they step in turns."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kilolayer.bench.ceilings import fastest
from kilolayer.bench.checks import differences
from kilolayer.bench.contestant import QUANTISED, Contestant, check_work
from kilolayer.errors import InputError
from kilolayer.training.device import check_threads

FLOPS_OF_A_MULTIPLY_ADD = {"inference": 2, "training": 6}
"""Training computes, besides the forward pass, the gradients of every layer's input and of its weights."""

SHARED = ("image_side", "channels", "classes")
"""What the first contestant says of the batch that all are given."""


@dataclass(frozen=True)
class Conditions:
    """The same for all: images per step, threads, device, training or inference, and how many repeats.

    `image_size` is the side of the images; without it they are those that the first contestant is for.
    """

    batch_size: int = 64
    threads: int = 1
    device: str = "cpu"
    infer: bool = False
    repeats: int = 5
    warm_up: int = 2
    image_size: int | None = None

    def __post_init__(self) -> None:
        check_threads(self.threads)
        for name in ("batch_size", "repeats", "image_size"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= 65_536:
                option = name.replace("_", "-")
                raise InputError(f"--{option} is {value}; allowed: a whole number from 1 to 65536")

    @property
    def work(self) -> str:
        return "inference" if self.infer else "training"

    @property
    def clock(self) -> str:
        """Which seconds count. On one thread of a CPU others cannot take the process's own."""
        return "cpu_seconds" if self.threads == 1 and self.device == "cpu" else "seconds"


def race(
    contestants: Sequence[Contestant],
    conditions: Conditions,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Everyone's figures, the machine's ceilings, and where the work differs, as JSON can hold it.

    Raises `InputError` where a contestant does not do this work, cannot be built, or its process dies.
    """
    for one in contestants:
        check_work(one, infer=conditions.infer)
    with ExitStack() as held:
        folder = held.enter_context(tempfile.TemporaryDirectory())
        place = {"device": conditions.device, "threads": conditions.threads}
        say("measuring the machine's ceilings")
        with _Process(conditions, "ceilings") as process:
            ceilings = process.ask("ceilings", **place)
            environment = process.ask("environment", **place, precision="fp32")
            machine = process.ask("machine")
        processes: list[_Process] = []
        facts: list[dict[str, Any]] = []
        weights = str(Path(folder) / "weights") if len(contestants) > 1 else ""
        for one in contestants:
            say(f"building {one.name}")
            process = held.enter_context(_Process(conditions, one.name))
            first = {"name": contestants[0].name} | {key: facts[0][key] for key in SHARED} if facts else None
            facts.append(_built(process, one, conditions, weights, first))
            processes.append(process)
        samples = _take_turns(processes, conditions, say)
        rows = [
            _row(one, known, mine, process.ask("memory"), conditions, ceilings)
            for one, known, mine, process in zip(contestants, facts, samples, processes, strict=True)
        ]
    return {
        "work": conditions.work,
        "conditions": asdict(conditions)
        | {"clock": conditions.clock, "image_size": facts[0]["image_side"], "channels": facts[0]["channels"]},
        "ceilings": ceilings,
        "fastest_arithmetic": fastest(ceilings)[0],
        "machine": machine,
        "contestants": rows,
        "differences": differences(rows),
        "environment": environment,
    }


def _built(
    process: _Process, one: Contestant, conditions: Conditions, weights: str, first: dict[str, Any] | None
) -> dict[str, Any]:
    return process.ask(
        "build",
        contestant=asdict(one),
        batch_size=conditions.batch_size,
        threads=conditions.threads,
        device=conditions.device,
        infer=conditions.infer,
        weights=weights,
        image_size=conditions.image_size,
        first=first,
    )


def _take_turns(
    processes: Sequence[_Process], conditions: Conditions, say: Callable[[str], None]
) -> list[list[dict[str, Any]]]:
    samples: list[list[dict[str, Any]]] = [[] for _ in processes]
    for turn in range(conditions.warm_up + conditions.repeats):
        warm = turn < conditions.warm_up
        of = f"warm-up {turn + 1}" if warm else f"repeat {turn - conditions.warm_up + 1}"
        for process, mine in zip(processes, samples, strict=True):
            say(f"{of} of {conditions.warm_up if warm else conditions.repeats}: {process.name}")
            sample = process.ask("step")
            if not warm:
                mine.append(sample)
    return samples


def _row(
    one: Contestant,
    facts: dict[str, Any],
    samples: list[dict[str, Any]],
    memory: dict[str, Any],
    conditions: Conditions,
    ceilings: dict[str, float],
) -> dict[str, Any]:
    calm = [sample for sample in samples if not sample["disturbed"]]
    # On its own processor seconds a disturbed repeat is as good as another.
    counted = samples if conditions.clock == "cpu_seconds" or not calm else calm
    seconds = [sample[conditions.clock] for sample in counted]
    median = statistics.median(seconds)
    speed = conditions.batch_size / median
    joules = [sample["joules"] for sample in counted if sample["joules"] is not None]
    flops = speed * facts["multiply_adds"] * FLOPS_OF_A_MULTIPLY_ADD[conditions.work]
    return {
        "name": one.name,
        "images_per_second": speed,
        "seconds": median,
        "seconds_least": min(seconds),
        "seconds_most": max(seconds),
        "flops": flops,
        "roofline_share": flops / fastest(ceilings, int8=one.variant in QUANTISED)[1],
        **memory,
        "joules_per_image": statistics.median(joules) / conditions.batch_size if joules else None,
        "repeats": len(samples),
        "disturbed": len(samples) - len(calm),
        "trusted": bool(calm) or conditions.clock == "cpu_seconds",
        "source": one.source,
        "variant": one.variant,
        **facts,
    }


class _Process:
    """A worker at the other end of a pipe; it ends when the pipe does."""

    def __init__(self, conditions: Conditions, name: str) -> None:
        from kilolayer.sweep.pool import deaf_to_ctrl_c

        self.name = name
        threads = str(conditions.threads)
        with deaf_to_ctrl_c():
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kilolayer.bench.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                env={**os.environ, "OMP_NUM_THREADS": threads},
            )

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *raised: object) -> None:
        self.process.kill()
        self.process.communicate()

    def ask(self, do: str, **words: Any) -> dict[str, Any]:
        """Its answer. Raises `InputError` where it refuses or is no more."""
        assert self.process.stdin is not None and self.process.stdout is not None  # noqa: S101, PT018
        try:
            print(json.dumps({"do": do, **words}), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise InputError(f"{self.name}: its process ended with status {self.process.wait()} in {do!r}")
        answer: dict[str, Any] = json.loads(line)
        if "refused" in answer:
            raise InputError(answer["refused"])
        return answer
