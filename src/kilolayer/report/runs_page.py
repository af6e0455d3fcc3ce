"""The page of one run, or of all runs in a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from kilolayer.errors import InputError
from kilolayer.networks import Network
from kilolayer.report import curve_figures
from kilolayer.report.curves import Curve
from kilolayer.report.document import Figure, Listing, Page, Section, Table
from kilolayer.report.network_text import unit_kind
from kilolayer.report.page import write_page
from kilolayer.report.run_finding import data_name, reached_iteration, run_findings
from kilolayer.runs import Run
from kilolayer.system.folder_listing import files_below
from kilolayer.units import ARRANGEMENTS, Identity

HEADER = (
    "run",
    "model",
    "data",
    "status",
    "test error %",
    "validation error %",
    "epochs",
    "iterations",
    "images/s",
)


def write_runs_page(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Writes report.html into `folder`, which is a run or contains runs. Returns its path and the findings.

    Raises:
        InputError: there is no run.
    """
    runs, omissions = _runs(folder)
    sentences = (*run_findings(runs), *omissions)
    title = folder.resolve().name
    caption = "All runs, with their figures after the last epoch. Lower errors are better."
    table = _drop_constant_columns(Table(caption, HEADER, tuple(map(_row, runs.items()))))
    numbers = curve_figures.colour_numbers(runs)
    listings = tuple(listing for name, run in runs.items() for listing in _listings(name, run))
    sections = (
        Section("Findings", sentences, _figures(runs, title, numbers)),
        Section("All figures", (), (table, *_rates(runs, title, numbers))),
        Section("How to repeat it", (), listings),
    )
    page = Page(title, f"{len(runs)} run{'s' * (len(runs) > 1)}", sections)
    return write_page(page, folder / "report.html"), sentences


def _figures(runs: dict[str, Run], title: str, numbers: Mapping[str, int]) -> tuple[Figure, ...]:
    curves = [
        Curve.from_metrics(name, run.metrics())
        for name, run in runs.items()
        if run.read("metrics.jsonl") is not None
    ]
    return tuple(curve_figures.training_figures(curves, title, numbers))


def _rates(runs: dict[str, Run], title: str, numbers: Mapping[str, int]) -> tuple[Figure, ...]:
    recipes = {name: run.experiment().recipe for name, run in runs.items()}
    return (curve_figures.learning_rate_figure(recipes, title, numbers),)


def _runs(folder: Path) -> tuple[dict[str, Run], tuple[str, ...]]:
    """The runs by their path below the folder, sorted by data and depth, and a sentence for each omitted run.

    A run is omitted where its description cannot be read, as that of a unit whose file --unit does not name.
    """
    if (folder / "config.json").is_file():
        return {folder.resolve().name: Run.open(folder)}, ()
    configs = files_below(folder, "config.json")
    if not configs:
        raise InputError(f"{folder} holds neither a sweep nor a run")
    runs: dict[str, Run] = {}
    errors: list[InputError] = []
    for config in configs:
        try:
            run = Run.open(config.parent, below=folder)
            run.experiment()
        except InputError as error:
            errors.append(error)
        else:
            runs[str(config.parent.relative_to(folder))] = run
    if not runs:
        raise errors[0]
    omissions = tuple(f"A run is left out. {error}." for error in errors)
    return dict(sorted(runs.items(), key=_sort_key)), omissions


def _sort_key(item: tuple[str, Run]) -> tuple[str, int, int, str]:
    name, run = item
    experiment = run.experiment()
    return experiment.data.source, experiment.network.num_classes, experiment.network.depth, name


def _drop_constant_columns(table: Table) -> Table:
    """The table without the columns model and data where they are the same in all rows."""
    alike = {table.header.index(name) for name in ("model", "data")}
    alike = {at for at in alike if len({row[at] for row in table.rows}) == 1}

    def cut(row: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(cell for at, cell in enumerate(row) if at not in alike)

    return replace(table, header=cut(table.header), rows=tuple(map(cut, table.rows)))


def _model(network: Network) -> str:
    """A network in a few words: the properties in which runs differ most often."""
    arrangements = {arrangement: name for name, arrangement in ARRANGEMENTS.items()}
    arrangement = arrangements.get(network.unit.arrangement, "another arrangement")
    shortcut = "" if network.unit.h == Identity() else type(network.unit.h).__name__
    parts = (f"{network.depth} layers", unit_kind(network), arrangement.replace("_", " "), shortcut)
    return ", ".join(filter(None, parts))


def _row(item: tuple[str, Run]) -> tuple[str, ...]:
    name, run = item
    result, rows, experiment = run.result() or {}, run.metrics(), run.experiment()
    last = rows[-1] if rows else {}
    return (
        name,
        _model(experiment.network),
        data_name(experiment),
        str(result.get("status", "not finished")),
        _number(result.get("test_error")),
        _number(last.get("validation_error")),
        str(last.get("epoch", 0)),
        str(reached_iteration(run)),
        _number(last.get("images_per_second"), 0),
    )


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _listings(name: str, run: Run) -> tuple[Listing, ...]:
    text = (run.read("config.json") or b"").decode(errors="replace")
    config, starts = Listing(f"{name}: the experiment.", text), run.environments()
    if not starts:
        return (config,)
    return config, Listing(f"{name}: every start.", json.dumps(starts, indent=2, ensure_ascii=False))
