"""The page of one run, or of several that lie in one folder."""

from __future__ import annotations

import json
from pathlib import Path

from kilolayer.commands import curve_figures
from kilolayer.commands.run_finding import finding
from kilolayer.errors import InputError
from kilolayer.report.content import Figure, Listing, Page, Section, Table
from kilolayer.report.curves import Curve, read_metrics
from kilolayer.report.page import write
from kilolayer.runs import Run

HEADER = ("run", "status", "test error %", "validation error %", "epochs", "iterations", "images/s")


def write_runs_page(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """report.html in `folder`, for the run that it is or the runs below it, and what was found.

    Raises `InputError` if there is no run.
    """
    runs = _runs(folder)
    found = finding(runs)
    title = folder.resolve().name
    caption = "Every run with its figures after the last epoch; lower errors are better."
    table = Table(caption, HEADER, tuple(map(_row, runs.items())))
    listings = tuple(listing for name, run in runs.items() for listing in _listings(name, run))
    sections = (
        Section("What was found", found, _figures(runs, title)),
        Section("All figures", (), (table, *_rates(runs, title))),
        Section("How to repeat it", (), listings),
    )
    page = Page(title, f"{len(runs)} run{'s' * (len(runs) > 1)}", sections)
    return write(page, folder / "report.html"), found


def _figures(runs: dict[str, Run], title: str) -> tuple[Figure, ...]:
    curves = [
        Curve.from_metrics(name, read_metrics(run.file("metrics.jsonl")))
        for name, run in runs.items()
        if run.file("metrics.jsonl").exists()
    ]
    return tuple(curve_figures.drawn(curves, title))


def _rates(runs: dict[str, Run], title: str) -> tuple[Figure, ...]:
    recipes = {name: run.experiment().recipe for name, run in runs.items()}
    return (curve_figures.rates(recipes, title),)


def _runs(folder: Path) -> dict[str, Run]:
    """The runs by their path below the folder."""
    if (folder / "config.json").is_file():
        return {folder.resolve().name: Run.open(folder)}
    configs = sorted(folder.glob("**/config.json"))
    if not configs:
        raise InputError(f"{folder} holds neither a sweep nor a run")
    return {str(config.parent.relative_to(folder)): Run.open(config.parent) for config in configs}


def _row(named: tuple[str, Run]) -> tuple[str, ...]:
    name, run = named
    result, rows = run.result() or {}, run.metrics()
    last = rows[-1] if rows else {}
    return (
        name,
        str(result.get("status", "not finished")),
        _number(result.get("test_error")),
        _number(last.get("validation_error")),
        str(last.get("epoch", 0)),
        str(last.get("iteration", 0)),
        _number(last.get("images_per_second"), 0),
    )


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _listings(name: str, run: Run) -> tuple[Listing, ...]:
    text = run.file("config.json").read_text(encoding="utf-8", errors="replace")
    config, starts = Listing(f"{name}: the experiment.", text), run.environments()
    if not starts:
        return (config,)
    return config, Listing(f"{name}: every start.", json.dumps(starts, indent=2, ensure_ascii=False))
