"""The page of a reproduction: measured beside reported figures, training curves, and how to repeat it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from kilolayer.measure.layer_responses import measure_run_responses
from kilolayer.report import comparison_tables as compared
from kilolayer.report import curve_figures
from kilolayer.report import reproduction_tables as tables
from kilolayer.report.chart_figures import chart_figure
from kilolayer.report.curves import Curve
from kilolayer.report.document import Figure, Item, Listing, Page, Section, Table
from kilolayer.report.image_tables import image_tables
from kilolayer.report.registration_text import (
    NOT_REGISTERED,
    comparison_tables,
    decision_counts,
    registration_rows,
)
from kilolayer.report.reproduction_finding import finding_sentence
from kilolayer.sweep.looks import RegisteredResult
from kilolayer.sweep.reproduction import Reproduction, Trial
from kilolayer.sweep.results import CellResult, TableResult
from kilolayer.sweep.results_json import read_provenance
from kilolayer.training import Recipe
from kilolayer.values import to_json

Commands = Mapping[tuple[str, str, str], str]


def build_reproduction_page(
    reproduction: Reproduction,
    findings: tuple[TableResult, ...],
    commands: Commands,
    registered: RegisteredResult | None = None,
) -> Page:
    """The page as a value. It reads the metrics of the runs whose curves it shows."""
    sentences = [finding_sentence(table, registered=registered is not None) for table in findings]
    sentences.append(f"{decision_counts(registered)}." if registered else NOT_REGISTERED)
    sections = [Section("Findings", tuple(sentences))]
    sections += [_section(table_findings, registered) for table_findings in findings]
    if registered:
        rows = registration_rows(registered.entries)
        table = Table("What was fixed before the first run.", ("", "registered"), rows)
        sections.insert(1, Section("Registration", (), (table,)))
    sections.append(Section("How to repeat it", (), tuple(_how(reproduction, commands))))
    names = ", ".join(
        f"{table_findings.table.paper.label} {table_findings.table.source}" for table_findings in findings
    )
    return Page(
        title=f"Reproduction of {names}",
        subtitle="; ".join(dict.fromkeys(table_findings.table.title for table_findings in findings)),
        sections=tuple(sections),
        provenance=_provenance(reproduction),
    )


def _section(table_findings: TableResult, registered: RegisteredResult | None) -> Section:
    table, text = table_findings.table, []
    if table_findings.proxy:
        text.append(
            f"This is a {table_findings.proxy}. Its absolute figures cannot be compared with the paper's; "
            f"the ranking of the rows and the gaps between them can."
        )
    text += [f"{table.paper.title} (arXiv {table.paper.arxiv}), {table.source}: {table.title}."]
    text += [f"In the paper: {table.note}."] if table.note else []
    text += [*compared.ranking_sentences(table_findings), *tables.verdict_lines(table_findings)]
    figures = (
        _responses(table_findings)
        if table_findings.cells[0].cell.metric == "layer responses"
        else _figures(table_findings)
    )
    items: list[Item] = [
        *tables.figure_tables(table_findings),
        *comparison_tables(table_findings, registered),
        *image_tables(table_findings),
        *figures,
    ]
    return Section(tables.table_label(table_findings), tuple(text), tuple(items))


def _figures(table_findings: TableResult) -> Iterator[Figure]:
    """The training curves of each column, one run a row and a few rows a figure; and the learning rates."""
    drawn_runs: set[frozenset[str]] = set()
    recipes: dict[str, Recipe] = {}
    labels = [run[0] for finding in table_findings.cells if (run := _shown_run(finding)) is not None]
    numbers = curve_figures.colour_numbers(labels, table_findings.table.baseline)
    for column in dict.fromkeys(finding.cell.column for finding in table_findings.cells):
        chosen = [f for f in table_findings.cells if f.cell.column == column and f.keys not in drawn_runs]
        runs = {f.cell.row: run for f in chosen if (run := _shown_run(f)) is not None}
        curves = {row: _curve(*run) for row, run in runs.items()}
        drawn_runs |= {finding.keys for finding in chosen}
        recipes |= {label: trial.spec.experiment.recipe for label, trial in runs.values()}
        title = (
            tables.table_label(table_findings)
            if len(table_findings.table.columns) == 1
            else f"{tables.table_label(table_findings)}, {column}"
        )
        yield from curve_figures.training_figures(
            list(curves.values()), title, numbers, curves.get(table_findings.table.baseline)
        )
    if recipes:
        yield curve_figures.learning_rate_figure(recipes, tables.table_label(table_findings), numbers)


def _responses(table_findings: TableResult) -> Iterator[Figure]:
    """The layer responses of each row's first finished run, in order and sorted (P1, Fig. 7)."""
    responses = [
        (finding.cell.row, measure_run_responses(trial.spec.path))
        for finding in table_findings.cells
        for trial, state in finding.states[:1]
        if state.result and state.result["status"] == "done"
    ]
    for index in range(2 if responses else 0):
        charts = [(row, response.charts()[index]) for row, response in responses]
        chart = charts[0][1]
        alt = (
            "; ".join(f"{row}: {row_chart.note}" for row, row_chart in charts if row_chart.note)
            or chart.title
        )
        yield Figure(f"{tables.table_label(table_findings)}: {chart.title}.", chart_figure(charts), alt)


def _curve(label: str, trial: Trial) -> Curve:
    return Curve.from_metrics(label, trial.spec.run.metrics())


def _shown_run(finding: CellResult) -> tuple[str, Trial] | None:
    """The first finished run of the first setting, and its label."""
    for trial, state in finding.states:
        if state.is_finished and trial.spec.run.read("metrics.jsonl") is not None:
            setting = finding.cell.plans[trial.setting].setting
            label = f"{finding.cell.row} ({setting})" if setting else finding.cell.row
            return label, trial
    return None


def _how(reproduction: Reproduction, commands: Commands) -> Iterator[Item]:
    yield Listing("The command of each cell.", "\n\n".join(dict.fromkeys(commands.values())) or "no run")
    recipes = {to_json(run.experiment.recipe): None for run in reproduction.runs}
    for text in recipes:
        yield Listing("Recipe.", text)
    starts = read_provenance(reproduction.runs)
    for run in starts.environments if starts else ():
        yield Listing("Environment.", json.dumps(run, indent=2, ensure_ascii=False))


def _provenance(reproduction: Reproduction) -> tuple[tuple[str, str], ...]:
    starts = read_provenance(reproduction.runs)
    if starts is None:
        return (("runs", "no run has begun"),)
    last = starts.environments[-1]
    versions = f"kilolayer {last['kilolayer']}, PyTorch {last['torch']}, Python {last['python']}"
    machine = f"{last['gpu'] or last['processor']}, {last['cores']} cores"
    return (("versions", versions), ("machine", machine), ("date", f"{starts.first} to {starts.last}"))
