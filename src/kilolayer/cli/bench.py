"""kilolayer bench: speed and memory of networks side by side, and their share of this machine's peak."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from kilolayer.cli.option_types import Device, OptionalFile, OptionalWhole, Switch, Text, Whole, Wholes
from kilolayer.errors import InputError
from kilolayer.system.printer import print_json, print_line
from kilolayer.system.stopping import STOPPED_STATUS

BenchModels = Annotated[
    tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="MODEL...", help_behavior_hint="")
]


@dataclass(frozen=True)
class BenchOptions:
    """Measure training or inference side by side, in turns, each in its own process.

    MODEL is a network's name, run the fastest way; or NAME@plain, @eager (bf16), @balanced, @2GB.

    Others: timm:NAME, torchvision:NAME, pytorchcv:NAME, FILE.py:FUNCTION.

    With one thread we count the process's own CPU seconds; with more, only repeats without other load.
    """

    models: BenchModels = ()
    """Our networks, each with an optional @VARIANT."""
    against: tuple[str, ...] = ()
    """Networks to compare with, from a package or a file. They run unchanged unless @eager is added."""
    infer: Switch = False
    """Inference in place of training."""
    batch_size: Whole = 64
    """Images per step, the same for all networks."""
    image_size: OptionalWhole = None
    """Side of the images, the same for all networks; otherwise the first network's own."""
    threads: Whole = 1
    """CPU threads, the same for all networks."""
    repeats: Whole = 5
    """Measured steps of each network, after two warm-up steps. The table shows their median."""
    depths: Wholes = ()
    """Measure every MODEL at these depths instead of its own, one depth after another."""
    activation_memory: Text = "fastest"
    """How MODELs without @ train: fastest, balanced, smallest, or bytes as 2GB."""
    device: Device = "cpu"
    """cpu, cuda or cuda:1."""
    json: Switch = False
    """Print JSON."""
    out: OptionalFile = None
    """Write JSON, with the environment, into this file."""
    plot: OptionalFile = None
    """Draw the roofline into this SVG file."""


def execute(options: BenchOptions) -> int:
    """Measures the networks, prints the result, and writes the files that the options name."""
    try:
        results = _run_bench(options)
    except KeyboardInterrupt:
        print_line("kilolayer: stopped before the measurement was complete; nothing was written", stderr=True)
        return STOPPED_STATUS
    if options.json:
        print_json(results["contestants"])
    else:
        from kilolayer.report.bench_text import print_bench

        # Networks of several depths do not compete.
        print_bench(results, with_finding=not options.depths)
    _write(options, results)
    return 0


def _run_bench(options: BenchOptions) -> dict[str, Any]:
    races = [_names(options, depth) for depth in options.depths or (None,)]
    from kilolayer.bench import BenchConfiguration, compare_candidates, parse_candidate
    from kilolayer.report.extra import check_installed
    from kilolayer.system import durable
    from kilolayer.system.terminal import status_line

    for path in (options.out, options.plot):
        if path is not None:
            durable.check_writable(Path(path))
    if options.plot is not None:
        check_installed()
    entries = [[parse_candidate(name) for name in names] for names in races]
    if options.plot is not None and not any(candidate.is_ours for group in entries for candidate in group):
        raise InputError(
            "--plot needs one of our networks by its name: its memory traffic places the others in the plot"
        )
    conditions = BenchConfiguration(
        options.batch_size,
        options.threads,
        options.device,
        options.infer,
        options.repeats,
        image_size=options.image_size,
    )
    with status_line() as say:
        results = [compare_candidates(group, conditions, say) for group in entries]
    merged = {**results[0], "contestants": [row for candidate in results for row in candidate["contestants"]]}
    merged["differences"] = [line for candidate in results for line in candidate["differences"]]
    return merged


def _names(options: BenchOptions, depth: int | None) -> list[str]:
    from kilolayer.bench.candidate import candidate_at_depth
    from kilolayer.training.memory_budget import parse_memory

    if not options.models:
        raise InputError("no network given: kilolayer bench MODEL... (see: kilolayer models)")
    parse_memory(options.activation_memory)
    plain = options.activation_memory == "fastest"
    ours = [
        name if "@" in name or plain else f"{name}@{options.activation_memory}" for name in options.models
    ]
    if depth is None:
        return [*ours, *options.against]
    if options.against:
        raise InputError("--depths and --against exclude each other: a peer has its own depth")
    return [candidate_at_depth(name, depth) for name in ours]


def _write(options: BenchOptions, results: dict[str, Any]) -> None:
    from kilolayer.system import durable

    if options.out is not None:
        from kilolayer.runs.start_environment import current_command

        results["environment"]["command"] = current_command()
        durable.write_file(Path(options.out), json.dumps(results, indent=1, ensure_ascii=False).encode())
    if options.plot is not None:
        from kilolayer.report.roofline import roofline_svg

        durable.write_file(Path(options.plot), roofline_svg(results, f"Roofline, {results['work']}").encode())
