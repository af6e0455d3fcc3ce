"""`kilolayer demo`: original and pre-activation networks of growing depth, side by side."""

from __future__ import annotations

import os
import secrets
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from kilolayer.cli.option_types import Whole, Wholes
from kilolayer.data.config import Data
from kilolayer.errors import InputError
from kilolayer.networks.families import cifar
from kilolayer.sweep.run_spec import RunSpec, check_folders
from kilolayer.training import Experiment, recipe_by_name, recipe_for_data
from kilolayer.units import ARRANGEMENTS, BASIC

UNITS = {"original": "original unit (v1)", "full_preactivation": "pre-activation unit (v2)"}
TRAINING_IMAGES = 1437
PAGES = ("report", "gradient")
"""What is written beside the runs: the report, and the page of the first of its commands to go on with."""


@dataclass(frozen=True)
class DemoOptions:
    """Watch the central claim of "Identity Mappings in Deep Residual Networks" happen.

    Trains the original and the pre-activation unit at growing depth on digits.

    Two networks at a time; ends with a table, and a report with their curves.

    Interrupted, it goes on with the same --out.
    """

    depths: Wholes = (20, 56, 110, 218)
    """depths to train, each of the form 6n+2"""
    iterations: Whole = 176
    """training iterations of each network, in batches of 64"""
    seed: Whole = 0
    """seed of initialisation, order and augmentation"""
    workers: Whole = 2
    """networks trained at the same time, each on its share of the cores"""
    out: Path | None = None
    """folder of the runs and the report [default: runs/demo-<random>]"""


def execute(options: DemoOptions) -> int:
    """Trains, shows, and reports."""
    from kilolayer.cli.demo_report import measure_initial_state, print_demo_summary, write_demo_report
    from kilolayer.cli.sweeping import run_sweep
    from kilolayer.report.extra import check_installed
    from kilolayer.report.live_table import LiveTable
    from kilolayer.sweep import ProcessPool

    check_installed()  # rather before minutes of training than after
    folder = options.out or Path("runs") / f"demo-{secrets.token_hex(2)}"
    planned = demo_runs(options, folder)
    check_demo_folder(folder)
    check_folders(planned.values())
    cells = {(f"{depth} layers", UNITS[name]): (one,) for (depth, name), one in planned.items()}
    rows = [f"{depth} layers" for depth in options.depths]
    board = LiveTable("Test error on handwritten digits", rows, list(UNITS.values()), cells)
    workers, threads = worker_shares(options.workers)
    pool = ProcessPool(workers, threads=threads, devices=("cpu",))
    if status := run_sweep(list(planned.values()), pool, board, demo_resume_command(options, folder)):
        return status
    starts = {place: measure_initial_state(one.experiment) for place, one in planned.items()}
    print_demo_summary(planned, starts, folder, write_demo_report(planned, starts, folder))
    return 0


def demo_runs(options: DemoOptions, folder: Path) -> dict[tuple[int, str], RunSpec]:
    """The demo's runs by depth and unit, shallow ones first, so that the table fills from the top."""
    if not options.depths:
        raise InputError("--depths is empty; allowed: depths of the form 6n+2, as 20 56 110")
    return {
        (depth, name): RunSpec(folder / f"{name}-{depth}", demo_experiment(options, depth, name))
        for depth in options.depths
        for name in UNITS
    }


def demo_experiment(options: DemoOptions, depth: int, unit: str) -> Experiment:
    """One network of the demo: the same data, recipe and seed for all."""
    from kilolayer.training import choose_device, computation_options

    data = Data("digits")
    network = cifar(depth, replace(BASIC, arrangement=ARRANGEMENTS[unit]), in_chans=1, image_size=8)
    chosen = recipe_for_data(recipe_by_name("short", TRAINING_IMAGES), data).with_iterations(
        options.iterations
    )
    return Experiment(network, data, chosen, seed=options.seed, **computation_options(choose_device("cpu")))


def check_demo_folder(folder: Path) -> None:
    """Raises `InputError` where `folder` holds anything but a demo, which is gone on with."""
    if not folder.exists():
        return
    names = [] if not folder.is_dir() else [one.name for one in folder.iterdir()]
    if not folder.is_dir() or any(not _ours(name) for name in names):
        raise InputError(f"{folder} holds other files; choose another --out")


def _ours(name: str) -> bool:
    unit, _, depth = name.rpartition("-")
    page = name.removeprefix(".").partition(".html")[0] in PAGES and ".html" in name
    return page or (unit in UNITS and depth.isdigit())


def worker_shares(workers: int) -> tuple[int, int]:
    """Workers, no more than there are cores, and the cores of each."""
    if workers < 1:
        raise InputError(f"--workers is {workers}; allowed: a whole number from 1")
    cores = os.cpu_count() or 1
    number = min(workers, cores)
    return number, cores // number


def demo_resume_command(options: DemoOptions, folder: Path) -> str:
    """The command line that goes on with this demo."""
    words = ["kilolayer", "demo", "--out", str(folder)]
    if options.depths != DemoOptions.depths:
        words += ["--depths", *map(str, options.depths)]
    for name in ("iterations", "seed", "workers"):
        if getattr(options, name) != getattr(DemoOptions, name):
            words += [f"--{name}", str(getattr(options, name))]
    return shlex.join(words)
