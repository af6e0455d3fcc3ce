"""Analyses on the terminal, as JSON, as figures, and as a page."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from kilolayer.chart import Chart, HasFinding
from kilolayer.errors import InputError
from kilolayer.measure.analysis_results import AnalysisResult
from kilolayer.measure.snapshot_trends import SnapshotTrends
from kilolayer.report.document import Table
from kilolayer.system import durable
from kilolayer.system.printer import print_json
from kilolayer.system.terminal import print_rows, print_table, print_text, terminal_size
from kilolayer.values import to_json_value

TERMINAL_ROWS = 7
"""The terminal shows a chart at this many units."""


def print_analyses(results: Sequence[AnalysisResult]) -> None:
    """Prints each analysis: its figures, a column for each network, and its first chart as a small table."""
    for name, networks in group_results(results).items():
        print_text(f"{name}\n", style="bold")
        for network, network_results in networks.items():
            for analysis in (
                result.analysis for result in network_results if isinstance(result.analysis, HasFinding)
            ):
                print_text(f"{network}: {analysis.finding()}.\n")
        print_table(_figures(networks), blocks=True)
        for network, network_results in networks.items():
            chart = network_results[0].analysis.charts()[0].with_values()
            print_text(f"\n{chart.title}: {network}\n")
            print_table(sample_chart(chart), blocks=True)
            if any(series.kind == "predicted" for series in chart.series):
                print_text("* predicted", style="dim")
            else:
                print_text("no prediction", style="dim")
        print_text("")


def group_results(results: Sequence[AnalysisResult]) -> dict[str, dict[str, list[AnalysisResult]]]:
    """Results by analysis and network: the newest snapshot, and the trend over training if there is one."""
    gathered: dict[str, dict[str, list[AnalysisResult]]] = {}
    for result in results:
        networks = gathered.setdefault(result.analysis_name, {})
        earlier = networks.get(result.analysis.network, [])
        of_training = isinstance(result.analysis, SnapshotTrends)
        networks[result.analysis.network] = [*earlier, result] if of_training else [result]
    return gathered


def _figures(networks: dict[str, list[AnalysisResult]]) -> Table:
    columns = [
        dict(row for result in results for row in result.analysis.summary()) for results in networks.values()
    ]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = tuple((name, *(column.get(name, "") for column in columns)) for name in names)
    # A terminal has no room for folders and long common beginnings; the sentences give the names in full.
    names_shown = short_names(list(networks)) if terminal_size(sys.stdout) else networks
    return Table("", ("", *names_shown), rows)


def short_names(names: Sequence[str]) -> list[str]:
    """The names without the folder, and without the leading parts that all of several names share.

    >>> short_names(["runs/resnet20_cifar-digits-s0-3f2a", "runs/resnet20_cifar-digits-s1-07bc"])
    ['s0-3f2a', 's1-07bc']
    """
    if len(names) == 1:
        return [names[0].rpartition("/")[2]]
    parts = [re.split(r"(?<=[/-])", name) for name in names]
    shared = len(list(takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False))))
    return ["".join(name_parts[shared:]) for name_parts in parts]


def sample_chart(chart: Chart) -> Table:
    """A chart's values at a few units from the first to the last. An asterisk marks predictions."""
    names = (f"{series.name}*" if series.kind == "predicted" else series.name for series in chart.series)
    places = sorted({x for series in chart.series for x in series.x})
    step = max(1, math.ceil((len(places) - 1) / (TERMINAL_ROWS - 1)))
    values_by_series = [dict(zip(series.x, series.y, strict=True)) for series in chart.series]
    chosen = dict.fromkeys([*places[::step], *places[-1:]])
    rows = tuple((f"{x:g}", *(_cell(column.get(x)) for column in values_by_series)) for x in chosen)
    return Table("", (chart.x_label, *names), rows)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def print_analyses_json(results: Sequence[AnalysisResult]) -> None:
    """Prints a JSON list of results, each with the name of its analysis."""
    print_json([_value(result) for result in results])


def write_analyses(results: Sequence[AnalysisResult], folder: str) -> None:
    """Writes ANALYSIS.json with every result, and ANALYSIS-CHART.svg with the networks below one another."""
    from kilolayer.report.chart_figures import chart_figure

    for analysis_name, networks in group_results(results).items():
        content = json.dumps(
            _record([result for result in results if result.analysis_name == analysis_name]),
            ensure_ascii=False,
        )
        durable.write_file(Path(folder) / f"{analysis_name}.json", content.encode())
        charts = [
            (network, chart.with_values())
            for network, network_results in networks.items()
            for result in network_results
            for chart in result.analysis.charts()
        ]
        for name in dict.fromkeys(chart.name for _, chart in charts):
            panels = [(network, chart) for network, chart in charts if chart.name == name and chart.series]
            if not panels:
                continue
            durable.write_file(Path(folder) / f"{analysis_name}-{name}.svg", chart_figure(panels).encode())


def write_analysis_page(results: Sequence[AnalysisResult], path: str) -> None:
    """Writes one interactive page with all results."""
    try:
        from kilolayer.report.lab import write_lab
    except ImportError:
        raise InputError("the interactive page is not part of this installation; leave out --html") from None
    write_lab(
        [(result.iteration, result.analysis) for result in results], Path(path), provenance=_provenance()
    )


def print_written_paths(folder: str | None, page: str | None) -> None:
    """Prints where the results and the page are."""
    print_rows({name: where for name, where in (("results", folder), ("page", page)) if where is not None})


def _provenance() -> list[tuple[str, str]]:
    environment = _environment()
    return [(name, str(environment[name])) for name in ("command", "kilolayer", "torch", "processor", "date")]


def _environment() -> dict[str, Any]:
    import torch

    from kilolayer.runs import environment_record
    from kilolayer.training import DistributedContext

    return environment_record(DistributedContext(torch.device("cpu")), "fp32")


def _record(results: Sequence[AnalysisResult]) -> dict[str, Any]:
    return {"environment": _environment(), "results": [_value(result) for result in results]}


def _value(result: AnalysisResult) -> dict[str, Any]:
    at = {} if result.iteration is None else {"iteration": result.iteration}
    return {"analysis": result.analysis_name, **at, **round_floats(to_json_value(result.analysis))}


def round_floats(value: Any) -> Any:
    """A JSON value with floats rounded to six digits; NaN and infinity, which JSON lacks, become None."""
    match value:
        case float():
            return float(f"{value:.6g}") if math.isfinite(value) else None
        case list():
            return [round_floats(item) for item in value]
        case dict():
            return {key: round_floats(item) for key, item in value.items()}
        case _:
            return value
