"""A reproduction: which cells of which tables, at which scale and seeds, and the runs that this means.

The request is kept as sweep.json in the sweep's folder, so that continuing it and reporting on it need
the folder alone. Runs that several cells share, as Tables 1 and 2 share the original ResNet-110, are
made once.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

from kilolayer import durable
from kilolayer.errors import InputError, no_such_path
from kilolayer.papers import Cell, Table, experiment, table
from kilolayer.runs import Run
from kilolayer.sweep.plan import Planned
from kilolayer.sweep.request import Request, chosen
from kilolayer.training import Experiment
from kilolayer.values import from_json, to_json

FILE = "sweep.json"
SELECTION = "selection"
"""Folder of the search for b_g, which may come before the sweep."""


@dataclass(frozen=True)
class Trial:
    """One run of a cell: which of its settings, which seed."""

    setting: int
    seed: int
    planned: Planned


@dataclass(frozen=True)
class CellRuns:
    """A cell with its runs; none where it is literature only or follows from counting."""

    cell: Cell
    trials: tuple[Trial, ...]

    @property
    def distinct(self) -> tuple[Planned, ...]:
        """Every run once."""
        return tuple({trial.planned.key: trial.planned for trial in self.trials}.values())


@dataclass(frozen=True)
class Reproduction:
    """A request with its runs, in `folder`."""

    folder: Path
    request: Request
    tables: tuple[Table, ...]
    cells: tuple[CellRuns, ...]

    @property
    def runs(self) -> tuple[Planned, ...]:
        """Every run once; seed by seed, so that a whole table with few seeds is there early."""
        trials = sorted((t for cell in self.cells for t in cell.trials), key=lambda trial: trial.seed)
        return tuple({trial.planned.key: trial.planned for trial in trials}.values())

    def of_table(self, name: str) -> tuple[CellRuns, ...]:
        return tuple(one for one in self.cells if one.cell.table == name)


def plan(request: Request, folder: Path) -> Reproduction:
    """Works a request out. Raises `InputError` for names that no table, row or column has."""
    tables = tuple(table(name) for name in dict.fromkeys(request.tables))
    cells = tuple(_with_runs(cell, request, folder) for cell in chosen(tables, request))
    return Reproduction(folder, request, tables, cells)


def open_sweep(folder: str | Path) -> Reproduction:
    """The reproduction kept in `folder`; `InputError` where there is none."""
    path = Path(folder) / FILE
    if not os.path.exists(folder):
        raise no_such_path(folder)
    if not path.is_file():
        raise InputError(f"{folder} holds no sweep: it has no {FILE}; kilolayer reproduce --out makes one")
    return plan(_kept(path), Path(folder))


def _kept(path: Path) -> Request:
    try:
        return from_json(path.read_text(encoding="utf-8"), Request)
    except ValueError as error:  # no JSON, no text, or an InputError that does not know the file
        raise InputError(f"{path}: {error}") from None


def check_free(reproduction: Reproduction) -> None:
    """Raises `InputError` where the folder holds other files, or another sweep; one may grow by seeds."""
    folder, request = reproduction.folder, reproduction.request
    if (folder / FILE).is_file():
        kept = _kept(folder / FILE)
        if replace(kept, seeds=request.seeds) != request or not set(kept.seeds) <= set(request.seeds):
            raise InputError(
                f"{folder} holds another sweep; choose another --out, or go on with it: "
                f"kilolayer reproduce --resume {folder}"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} holds other files; choose another --out")


def keep(reproduction: Reproduction) -> None:
    """Writes the request to its folder, where a kept one may grow by seeds. `InputError` as `check_free`."""
    check_free(reproduction)
    path = reproduction.folder / FILE
    if not path.is_file() or _kept(path) != reproduction.request:
        durable.write(path, to_json(reproduction.request).encode())


def _with_runs(cell: Cell, request: Request, folder: Path) -> CellRuns:
    if cell.counted is not None:
        return CellRuns(cell, ())
    settings = range(len(cell.plans) if request.settings == "all" else min(1, len(cell.plans)))
    trials = (
        Trial(setting, seed, planned(cell, setting, seed, request, folder))
        for setting in settings
        for seed in request.seeds
    )
    return CellRuns(cell, tuple(trials))


def planned(cell: Cell, setting: int, seed: int, request: Request, folder: Path) -> Planned:
    """One run; its folder is named by its content, so that equal experiments share it."""
    size = request.size
    made = experiment(
        cell,
        seed,
        data=request.data,
        recipe_name=request.recipe,
        scale=size.of(cell.plans[setting]) if cell.plans else size.scale,
        setting=setting,
        **request.computing,
    )
    return Planned(run_folder(folder / "runs", made), made)


def run_folder(runs: Path, made: Experiment) -> Path:
    """Where the run of an experiment is, or is to be.

    A release that describes experiments in more words gives them other names than an older one did, so a run
    that is not under its name is looked for by what its folder says it is.
    """
    path = runs / run_name(made)
    if path.exists():
        return path
    others = sorted(runs.glob(f"d{made.network.depth}-*-s{made.seed}"))
    return next((other for other in others if _holds(other, made)), path)


def _holds(path: Path, made: Experiment) -> bool:
    try:
        return Run.open(path).experiment() == made
    except InputError:
        return False


def run_name(made: Experiment) -> str:
    """ "d56-3f9a2c1b-s0": depth, a digest of all but the seed, the seed."""
    text = to_json(replace(made, seed=0), indent=None)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"d{made.network.depth}-{digest}-s{made.seed}"
