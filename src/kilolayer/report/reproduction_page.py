"""The page of a reproduction: measured beside reported figures, training curves, and how to repeat it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from kilolayer.measure.layer_responses import measure_run_responses
from kilolayer.report import comparison_tables as compared
from kilolayer.report import curve_figures
from kilolayer.report import reproduction_tables as tables
from kilolayer.report.chart_figures import chart_figure
from kilolayer.report.curves import Curve, read_metrics
from kilolayer.report.document import Figure, Item, Listing, Page, Section
from kilolayer.report.reproduction_finding import finding_sentence
from kilolayer.sweep.cell_result import CellResult
from kilolayer.sweep.provenance import read_provenance
from kilolayer.sweep.reproduction import Reproduction, Trial
from kilolayer.sweep.table_result import TableResult
from kilolayer.training import Recipe
from kilolayer.values import to_json

Commands = Mapping[tuple[str, str, str], str]


def build_reproduction_page(
    reproduction: Reproduction, findings: tuple[TableResult, ...], commands: Commands
) -> Page:
    """The page as a value. It reads the metrics of the runs whose curves it shows."""
    sections = [Section("Findings", tuple(finding_sentence(one) for one in findings))]
    sections += [_section(one) for one in findings]
    sections.append(Section("How to repeat it", (), tuple(_how(reproduction, commands))))
    names = ", ".join(f"{one.table.paper.label} {one.table.source}" for one in findings)
    return Page(
        title=f"Reproduction of {names}",
        subtitle="; ".join(dict.fromkeys(one.table.title for one in findings)),
        sections=tuple(sections),
        provenance=_provenance(reproduction),
    )


def _section(one: TableResult) -> Section:
    text = []
    if one.proxy:
        text.append(
            f"This is a {one.proxy}. Its absolute figures cannot be compared with the paper's; the ranking "
            f"of the rows and the gaps between them can."
        )
    text += [
        f"{one.table.paper.title} (arXiv {one.table.paper.arxiv}), {one.table.source}: {one.table.title}."
    ]
    text += [f"In the paper: {one.table.note}."] if one.table.note else []
    text += [*compared.ranking_sentences(one), *tables.verdict_lines(one)]
    shown = _responses(one) if one.cells[0].cell.metric == "layer responses" else _figures(one)
    items: list[Item] = [*tables.figure_tables(one), *compared.gap_tables(one), *shown]
    return Section(tables.table_label(one), tuple(text), tuple(items))


def _figures(one: TableResult) -> Iterator[Figure]:
    """The training curves of each column, one run a row and a few rows a figure; and the learning rates."""
    drawn: set[frozenset[str]] = set()
    recipes: dict[str, Recipe] = {}
    labels = [run[0] for finding in one.cells if (run := _shown_run(finding)) is not None]
    numbers = curve_figures.colour_numbers(labels, one.table.baseline)
    for column in dict.fromkeys(finding.cell.column for finding in one.cells):
        chosen = [f for f in one.cells if f.cell.column == column and f.keys not in drawn]
        shown = {f.cell.row: run for f in chosen if (run := _shown_run(f)) is not None}
        curves = {row: _curve(*run) for row, run in shown.items()}
        drawn |= {finding.keys for finding in chosen}
        recipes |= {label: trial.spec.experiment.recipe for label, trial in shown.values()}
        title = (
            tables.table_label(one) if len(one.table.columns) == 1 else f"{tables.table_label(one)}, {column}"
        )
        yield from curve_figures.training_figures(
            list(curves.values()), title, numbers, curves.get(one.table.baseline)
        )
    if recipes:
        yield curve_figures.learning_rate_figure(recipes, tables.table_label(one), numbers)


def _responses(one: TableResult) -> Iterator[Figure]:
    """The layer responses of each row's first finished run, in order and sorted (P1, Fig. 7)."""
    done = [
        (finding.cell.row, measure_run_responses(trial.spec.path))
        for finding in one.cells
        for trial, state in finding.states[:1]
        if state.result and state.result["status"] == "done"
    ]
    for place in range(2 if done else 0):
        charts = [(row, found.charts()[place]) for row, found in done]
        chart = charts[0][1]
        alt = "; ".join(f"{row}: {shown.note}" for row, shown in charts if shown.note) or chart.title
        yield Figure(f"{tables.table_label(one)}: {chart.title}.", chart_figure(charts), alt)


def _curve(label: str, trial: Trial) -> Curve:
    return Curve.from_metrics(label, read_metrics(trial.spec.path / "metrics.jsonl"))


def _shown_run(finding: CellResult) -> tuple[str, Trial] | None:
    """The first finished run of the first setting, and its label."""
    for trial, state in finding.states:
        metrics = trial.spec.path / "metrics.jsonl"
        if state.finished and metrics.exists():
            setting = finding.cell.plans[trial.setting].setting
            label = f"{finding.cell.row} ({setting})" if setting else finding.cell.row
            return label, trial
    return None


def _how(reproduction: Reproduction, commands: Commands) -> Iterator[Item]:
    yield Listing("The command of each cell.", "\n\n".join(dict.fromkeys(commands.values())) or "no run")
    recipes = {to_json(one.experiment.recipe): None for one in reproduction.runs}
    for text in recipes:
        yield Listing("Recipe.", text)
    starts = read_provenance(reproduction.runs)
    for one in starts.environments if starts else ():
        yield Listing("Environment.", json.dumps(one, indent=2, ensure_ascii=False))


def _provenance(reproduction: Reproduction) -> tuple[tuple[str, str], ...]:
    starts = read_provenance(reproduction.runs)
    if starts is None:
        return (("runs", "no run has begun"),)
    last = starts.environments[-1]
    versions = f"kilolayer {last['kilolayer']}, PyTorch {last['torch']}, Python {last['python']}"
    machine = f"{last['gpu'] or last['processor']}, {last['cores']} cores"
    return (("versions", versions), ("machine", machine), ("date", f"{starts.first} to {starts.last}"))
