"""What a reproduction leaves in its folder: findings as JSON, a page, and tables for papers and programs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable

from kilolayer import durable
from kilolayer.commands import comparison_tables as compared
from kilolayer.commands import reproduction_page
from kilolayer.commands import reproduction_tables as tables
from kilolayer.errors import InputError
from kilolayer.report import tables as formats
from kilolayer.report.content import Table
from kilolayer.report.page import write
from kilolayer.sweep.findings import TableFindings, findings
from kilolayer.sweep.findings_json import as_text
from kilolayer.sweep.reproduction import Reproduction
from kilolayer.sweep.request import SIZES, Request

Found = tuple[TableFindings, ...]


def write_all(reproduction: Reproduction) -> Found:
    """findings.json, report.html, and every table as Markdown, LaTeX and CSV, into the sweep's folder."""
    found = findings(reproduction)
    folder = reproduction.folder
    durable.write(
        folder / "findings.json", as_text(reproduction, found, whole(reproduction.request)).encode()
    )
    for one in found:
        _write_formats(one, reproduction)
    try:
        page = reproduction_page.page(reproduction, found, commands(reproduction))
        write(page, folder / "report.html")
    except InputError as missing:  # the figures are there all the same
        print(f"kilolayer: no report.html: {missing}", file=sys.stderr)
    return found


def _write_formats(one: TableFindings, reproduction: Reproduction) -> None:
    narrow = (*tables.figures(one), *compared.comparisons(one))
    stem = reproduction.folder / one.table.name
    told = f"# {tables.named(one)}: {one.table.title}\n\n{one.proxy}\n\n" if one.proxy else ""
    durable.write(stem.with_suffix(".md"), (told + _joined(formats.markdown, narrow)).encode())
    durable.write(stem.with_suffix(".tex"), _joined(formats.latex, narrow).encode())
    durable.write(stem.with_suffix(".csv"), formats.comma_separated(tables.wide(one)).encode())


def _joined(form: Callable[[Table], str], shown: tuple[Table, ...]) -> str:
    return "\n".join(map(form, shown))


def print_findings(reproduction: Reproduction, found: Found, json_wanted: bool) -> None:
    """The findings, and where the report is."""
    if json_wanted:
        print(as_text(reproduction, found, whole(reproduction.request)))
        return
    from kilolayer.commands.findings_shown import show

    show(found)
    print(f"\nfindings: {reproduction.folder / 'findings.json'}")
    if (page := reproduction.folder / "report.html").exists():
        print(f"report: {page.resolve()}")


def commands(reproduction: Reproduction) -> dict[tuple[str, str, str], str]:
    """The command that repeats each cell, by table, row and column."""
    request = reproduction.request
    return {
        (cell.table, cell.row, cell.column): command(request, cell.table, cell.row, cell.column)
        for cell in (one.cell for one in reproduction.cells if one.trials)
    }


def command(request: Request, table: str, row: str, column: str) -> str:
    """The command line that repeats one cell of a request."""
    return _line(request, (table,), (row,), (column,))


def whole(request: Request) -> str:
    """The command line that repeats a request."""
    return _line(request, request.tables, request.rows, request.columns)


def _line(request: Request, names: tuple[str, ...], rows: tuple[str, ...], columns: tuple[str, ...]) -> str:
    words = ["kilolayer", "reproduce", *names]
    words += ["--rows", *rows] if rows else []
    words += ["--columns", *columns] if columns else []
    words += ["--seeds", _seeds(request.seeds)]
    if request.data is not None:
        words += ["--data", request.data.source]
        words += ["--data-folder", request.data.folder] if request.data.folder else []
    words += ["--recipe", request.recipe] if request.recipe else []
    words += _size_words(request)
    words += ["--settings", request.settings, "--precision", request.precision]
    words += ["--kernels", request.kernels]
    return shlex.join(words)


def _seeds(seeds: tuple[int, ...]) -> str:
    """A count where it means these seeds."""
    return str(len(seeds)) if seeds == tuple(range(len(seeds))) else ",".join(map(str, seeds)) + ","


def _size_words(request: Request) -> list[str]:
    size = request.size
    name = size.name.partition(",")[0]
    known = SIZES[name]
    words = ["--scale", name]
    if size.depths != known.depths:
        words += ["--depths", ",".join(f"{paper}={ours}" for paper, ours in size.depths)]
    for field in ("image_size", "subset", "iterations", "batch_size", "evaluate_every"):
        value = getattr(size, field)
        if value is not None and value != getattr(known, field):
            words += [f"--{field.replace('_', '-')}", str(value)]
    return words
