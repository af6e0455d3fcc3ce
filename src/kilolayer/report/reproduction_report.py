"""The files of a reproduction: findings as JSON, a page, and tables for papers and programs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable

from kilolayer.errors import InputError
from kilolayer.report import comparison_tables as compared
from kilolayer.report import reproduction_page
from kilolayer.report import reproduction_tables as tables
from kilolayer.report import table_formats as formats
from kilolayer.report.document import Table
from kilolayer.report.page import write_page
from kilolayer.sweep.reproduction import Reproduction
from kilolayer.sweep.request import SIZES, Request
from kilolayer.sweep.results_json import results_as_json
from kilolayer.sweep.table_result import TableResult, table_results
from kilolayer.system import durable

AllFindings = tuple[TableResult, ...]


def write_reproduction(reproduction: Reproduction) -> AllFindings:
    """Writes findings.json, report.html, and every table as Markdown, LaTeX and CSV."""
    found = table_results(reproduction)
    folder = reproduction.folder
    durable.write_file(
        folder / "findings.json",
        results_as_json(reproduction, found, whole_command(reproduction.request)).encode(),
    )
    for one in found:
        _write_formats(one, reproduction)
    try:
        page = reproduction_page.build_reproduction_page(reproduction, found, cell_commands(reproduction))
        write_page(page, folder / "report.html")
    except InputError as missing:  # the other files are complete without the page
        print(f"kilolayer: no report.html: {missing}", file=sys.stderr)
    return found


def _write_formats(one: TableResult, reproduction: Reproduction) -> None:
    narrow = (*tables.figure_tables(one), *compared.gap_tables(one))
    stem = reproduction.folder / one.table.name
    told = f"# {tables.table_label(one)}: {one.table.title}\n\n{one.proxy}\n\n" if one.proxy else ""
    durable.write_file(stem.with_suffix(".md"), (told + _joined(formats.markdown, narrow)).encode())
    durable.write_file(stem.with_suffix(".tex"), _joined(formats.latex, narrow).encode())
    durable.write_file(stem.with_suffix(".csv"), formats.comma_separated(tables.wide_table(one)).encode())


def _joined(form: Callable[[Table], str], shown: tuple[Table, ...]) -> str:
    return "\n".join(map(form, shown))


def print_findings(reproduction: Reproduction, findings: AllFindings, json_wanted: bool) -> None:
    """Prints the findings and the path of the report."""
    if json_wanted:
        print(results_as_json(reproduction, findings, whole_command(reproduction.request)))
        return
    from kilolayer.report.reproduction_text import print_reproduction

    print_reproduction(findings)
    print(f"\nfindings: {reproduction.folder / 'findings.json'}")
    if (page := reproduction.folder / "report.html").exists():
        print(f"report: {page.resolve()}")


def cell_commands(reproduction: Reproduction) -> dict[tuple[str, str, str], str]:
    """The command line that repeats each cell, by table, row and column."""
    request = reproduction.request
    return {
        (cell.table, cell.row, cell.column): cell_command(request, cell.table, cell.row, cell.column)
        for cell in (one.cell for one in reproduction.cells if one.trials)
    }


def cell_command(request: Request, table: str, row: str, column: str) -> str:
    """The command line that repeats one cell of a request."""
    return _line(request, (table,), (row,), (column,))


def whole_command(request: Request) -> str:
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
    """Seeds as --seeds takes them: a count for 0 to n-1, otherwise a list."""
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
