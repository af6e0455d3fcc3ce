"""What is asked to be reproduced: tables, rows, seeds and scale, as a value that JSON can hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Literal

from kilolayer.data.config import Data
from kilolayer.errors import InputError
from kilolayer.papers import Cell, Plan, Scale, Table
from kilolayer.units import Arrangement, Branch, Shortcut, Unit


@dataclass(frozen=True)
class Size:
    """The scale of a reproduction; None leaves a thing as in the paper (see `kilolayer.papers.Scale`).

    `depths`: pairs of the paper's depth and the one to run instead. `imagenet_size`: the `image_size` of
    ImageNet's networks, which divide it by 32.
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
"""The paper's own size; one for an hour on a CPU that still shows the effect of depth; one for seconds."""


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
    """What to reproduce. `rows` and `columns` are names, parts of names or shell patterns; none means all.

    `settings`: a cell that stands for several settings (b_g = 0 … −5) runs "all" of them or the "first".
    `recipe`: None is each cell's own. `seeds` are the seeds of every cell's runs. `own_rows` stand in every
    table, whatever `rows` says.
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
    channels_last: bool = False
    kernels: Literal["plain", "fused"] = "plain"
    evaluation: Literal["plain", "folded"] = "plain"
    own_rows: tuple[OwnRow, ...] = ()

    @property
    def computing(self) -> dict[str, Any]:
        """The fields of its experiments that say how they are computed."""
        names = ("precision", "channels_last", "kernels", "evaluation")
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
    """The cells of the rows and columns that are asked for. `InputError` for a name that nothing has."""
    cells = [cell for table in tables for cell in table.cells]
    rows = _matching({cell.row: None for cell in cells}, request.rows, "row")
    columns = _matching({cell.column: None for cell in cells}, request.columns, "column")
    selected = tuple(
        cell for cell in cells if (cell.row in rows or not cell.in_paper) and cell.column in columns
    )
    if not selected:
        raise InputError("no cell is in both these rows and these columns; see kilolayer reproduce --dry-run")
    return selected


def _matching(names: Iterable[str], patterns: tuple[str, ...], kind: str) -> set[str]:
    """A whole name means itself only: "ResNet-110" is not "ResNet-110 with a 1-layer skip" too."""
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
