"""The comparison: every candidate is built in a process of its own, and then they step in turns."""

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

from kilolayer.bench.candidate import QUANTISED_VARIANTS, Candidate, check_candidate
from kilolayer.bench.equivalence import work_differences
from kilolayer.bench.machine import fastest_dtype
from kilolayer.errors import InputError
from kilolayer.system.json_text import parse_json, value_text
from kilolayer.training.device import check_threads

FLOPS_PER_MULTIPLY_ADD = {"inference": 2, "training": 6}
"""Training computes the forward pass, and the gradients of every layer's input and weights."""

BATCH_KEYS = ("image_side", "channels", "classes")
"""What the first candidate determines about the batch that all receive."""


@dataclass(frozen=True)
class BenchConfiguration:
    """What is the same for all candidates: batch size, threads, device, training or inference, repeats.

    `image_size` is the side of the images; without it they have the size that the first candidate is for. The
    first `warm_up` steps of every candidate are not counted.

    Raises `InputError` for numbers out of range.

    >>> BenchConfiguration(batch_size=8, infer=True).work
    'inference'
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
        """Which seconds count: CPU seconds on one CPU thread, which other processes cannot inflate."""
        return "cpu_seconds" if self.threads == 1 and self.device == "cpu" else "seconds"


def compare_candidates(
    candidates: Sequence[Candidate],
    configuration: BenchConfiguration,
    report_progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Runs all candidates in turns; returns their figures, the machine's ceilings and differences in work.

    The result can be written as JSON. Speeds are images per second, memory is in bytes, energy in joules per
    image.

    Raises `InputError` if a candidate does not support this work, cannot be built, or its process dies.
    """
    for candidate in candidates:
        check_candidate(candidate, infer=configuration.infer)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        device_options = {"device": configuration.device, "threads": configuration.threads}
        report_progress("measuring the machine's ceilings")
        with _CandidateProcess(configuration, "ceilings") as process:
            ceilings = process.ask("ceilings", **device_options)
            environment = process.ask("environment", **device_options, precision="fp32")
            machine = process.ask("machine")
        processes: list[_CandidateProcess] = []
        facts: list[dict[str, Any]] = []
        weights = str(Path(folder) / "weights") if len(candidates) > 1 else ""
        for candidate in candidates:
            report_progress(f"building {candidate.name}")
            process = stack.enter_context(_CandidateProcess(configuration, candidate.name))
            first = (
                {"name": candidates[0].name} | {key: facts[0][key] for key in BATCH_KEYS} if facts else None
            )
            facts.append(_build_in_process(process, candidate, configuration, weights, first))
            processes.append(process)
        samples = _take_turns(processes, configuration, report_progress)
        rows = [
            _row(
                candidate, candidate_facts, candidate_samples, process.ask("memory"), configuration, ceilings
            )
            for candidate, candidate_facts, candidate_samples, process in zip(
                candidates, facts, samples, processes, strict=True
            )
        ]
    return {
        "work": configuration.work,
        "conditions": asdict(configuration)
        | {
            "clock": configuration.clock,
            "image_size": facts[0]["image_side"],
            "channels": facts[0]["channels"],
        },
        "ceilings": ceilings,
        "fastest_arithmetic": fastest_dtype(ceilings)[0],
        "machine": machine,
        "contestants": rows,
        "differences": work_differences(rows),
        "environment": environment,
    }


def _build_in_process(
    process: _CandidateProcess,
    candidate: Candidate,
    configuration: BenchConfiguration,
    weights: str,
    first: dict[str, Any] | None,
) -> dict[str, Any]:
    return process.ask(
        "build",
        candidate=asdict(candidate),
        batch_size=configuration.batch_size,
        threads=configuration.threads,
        device=configuration.device,
        infer=configuration.infer,
        weights=weights,
        image_size=configuration.image_size,
        first=first,
    )


def _take_turns(
    processes: Sequence[_CandidateProcess],
    configuration: BenchConfiguration,
    report_progress: Callable[[str], None],
) -> list[list[dict[str, Any]]]:
    samples: list[list[dict[str, Any]]] = [[] for _ in processes]
    for turn in range(configuration.warm_up + configuration.repeats):
        warm = turn < configuration.warm_up
        turn_name = f"warm-up {turn + 1}" if warm else f"repeat {turn - configuration.warm_up + 1}"
        for process, process_samples in zip(processes, samples, strict=True):
            report_progress(
                f"{turn_name} of {configuration.warm_up if warm else configuration.repeats}: {process.name}"
            )
            sample = process.ask("step")
            if not warm:
                process_samples.append(sample)
    return samples


def _row(
    candidate: Candidate,
    facts: dict[str, Any],
    samples: list[dict[str, Any]],
    memory: dict[str, Any],
    configuration: BenchConfiguration,
    ceilings: dict[str, float],
) -> dict[str, Any]:
    undisturbed = [sample for sample in samples if not sample["disturbed"]]
    # CPU seconds do not suffer from other processes, so disturbed repeats count too.
    counted = samples if configuration.clock == "cpu_seconds" or not undisturbed else undisturbed
    seconds = [sample[configuration.clock] for sample in counted]
    median = statistics.median(seconds)
    speed = configuration.batch_size / median
    joules = [sample["joules"] for sample in counted if sample["joules"] is not None]
    flops = speed * facts["multiply_adds"] * FLOPS_PER_MULTIPLY_ADD[configuration.work]
    return {
        "name": candidate.name,
        "images_per_second": speed,
        "seconds": median,
        "seconds_least": min(seconds),
        "seconds_most": max(seconds),
        "flops": flops,
        "roofline_share": flops / fastest_dtype(ceilings, int8=candidate.variant in QUANTISED_VARIANTS)[1],
        **memory,
        "joules_per_image": statistics.median(joules) / configuration.batch_size if joules else None,
        "repeats": len(samples),
        "disturbed": len(samples) - len(undisturbed),
        "trusted": bool(undisturbed) or configuration.clock == "cpu_seconds",
        "source": candidate.source,
        "variant": candidate.variant,
        **facts,
    }


class _CandidateProcess:
    """A worker process at the other end of a pipe; it ends when the pipe does."""

    def __init__(self, configuration: BenchConfiguration, name: str) -> None:
        from kilolayer.sweep.processes import block_sigint

        self.name = name
        threads = str(configuration.threads)
        with block_sigint():
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kilolayer.bench.candidate_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                env={**os.environ, "OMP_NUM_THREADS": threads},
            )

    def __enter__(self) -> _CandidateProcess:
        return self

    def __exit__(self, *raised: object) -> None:
        self.process.kill()
        self.process.communicate()

    def ask(self, do: str, **words: Any) -> dict[str, Any]:
        """The worker's answer. Raises `InputError` if it refuses or its process has ended."""
        assert self.process.stdin is not None and self.process.stdout is not None  # noqa: S101, PT018
        try:
            self.process.stdin.write(f"{json.dumps({'do': do, **words})}\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise InputError(
                f"{self.name}: its process ended with status {self.process.wait()} during {do!r}"
            )
        answer = parse_json(line, self.name, allow_nan=True)
        match answer:
            case {"refused": str(refusal)}:
                raise InputError(refusal)
            case dict():
                return answer
        raise InputError(f"{self.name}: its process answered {value_text(answer)}; allowed: an object")
