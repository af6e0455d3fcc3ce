"""A reproduction: the cells of the requested tables, at a scale and with seeds, and the runs that they need.

The request is stored as sweep.json in the sweep's folder. To continue the sweep or to report on it, the
folder is enough. A run that several cells share (Tables 1 and 2 share the original ResNet-110) is made once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from kilolayer.data.config import Data
from kilolayer.errors import InputError, missing_path_error
from kilolayer.papers import Cell, Plan, Scale, Table, cell_experiment, find_table
from kilolayer.runs import Run
from kilolayer.sweep.run_spec import RunSpec
from kilolayer.system import durable
from kilolayer.system.folder_listing import matching_paths
from kilolayer.system.json_text import MAX_BYTES
from kilolayer.system.opened_folder import open_folder
from kilolayer.training import Experiment
from kilolayer.training.experiment import MemoryFormat
from kilolayer.units import Arrangement, Branch, Shortcut, Unit
from kilolayer.units.extensions import UnitFileError
from kilolayer.values import from_json, to_json

REQUEST_FILE = "sweep.json"
SELECTION = "selection"
"""The folder of the search for b_g, which may precede the sweep."""


@dataclass(frozen=True)
class Trial:
    """A run of a cell: the index of its setting, its seed and its specification."""

    setting: int
    seed: int
    spec: RunSpec


@dataclass(frozen=True)
class CellRuns:
    """A cell with its runs. It has none where its figure is from the literature, or follows from counting."""

    cell: Cell
    trials: tuple[Trial, ...]

    @property
    def distinct(self) -> tuple[RunSpec, ...]:
        """Every run once."""
        return tuple({trial.spec.key: trial.spec for trial in self.trials}.values())


@dataclass(frozen=True)
class Reproduction:
    """A request with its tables, cells and runs, in `folder`."""

    folder: Path
    request: Request
    tables: tuple[Table, ...]
    cells: tuple[CellRuns, ...]

    @property
    def runs(self) -> tuple[RunSpec, ...]:
        """Every run once, seed by seed, so that a whole table with few seeds is complete early."""
        trials = sorted((t for cell in self.cells for t in cell.trials), key=lambda trial: trial.seed)
        return tuple({trial.spec.key: trial.spec for trial in trials}.values())

    def of_table(self, name: str) -> tuple[CellRuns, ...]:
        """The cells of one table."""
        return tuple(cell for cell in self.cells if cell.cell.table == name)


def plan_reproduction(request: Request, folder: Path) -> Reproduction:
    """Expands a request into cells and runs.

    Raises `InputError` for unknown names of tables, rows or columns.

    >>> from pathlib import Path
    >>> request = Request(("p2-table-2",), seeds=(0,), size=SIZES["smoke"])
    >>> reproduction = plan_reproduction(request, Path("sweep"))
    >>> len(reproduction.cells) >= len(reproduction.runs) > 0
    True
    """
    tables = with_own_rows(map(find_table, dict.fromkeys(request.tables)), request)
    cells = tuple(_cell_runs(cell, request, folder) for cell in select_cells(tables, request))
    return Reproduction(folder, request, tables, cells)


def open_sweep(folder: str | Path) -> Reproduction:
    """The reproduction stored in `folder`. Raises `InputError` where there is none."""
    path = Path(folder) / REQUEST_FILE
    if not os.path.exists(folder):
        raise missing_path_error(folder)
    if not os.path.lexists(path):
        raise InputError(
            f"{folder} holds no sweep: it has no {REQUEST_FILE}; kilolayer reproduce --out starts one"
        )
    return plan_reproduction(_read_request(path), Path(folder))


def _read_request(path: Path) -> Request:
    try:
        with open_folder(path.parent) as folder:
            return from_json(folder.read(path.name, MAX_BYTES) or b"", Request, str(path.parent))
    except UnitFileError:
        raise
    except ValueError as error:  # no JSON, no text, or an error that does not name the file
        raise InputError(f"{path}: {error}") from None


def check_free(reproduction: Reproduction) -> None:
    """Raises `InputError` where the folder holds other files or another sweep, unless it only adds seeds."""
    folder, request = reproduction.folder, reproduction.request
    if os.path.lexists(folder / REQUEST_FILE):
        stored = _read_request(folder / REQUEST_FILE)
        if replace(stored, seeds=request.seeds) != request or not set(stored.seeds) <= set(request.seeds):
            raise InputError(
                f"{folder} holds another sweep; choose another --out, or continue it: "
                f"kilolayer reproduce --resume {folder}"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} holds other files; choose another --out")


def save_request(reproduction: Reproduction) -> None:
    """Writes the request to its folder. Raises `InputError` as `check_free`."""
    check_free(reproduction)
    write_request(reproduction)


def write_request(reproduction: Reproduction) -> None:
    """Writes the request, over another one too."""
    path = reproduction.folder / REQUEST_FILE
    if not os.path.lexists(path) or _read_request(path) != reproduction.request:
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
    """A run of a cell. The content of the experiment names the folder, so that equal experiments share it."""
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
    return RunSpec(run_folder(folder / "runs", described), described, folder)


def run_folder(runs: Path, experiment: Experiment) -> Path:
    """The folder of an experiment's run, existing or new.

    Another release may describe the same experiment in other words, and so name its folder differently. A run
    that is not under its name is therefore looked up by the experiment in its folder.
    """
    path = runs / run_name(experiment)
    if path.exists():
        return path
    candidates = matching_paths(runs, f"d{experiment.network.depth}-*-s{experiment.seed}")
    return next((candidate for candidate in candidates if _holds_experiment(candidate, experiment)), path)


def _holds_experiment(path: Path, experiment: Experiment) -> bool:
    try:
        return Run.open(path).experiment() == experiment
    except InputError:  # unlike a read error, after which nobody knows whether the run is there
        return False


def run_name(experiment: Experiment) -> str:
    """The name "d56-3f9a2c1b-s0": the depth, a digest of everything but the seed, and the seed."""
    text = to_json(replace(experiment, seed=0), indent=None)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"d{experiment.network.depth}-{digest}-s{experiment.seed}"


@dataclass(frozen=True)
class Size:
    """The scale of a reproduction. None keeps the paper's value (see `kilolayer.papers.Scale`).

    depths: pairs of the paper's depth and the depth to run instead. imagenet_size: the `image_size` of
        ImageNet networks, which reduce it by a factor of 32.
    """

    name: str = "full"
    depths: tuple[tuple[int, int], ...] = ()
    width: int | None = None
    image_size: int | None = None
    subset: int | None = None
    iterations: int | None = None
    batch_size: int | None = None
    evaluate_every: int = 1
    imagenet_size: int | None = None

    def of(self, plan: Plan) -> Scale:
        """The scale at which `plan` is run."""
        if plan.data != "imagenet" or self.imagenet_size is None:
            return self.scale
        return replace(self.scale, image_size=self.imagenet_size)

    @property
    def scale(self) -> Scale:
        """The scale of every plan but ImageNet's."""
        return Scale(
            self.name,
            dict(self.depths) or None,
            self.width,
            self.image_size,
            self.subset,
            self.iterations,
            self.batch_size,
            self.evaluate_every,
        )


SIZES = {
    "full": Size(),
    "proxy": Size(
        "proxy",
        ((110, 56), (164, 56), (1001, 110), (1202, 110), (152, 50), (200, 50), (101, 50)),
        image_size=16,
        subset=10_000,
        iterations=624,
        batch_size=64,
        imagenet_size=64,
    ),
    "smoke": Size(
        "smoke",
        ((110, 20), (164, 20), (1001, 29), (1202, 32), (152, 50), (200, 50), (101, 50)),
        image_size=8,
        subset=256,
        iterations=8,
        batch_size=32,
        imagenet_size=32,
    ),
}
"""The paper's own size; `proxy`, an hour on a CPU, which shows the effect of depth; `smoke`, seconds."""


@dataclass(frozen=True)
class OwnRow:
    """A row of your own beside the rows of a paper: its `name`, and the part of the unit that it changes.

    `reference` is "FILE.py:NAME" as the command line had it. Exactly one of the other fields is set.
    """

    name: str
    reference: str
    unit: Unit | None = None
    branch: Branch | None = None
    h: Shortcut | None = None
    arrangement: Arrangement | None = None

    @property
    def changes(self) -> dict[str, Any]:
        """The changed field of a plan or of its unit, with its value."""
        parts = {name: getattr(self, name) for name in ("unit", "branch", "h", "arrangement")}
        return {name: part for name, part in parts.items() if part is not None}


@dataclass(frozen=True)
class Request:
    """What to reproduce. `rows` and `columns` are names, parts of names or shell patterns; empty means all.

    settings: whether a cell that stands for several settings (b_g = 0 … −5) runs "all" of them or the
        "first".
    recipe: None is the recipe of each cell. seeds: the seeds of every cell's runs. own_rows: rows of your
        own; they stand in every table, whatever `rows` says.
    """

    tables: tuple[str, ...]
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    data: Data | None = None
    recipe: str | None = None
    size: Size = SIZES["full"]
    settings: Literal["all", "first"] = "all"
    precision: Literal["fp32", "bf16"] = "fp32"
    memory_format: MemoryFormat = "channels_first"
    kernels: Literal["plain", "fused"] = "plain"
    evaluation: Literal["plain", "folded"] = "plain"
    own_rows: tuple[OwnRow, ...] = ()

    @property
    def computing(self) -> dict[str, Any]:
        """The fields of the experiments that say how they are computed."""
        names = ("precision", "memory_format", "kernels", "evaluation")
        return {name: getattr(self, name) for name in names}


def with_own_rows(tables: Iterable[Table], request: Request) -> tuple[Table, ...]:
    """The tables with the request's own rows. Raises `InputError` where a row does not fit a table."""
    tables = tuple(tables)
    columns = _matching({name: None for table in tables for name in table.columns}, request.columns, "column")
    for row in request.own_rows:
        for table in tables:
            if clash := [name for name in table.columns_that_set(row.changes) if name in columns]:
                raise InputError(
                    f"--row {row.name}: the columns of {table.name} set that part of the unit themselves: "
                    f"{', '.join(clash)}; choose other columns with --columns, or another part of the unit"
                )
        tables = tuple(table.with_own_row(row.name, row.changes) for table in tables)
    return tables


def select_cells(tables: Iterable[Table], request: Request) -> tuple[Cell, ...]:
    """The cells of the requested rows and columns. Raises `InputError` for a name that no cell has."""
    cells = [cell for table in tables for cell in table.cells]
    rows = _matching({cell.row: None for cell in cells}, request.rows, "row")
    columns = _matching({cell.column: None for cell in cells}, request.columns, "column")
    own = {row.name for row in request.own_rows}
    selected = tuple(cell for cell in cells if cell.row in rows | own and cell.column in columns)
    if not selected:
        raise InputError("no cell is in both these rows and these columns; see kilolayer reproduce --dry-run")
    return selected


def _matching(names: Iterable[str], patterns: tuple[str, ...], kind: str) -> set[str]:
    """A full name matches only itself: "ResNet-110" does not match "ResNet-110 with a 1-layer skip"."""
    candidates, matches = list(names), set[str]()
    for pattern in patterns:
        exact = [pattern] if pattern in candidates else []
        hits = exact or [name for name in candidates if pattern in name or fnmatchcase(name, pattern)]
        if not hits:
            raise InputError(f"no {kind} matches {pattern!r}; {_nearest(pattern, candidates)}")
        matches.update(hits)
    return matches or set(candidates)


def _nearest(word: str, candidates: list[str]) -> str:
    near = get_close_matches(word, candidates, n=1, cutoff=0.3)
    first = f"nearest: {near[0]!r}; " if near else ""
    return f"{first}allowed: a name or a part of one of {', '.join(map(repr, candidates))}"
