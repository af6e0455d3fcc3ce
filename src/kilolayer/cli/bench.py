"""kilolayer bench: speed and memory of networks side by side, and their share of this machine's peak."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from kilolayer.cli.option_types import Device, OptionalFile, OptionalWhole, Switch, Text, Whole, Wholes
from kilolayer.errors import InputError
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
        print("kilolayer: stopped before the measurement was complete; nothing was written", file=sys.stderr)
        return STOPPED_STATUS
    if options.json:
        print(json.dumps(results["contestants"], indent=2), flush=True)
    else:
        if not options.depths:  # networks of several depths do not compete
            _say_finding(results)
        _print(results)
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


def _print(results: dict[str, Any]) -> None:
    from kilolayer.report.document import Table
    from kilolayer.system.terminal import print_table, print_text

    conditions, ceilings = results["conditions"], results["ceilings"]
    threads = f"{conditions['threads']} thread" + ("s" if conditions["threads"] > 1 else "")
    side = conditions["image_size"]
    images = f"{conditions['batch_size']} images of {conditions['channels']}×{side}×{side}"
    print_text(f"{results['work']}, batches of {images}, {threads}, {conditions['device']}")
    products = ", ".join(
        f"{name} {ceilings[f'{name}_flops'] / 1e9:,.0f} GFLOP/s"
        for name in ("bf16", "fp16", "fp32", "int8")
        if f"{name}_flops" in ceilings
    )
    print_text(f"{results['machine']['name']} ({' '.join(results['machine']['instructions'])})")
    print_text(f"this machine at its best: {products}, copy {ceilings['copy_bytes'] / 1e9:.1f} GB/s")
    print_text(f"the ceiling is {results['fastest_arithmetic']}'s\n")
    header = ("network", "images/s", "least–most", "peak MB", "of ceiling", "J/image", "disturbed")
    rows = ((row["name"], *_cells(row, conditions["batch_size"])) for row in results["contestants"])
    print_table(Table("", header, tuple(rows)), drop=("J/image", "of ceiling", "least–most"))
    for line in results["differences"]:
        print_text(f"the work differs: {line}")
    if not all(row["trusted"] for row in results["contestants"]):
        print_text("other programs disturbed every repeat, so do not trust these figures")


def _say_finding(results: dict[str, Any]) -> None:
    from kilolayer.system.terminal import print_text

    print_text(f"{_finding(results)}\n")


def _finding(results: dict[str, Any]) -> str:
    """Which network is the fastest, by how much, and whether the repeats confirm it."""
    rows = sorted(results["contestants"], key=lambda row: -row["images_per_second"])
    first, share = rows[0], f"{100 * rows[0]['roofline_share']:.0f} % of what this machine could do"
    fastest = f"{first['name']}: {first['images_per_second']:,.4g} images/s in {results['work']}, {share}"
    if len(rows) == 1:
        return f"{fastest}; no other network was measured."
    second = rows[1]
    factor = first["images_per_second"] / second["images_per_second"]
    apart = first["seconds_most"] < second["seconds_least"]
    sure = "" if apart else "; their repeats overlap, so this does not decide which is faster"
    return f"{fastest}, {factor:.3g} times {second['name']}, the next{sure}."


def _cells(row: dict[str, Any], batch_size: int) -> tuple[str, ...]:
    slowest, fastest = batch_size / row["seconds_most"], batch_size / row["seconds_least"]
    joules = "" if row["joules_per_image"] is None else f"{row['joules_per_image']:.3g}"
    return (
        f"{row['images_per_second']:,.4g}",
        f"{slowest:,.4g}–{fastest:,.4g}",
        f"{row['peak_memory_bytes'] / 1e6:,.0f}",
        f"{100 * row['roofline_share']:.0f} %",
        joules,
        f"{row['disturbed']} of {row['repeats']}",
    )
