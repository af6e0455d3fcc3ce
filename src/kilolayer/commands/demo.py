"""`kilolayer demo`: original and pre-activation networks of growing depth, side by side."""

from __future__ import annotations

import os
import secrets
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from kilolayer.commands.flags import Whole, Wholes
from kilolayer.data.describe import Data
from kilolayer.errors import InputError
from kilolayer.networks.families import cifar
from kilolayer.sweep.plan import Planned, check_folders
from kilolayer.training import Experiment, recipe, with_data
from kilolayer.units import ARRANGEMENTS, BASIC

UNITS = {"original": "original unit (v1)", "full_preactivation": "pre-activation unit (v2)"}
TRAINING_IMAGES = 1437
PAGES = ("report", "gradient")
"""What is written beside the runs: the report, and the page of the first of its commands to go on with."""


@dataclass(frozen=True)
class Demo:
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


def demo(options: Demo) -> int:
    """Trains, shows, and reports."""
    from kilolayer.commands.board import Board
    from kilolayer.commands.demo_report import measure_start, print_summary, write_report
    from kilolayer.commands.sweeping import sweep
    from kilolayer.report.optional import check_installed
    from kilolayer.sweep import Pool

    check_installed()  # rather before minutes of training than after
    folder = options.out or Path("runs") / f"demo-{secrets.token_hex(2)}"
    planned = plan(options, folder)
    check_folder(folder)
    check_folders(planned.values())
    cells = {(f"{depth} layers", UNITS[name]): (one,) for (depth, name), one in planned.items()}
    rows = [f"{depth} layers" for depth in options.depths]
    board = Board("Test error on handwritten digits", rows, list(UNITS.values()), cells)
    workers, threads = shares(options.workers)
    pool = Pool(workers, threads=threads, devices=("cpu",))
    if status := sweep(list(planned.values()), pool, board, again(options, folder)):
        return status
    starts = {place: measure_start(one.experiment) for place, one in planned.items()}
    print_summary(planned, starts, folder, write_report(planned, starts, folder))
    return 0


def plan(options: Demo, folder: Path) -> dict[tuple[int, str], Planned]:
    """The demo's runs by depth and unit, shallow ones first, so that the table fills from the top."""
    if not options.depths:
        raise InputError("--depths is empty; allowed: depths of the form 6n+2, as 20 56 110")
    return {
        (depth, name): Planned(folder / f"{name}-{depth}", experiment(options, depth, name))
        for depth in options.depths
        for name in UNITS
    }


def experiment(options: Demo, depth: int, unit: str) -> Experiment:
    """One network of the demo: the same data, recipe and seed for all."""
    from kilolayer.training import choose_device, computing

    data = Data("digits")
    network = cifar(depth, replace(BASIC, arrangement=ARRANGEMENTS[unit]), in_chans=1, image_size=8)
    chosen = with_data(recipe("short", TRAINING_IMAGES), data).shortened(options.iterations)
    return Experiment(network, data, chosen, seed=options.seed, **computing(choose_device("cpu")))


def check_folder(folder: Path) -> None:
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


def shares(workers: int) -> tuple[int, int]:
    """Workers, no more than there are cores, and the cores of each."""
    if workers < 1:
        raise InputError(f"--workers is {workers}; allowed: a whole number from 1")
    cores = os.cpu_count() or 1
    number = min(workers, cores)
    return number, cores // number


def again(options: Demo, folder: Path) -> str:
    """The command line that goes on with this demo."""
    words = ["kilolayer", "demo", "--out", str(folder)]
    if options.depths != Demo.depths:
        words += ["--depths", *map(str, options.depths)]
    for name in ("iterations", "seed", "workers"):
        if getattr(options, name) != getattr(Demo, name):
            words += [f"--{name}", str(getattr(options, name))]
    return shlex.join(words)
