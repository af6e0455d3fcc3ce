"""Runs analyses: every one asked for, of every network, at every snapshot of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kilolayer.chart import Analysis
from kilolayer.errors import InputError
from kilolayer.measure.analyses import ANALYSES
from kilolayer.measure.analysis_input import AnalysisInput
from kilolayer.measure.snapshot_trends import collect_trends
from kilolayer.system.terminal import status_line


@dataclass(frozen=True)
class AnalysisResult:
    """One analysis of one network; `iteration` is that of a snapshot, else None."""

    analysis_name: str
    analysis: Analysis
    iteration: int | None = None


def run_analyses(name: str, inputs: Sequence[AnalysisInput]) -> list[AnalysisResult]:
    """Carries out the analysis called `name`, or "all", on every input.

    Args:
        name: a name of `kilolayer.measure.analyses.ANALYSES`, or "all".
        inputs: the networks with their images.

    Returns:
        The results, analysis by analysis and network by network. Where a network has snapshots and the
        analysis tracks metrics, there is a result for every snapshot, and then one of the trends.

    Raises:
        InputError: no analysis has that name, or a network does not allow it.
    """
    if name != "all" and name not in ANALYSES:
        raise InputError(f"no analysis {name!r}; allowed: {', '.join(ANALYSES)}, all")
    names = list(ANALYSES) if name == "all" else [name]
    with status_line() as say:
        return [
            result
            for analysis_name in names
            for analysis_input in inputs
            for result in _results(analysis_name, analysis_input, say)
        ]


def _results(
    name: str, analysis_input: AnalysisInput, say: Callable[[str], None]
) -> Iterator[AnalysisResult]:
    entry, snapshots = ANALYSES[name], []
    if not (entry.at_snapshots and analysis_input.snapshots):
        say(f"{name} of {analysis_input.name}")
        yield AnalysisResult(name, entry.run(analysis_input))
        return
    for index, (iteration, _) in enumerate(analysis_input.snapshots):
        say(f"{name} of {analysis_input.name}, iteration {iteration:,}")
        snapshots.append((iteration, entry.run(analysis_input.at_snapshot(index))))
        yield AnalysisResult(name, snapshots[-1][1], iteration)
    if trends := collect_trends(name, snapshots):
        yield AnalysisResult(name, trends)
