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

from kilolayer.errors import InputError, KilolayerError, missing_path_error
from kilolayer.papers import Cell, Table, cell_experiment, find_table
from kilolayer.runs import Run
from kilolayer.sweep.request import Request, select_cells, with_own_rows
from kilolayer.sweep.run_spec import RunSpec
from kilolayer.system import durable
from kilolayer.training import Experiment
from kilolayer.values import from_json, to_json

REQUEST_FILE = "sweep.json"
SELECTION = "selection"
"""Folder of the search for b_g, which may come before the sweep."""


@dataclass(frozen=True)
class Trial:
    """One run of a cell: which of its settings, which seed."""

    setting: int
    seed: int
    spec: RunSpec


@dataclass(frozen=True)
class CellRuns:
    """A cell with its runs; none where it is literature only or follows from counting."""

    cell: Cell
    trials: tuple[Trial, ...]

    @property
    def distinct(self) -> tuple[RunSpec, ...]:
        """Every run once."""
        return tuple({trial.spec.key: trial.spec for trial in self.trials}.values())


@dataclass(frozen=True)
class Reproduction:
    """A request with its runs, in `folder`."""

    folder: Path
    request: Request
    tables: tuple[Table, ...]
    cells: tuple[CellRuns, ...]

    @property
    def runs(self) -> tuple[RunSpec, ...]:
        """Every run once; seed by seed, so that a whole table with few seeds is there early."""
        trials = sorted((t for cell in self.cells for t in cell.trials), key=lambda trial: trial.seed)
        return tuple({trial.spec.key: trial.spec for trial in trials}.values())

    def of_table(self, name: str) -> tuple[CellRuns, ...]:
        return tuple(cell for cell in self.cells if cell.cell.table == name)


def plan_reproduction(request: Request, folder: Path) -> Reproduction:
    """Works a request out. Raises `InputError` for names that no table, row or column has."""
    tables = with_own_rows(map(find_table, dict.fromkeys(request.tables)), request)
    cells = tuple(_cell_runs(cell, request, folder) for cell in select_cells(tables, request))
    return Reproduction(folder, request, tables, cells)


def open_sweep(folder: str | Path) -> Reproduction:
    """The reproduction kept in `folder`; `InputError` where there is none."""
    path = Path(folder) / REQUEST_FILE
    if not os.path.exists(folder):
        raise missing_path_error(folder)
    if not path.is_file():
        raise InputError(
            f"{folder} holds no sweep: it has no {REQUEST_FILE}; kilolayer reproduce --out makes one"
        )
    return plan_reproduction(_read_request(path), Path(folder))


def _read_request(path: Path) -> Request:
    try:
        return from_json(path.read_text(encoding="utf-8"), Request)
    except ValueError as error:  # no JSON, no text, or an InputError that does not know the file
        raise InputError(f"{path}: {error}") from None


def check_free(reproduction: Reproduction) -> None:
    """Raises `InputError` where the folder holds other files, or another sweep; one may grow by seeds."""
    folder, request = reproduction.folder, reproduction.request
    if (folder / REQUEST_FILE).is_file():
        stored = _read_request(folder / REQUEST_FILE)
        if replace(stored, seeds=request.seeds) != request or not set(stored.seeds) <= set(request.seeds):
            raise InputError(
                f"{folder} holds another sweep; choose another --out, or go on with it: "
                f"kilolayer reproduce --resume {folder}"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} holds other files; choose another --out")


def save_request(reproduction: Reproduction) -> None:
    """Writes the request to its folder, where a kept one may grow by seeds. `InputError` as `check_free`."""
    check_free(reproduction)
    path = reproduction.folder / REQUEST_FILE
    if not path.is_file() or _read_request(path) != reproduction.request:
        durable.write_file(path, to_json(reproduction.request).encode())


def _cell_runs(cell: Cell, request: Request, folder: Path) -> CellRuns:
    if cell.counted is not None:
        return CellRuns(cell, ())
    settings = range(len(cell.plans) if request.settings == "all" else min(1, len(cell.plans)))
    trials = (
        Trial(setting, seed, cell_run_spec(cell, setting, seed, request, folder))
        for setting in settings
        for seed in request.seeds
    )
    return CellRuns(cell, tuple(trials))


def cell_run_spec(cell: Cell, setting: int, seed: int, request: Request, folder: Path) -> RunSpec:
    """One run; its folder is named by its content, so that equal experiments share it."""
    size = request.size
    described = cell_experiment(
        cell,
        seed,
        data=request.data,
        recipe_name=request.recipe,
        scale=size.of(cell.plans[setting]) if cell.plans else size.scale,
        setting=setting,
        **request.computing,
    )
    return RunSpec(run_folder(folder / "runs", described), described)


def run_folder(runs: Path, experiment: Experiment) -> Path:
    """Where the run of an experiment is, or is to be.

    A release that describes experiments in more words gives them other names than an older one did, so a run
    that is not under its name is looked for by what its folder says it is.
    """
    path = runs / run_name(experiment)
    if path.exists():
        return path
    candidates = sorted(runs.glob(f"d{experiment.network.depth}-*-s{experiment.seed}"))
    return next((candidate for candidate in candidates if _holds_experiment(candidate, experiment)), path)


def _holds_experiment(path: Path, experiment: Experiment) -> bool:
    try:
        return Run.open(path).experiment() == experiment
    except KilolayerError:
        return False


def run_name(experiment: Experiment) -> str:
    """ "d56-3f9a2c1b-s0": depth, a digest of all but the seed, the seed."""
    text = to_json(replace(experiment, seed=0), indent=None)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"d{experiment.network.depth}-{digest}-s{experiment.seed}"
