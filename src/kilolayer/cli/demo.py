"""`kilolayer demo`: original and pre-activation networks of growing depth, side by side."""

from __future__ import annotations

import os
import secrets
import shlex
from dataclasses import dataclass
from pathlib import Path

from kilolayer.cli.option_types import Whole, Wholes, check_positive
from kilolayer.errors import InputError
from kilolayer.sweep.demo_plan import UNITS, demo_runs
from kilolayer.sweep.run_spec import check_folders

PAGES = ("report", "gradient")
"""The pages beside the runs: the report, and the page that the first of its suggested commands writes."""


@dataclass(frozen=True)
class DemoOptions:
    """Watch the central claim of "Identity Mappings in Deep Residual Networks" happen.

    It trains the original and the pre-activation unit at growing depth on handwritten digits,

    two networks at a time, and ends with a table and a report with their curves.

    After an interruption the same --out continues it.
    """

    depths: Wholes = (20, 56, 110, 218)
    """Depths to train, each of the form 6n+2."""
    iterations: Whole = 176
    """Training iterations of each network, in batches of 64."""
    seed: Whole = 0
    """Seed of the initialisation, the order of the images and the augmentation."""
    workers: Whole = 2
    """Networks that train at the same time, each on its share of the cores."""
    out: Path | None = None
    """Folder of the runs and the report; otherwise runs/demo-XXXX."""


def execute(options: DemoOptions) -> int:
    """Trains the networks while a table shows their progress, then writes the report."""
    from kilolayer.cli.sweeping import run_sweep
    from kilolayer.report.demo_report import measure_initial_state, print_demo_summary, write_demo_report
    from kilolayer.report.extra import check_installed
    from kilolayer.report.live_table import LiveTable
    from kilolayer.sweep import ProcessPool

    check_positive(options, "workers")
    check_installed()  # before minutes of training, not after them
    folder = options.out or Path("runs") / f"demo-{secrets.token_hex(2)}"
    runs = demo_runs(folder, options.depths, options.iterations, options.seed)
    check_demo_folder(folder)
    check_folders(runs.values())
    cells = {(f"{depth} layers", UNITS[name]): (run,) for (depth, name), run in runs.items()}
    rows = [f"{depth} layers" for depth in options.depths]
    live_table = LiveTable("Test error on handwritten digits", rows, list(UNITS.values()), cells)
    workers, threads = worker_shares(options.workers)
    pool = ProcessPool(workers, threads=threads, devices=("cpu",))
    if status := run_sweep(list(runs.values()), pool, live_table, demo_resume_command(options, folder)):
        return status
    initial_states = {key: measure_initial_state(run.experiment) for key, run in runs.items()}
    print_demo_summary(runs, initial_states, folder, write_demo_report(runs, initial_states, folder))
    return 0


def check_demo_folder(folder: Path) -> None:
    """Raises `InputError` where `folder` holds anything but a demo, which would be continued."""
    if not folder.exists():
        return
    names = [] if not folder.is_dir() else [path.name for path in folder.iterdir()]
    if not folder.is_dir() or any(not _ours(name) for name in names):
        raise InputError(f"{folder} holds other files; choose another --out")


def _ours(name: str) -> bool:
    unit, _, depth = name.rpartition("-")
    page = name.removeprefix(".").partition(".html")[0] in PAGES and ".html" in name
    return page or (unit in UNITS and depth.isdigit())


def worker_shares(workers: int) -> tuple[int, int]:
    """The number of workers, at most one a core, and the cores of each."""
    cores = os.cpu_count() or 1
    number = min(workers, cores)
    return number, cores // number


def demo_resume_command(options: DemoOptions, folder: Path) -> str:
    """The command line that continues this demo."""
    words = ["kilolayer", "demo", "--out", str(folder)]
    if options.depths != DemoOptions.depths:
        words += ["--depths", *map(str, options.depths)]
    for name in ("iterations", "seed", "workers"):
        if getattr(options, name) != getattr(DemoOptions, name):
            words += [f"--{name}", str(getattr(options, name))]
    return shlex.join(words)
