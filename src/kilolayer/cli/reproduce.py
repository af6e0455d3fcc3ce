"""kilolayer reproduce: trains the runs of a paper's table and compares the results with the paper."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from kilolayer.cli.option_types import (
    NO_DEFAULT_SHOWN,
    Device,
    KernelsChoice,
    OptionalFolder,
    OptionalText,
    OptionalWhole,
    OwnUnit,
    PrecisionChoice,
    Switch,
    choice_option,
)
from kilolayer.cli.options import RECIPE_NAMES
from kilolayer.errors import InputError

if TYPE_CHECKING:
    from kilolayer.sweep.reproduction import Reproduction

Patterns = Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT...", help_behavior_hint="")]
OwnRows = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=FILE.py:UNIT...", help_behavior_hint="")]


@dataclass(frozen=True)
class ReproduceOptions:
    """Reproduce tables of the papers, run by run, with statistics over seeds.

    Without a table's name it lists the tables. After a stop --resume DIR continues the
    sweep: finished runs are kept, the others continue from their checkpoints.
    """

    tables: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[TABLE...]", help_behavior_hint="")
    ] = ()
    """Tables, such as p2-table-1."""
    list: Switch = False
    """List tables, runs and cost; with --resume or --out, the state of the runs."""
    json: Switch = False
    """Print the list, or the findings at the end, as JSON."""
    dry_run: Switch = False
    """Show the runs and their cost; start and write nothing."""
    rows: Patterns = ()
    """Only rows whose name contains one of these, or matches it as a shell pattern."""
    columns: Patterns = ()
    """Only columns whose name contains one of these, or matches it as a shell pattern."""
    row: OwnRows = ()
    """A row of your own beside the paper's: a unit, shortcut, branch or arrangement of yours in the table's
    network, under this name. The file's code runs."""
    seeds: OptionalText = None
    """How many seeds (5: seeds 0 to 4), or which (0,3,7); otherwise as many as the paper ran."""
    data: OptionalText = None
    """The path of the images, or other images (see: kilolayer train --help); otherwise each table's own."""
    data_folder: OptionalFolder = None
    """Where {DOWNLOADS} lie; otherwise $KILOLAYER_DATA or ~/.cache/kilolayer."""
    download: Switch = False
    """Fetch {DOWNLOAD} where it is missing."""
    recipe: Annotated[str | None, choice_option(*RECIPE_NAMES), NO_DEFAULT_SHOWN] = None
    """A recipe for all cells; otherwise each cell's own."""
    scale: Annotated[Literal["full", "proxy", "smoke"], choice_option("full", "proxy", "smoke")] = "full"
    """full: the paper's size. proxy: a size for a CPU, with 56 layers for 110, 16 × 16 pixels, 10,000 images
    and 624 iterations. smoke: seconds a run, to check that it works."""
    depths: OptionalText = None
    """Depths that replace the paper's, such as 110=56,164=83."""
    image_size: OptionalWhole = None
    """Pixels a side."""
    subset: OptionalWhole = None
    """Training images."""
    iterations: OptionalWhole = None
    """Training iterations; the schedule keeps its proportions."""
    batch_size: OptionalWhole = None
    """Images per step."""
    evaluate_every: OptionalWhole = None
    """Epochs between two points of the curves."""
    settings: Annotated[Literal["all", "first"], choice_option("all", "first")] = "all"
    """For a cell that stands for several settings (b_g = 0 ... -5): run all, or the first."""
    select: Switch = False
    """Search b_g on held-out training images, in the cells for which the paper searched it."""
    workers: OptionalWhole = None
    """Runs at a time; otherwise one per GPU, or per core."""
    cores: OptionalWhole = None
    """Cores of each run; otherwise an equal share, and 1 on a cluster. Results' last digits depend on it."""
    engine: Annotated[Literal["pool", "ray"], choice_option("pool", "ray")] = "pool"
    """pool: processes on this machine. ray: a Ray cluster."""
    address: OptionalText = None
    """HOST:PORT of the Ray cluster; otherwise this machine's cluster, or a new one for the sweep."""
    device: Device = "auto"
    """auto, cpu, cuda."""
    precision: PrecisionChoice = "auto"
    """auto is bf16 where the hardware has it, else fp32."""
    kernels: KernelsChoice = "auto"
    """fused computes whole residual units at once in bf16; auto is chosen as in train."""
    out: OptionalFolder = None
    """The sweep's folder; otherwise runs/TABLE-XXXX."""
    resume: OptionalFolder = None
    """Continue the sweep in this folder, with its settings."""
    unit: OwnUnit = None
    """With --resume, or --list --out: FILE.py that defines the rows of your own. Its code runs."""


ALLOWED_WITH_RESUME = (
    "resume", "list", "json", "dry_run", "select", "download", "workers", "cores", "engine",
    "address", "device", "unit",
)  # fmt: skip


def execute(options: ReproduceOptions) -> int:
    """Lists tables or runs, or runs the sweep and reports it. Returns the exit status."""
    from kilolayer.cli.reproduction_request import check_reproduction_data, engine_from_options
    from kilolayer.cli.reproduction_run import run_reproduction, warn_of_cost
    from kilolayer.report import reproduction_list
    from kilolayer.sweep.reproduction import check_free, save_request

    if options.resume is None and not options.tables and not (options.list and options.out):
        return reproduction_list.print_paper_tables(options.json)
    reproduction = _open_or_plan(options)
    if options.list or options.dry_run:
        return reproduction_list.print_reproduction_runs(reproduction, options.json)
    check_free(reproduction)
    check_reproduction_data(reproduction, options.download)
    if options.select:
        from kilolayer.cli.select_bias import run_bias_search
        from kilolayer.sweep.bias_search import bias_searches

        bias_searches(reproduction)
    chosen = engine_from_options(options)
    save_request(reproduction)
    if options.engine == "pool":
        warn_of_cost(reproduction)
    if options.select:
        return run_bias_search(reproduction, chosen, options.json)
    return run_reproduction(reproduction, chosen, options.json)


def _open_or_plan(options: ReproduceOptions) -> Reproduction:
    """The sweep that the options continue, inspect, or begin."""
    from kilolayer.cli.reproduction_request import request_from_options
    from kilolayer.sweep.reproduction import open_sweep, plan_reproduction

    if options.resume is not None:
        _reject_changes(options)
        return open_sweep(options.resume)
    if not options.tables:
        return open_sweep(str(options.out))
    if options.unit is not None:
        raise InputError("--unit is for --resume; a row of your own is --row NAME=FILE.py:UNIT")
    return plan_reproduction(
        request_from_options(options), Path(options.out or f"runs/{options.tables[0]}-{secrets.token_hex(2)}")
    )


def _reject_changes(options: ReproduceOptions) -> None:
    changed = [field.name for field in fields(options) if getattr(options, field.name) != field.default]
    refused = [name for name in changed if name not in ALLOWED_WITH_RESUME]
    if refused:
        flags = ", ".join("TABLE" if name == "tables" else f"--{name.replace('_', '-')}" for name in refused)
        raise InputError(f"--resume takes everything from the sweep's sweep.json; leave out {flags}")
