"""The files of a reproduction: findings as JSON, a page, and tables for papers and programs."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from kilolayer.errors import KilolayerError
from kilolayer.report import reproduction_page
from kilolayer.report import reproduction_tables as tables
from kilolayer.report import table_formats as formats
from kilolayer.report.document import Table
from kilolayer.report.image_tables import image_tables
from kilolayer.report.page import write_page
from kilolayer.report.registration_text import comparison_tables, registration_rows
from kilolayer.sweep.looks import RegisteredResult, registered_result
from kilolayer.sweep.registration import Registration
from kilolayer.sweep.reproduction import SIZES, OwnRow, Reproduction, Request
from kilolayer.sweep.results import TableResult, table_results
from kilolayer.sweep.results_json import results_as_json
from kilolayer.system import durable
from kilolayer.system.printer import print_json_text, print_line

AllFindings = tuple[TableResult, ...]


def write_reproduction(reproduction: Reproduction) -> AllFindings:
    """Writes findings.json, report.html, and every table as Markdown, LaTeX and CSV."""
    findings = table_results(reproduction)
    folder, registered = reproduction.folder, registered_result(reproduction, findings)
    durable.write_file(folder / "findings.json", _as_json(reproduction, findings, registered).encode())
    for table_findings in findings:
        _write_formats(table_findings, reproduction, registered)
    try:
        page = reproduction_page.build_reproduction_page(
            reproduction, findings, cell_commands(reproduction), registered
        )
        write_page(page, folder / "report.html")
    except KilolayerError as missing:  # the other files are complete without the page
        print_line(f"kilolayer: no report.html: {missing}", stderr=True)
    return findings


def _as_json(reproduction: Reproduction, findings: AllFindings, registered: RegisteredResult | None) -> str:
    command = whole_command(reproduction.request, registered.registration if registered else None)
    return results_as_json(reproduction, findings, command, registered)


def _write_formats(
    table_findings: TableResult, reproduction: Reproduction, registered: RegisteredResult | None
) -> None:
    decisions = comparison_tables(table_findings, registered)
    narrow = (*tables.figure_tables(table_findings), *decisions, *image_tables(table_findings))
    stem = reproduction.folder / table_findings.table.name
    heading = (
        f"# {tables.table_label(table_findings)}: {table_findings.table.title}\n\n{table_findings.proxy}\n\n"
        if table_findings.proxy
        else ""
    )
    if registered is not None:
        rows = registration_rows(registered.entries)
        heading += "".join(f"- {name}: {text}\n" for name, text in rows) + "\n"
        for table in decisions:
            durable.write_file(stem.with_suffix(".decisions.csv"), formats.comma_separated(table).encode())
    durable.write_file(stem.with_suffix(".md"), (heading + _joined(formats.markdown, narrow)).encode())
    durable.write_file(stem.with_suffix(".tex"), _joined(formats.latex, narrow).encode())
    durable.write_file(
        stem.with_suffix(".csv"), formats.comma_separated(tables.wide_table(table_findings)).encode()
    )


def _joined(form: Callable[[Table], str], tables: tuple[Table, ...]) -> str:
    return "\n".join(map(form, tables))


def print_findings(reproduction: Reproduction, findings: AllFindings, json_wanted: bool) -> None:
    """Prints the findings and the path of the report."""
    registered = registered_result(reproduction, findings)
    if json_wanted:
        print_json_text(_as_json(reproduction, findings, registered))
        return
    from kilolayer.report.reproduction_text import print_reproduction

    print_reproduction(findings, registered)
    print_line()
    print_line(f"findings: {reproduction.folder / 'findings.json'}")
    if (page := reproduction.folder / "report.html").exists():
        print_line(f"report: {page.resolve()}")


def cell_commands(reproduction: Reproduction) -> dict[tuple[str, str, str], str]:
    """The command line that repeats each cell, by table, row and column."""
    request = reproduction.request
    return {
        (cell.table, cell.row, cell.column): cell_command(request, cell.table, cell.row, cell.column)
        for cell in (trained_cell.cell for trained_cell in reproduction.cells if trained_cell.trials)
    }


def cell_command(request: Request, table: str, row: str, column: str) -> str:
    """The command line that repeats one cell of a request."""
    own_rows = tuple(row_of_yours for row_of_yours in request.own_rows if row_of_yours.name == row)
    return _line(request, (table,), (row,), (column,), own_rows)


def whole_command(request: Request, registration: Registration | None = None) -> str:
    """The command line that repeats a request, and registers it where it was registered."""
    words = _line(request, request.tables, request.rows, request.columns, request.own_rows)
    return words if registration is None else f"{words} {shlex.join(_rule_words(registration))}"


def _rule_words(registration: Registration) -> list[str]:
    rule = registration.rule
    words = ["--register", "--looks", ",".join(map(str, rule.looks))]
    words += ["--test", rule.test.replace(" ", "-")]
    words += ["--spending", rule.spending.replace("'", "").lower()]
    words += ["--margin", f"{rule.margin:g}"] if rule.margin is not None else []
    return [*words, "--fail-above", f"{registration.fail_above:g}"]


def _line(
    request: Request,
    names: tuple[str, ...],
    rows: tuple[str, ...],
    columns: tuple[str, ...],
    own_rows: tuple[OwnRow, ...],
) -> str:
    words = ["kilolayer", "reproduce", *names]
    words += ["--rows", *rows] if rows else []
    words += ["--columns", *columns] if columns else []
    words += ["--row", *(f"{row.name}={row.reference}" for row in own_rows)] if own_rows else []
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
    named_size = SIZES[name]
    words = ["--scale", name]
    if size.depths != named_size.depths:
        words += ["--depths", ",".join(f"{paper}={ours}" for paper, ours in size.depths)]
    for field in ("image_size", "subset", "iterations", "batch_size", "evaluate_every"):
        value = getattr(size, field)
        if value is not None and value != getattr(named_size, field):
            words += [f"--{field.replace('_', '-')}", str(value)]
    return words
