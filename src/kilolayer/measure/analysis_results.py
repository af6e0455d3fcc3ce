"""Runs analyses: each requested one, of each network, at each snapshot of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kilolayer.chart import Analysis
from kilolayer.errors import InputError
from kilolayer.measure.all_analyses import ANALYSES
from kilolayer.measure.analysis_input import AnalysisInput
from kilolayer.measure.snapshot_trends import collect_trends
from kilolayer.system.terminal import status_line


@dataclass(frozen=True)
class AnalysisResult:
    """One analysis of one network. `iteration` is the snapshot's; None without a snapshot."""

    analysis_name: str
    analysis: Analysis
    iteration: int | None = None


def run_analyses(name: str, subjects: Sequence[AnalysisInput]) -> list[AnalysisResult]:
    """Runs the analysis called `name`, or all of them, on every input.

    Raises:
        InputError: there is no analysis of that name, or an input does not allow it.
    """
    if name != "all" and name not in ANALYSES:
        raise InputError(f"no analysis {name!r}; allowed: {', '.join(ANALYSES)}, all")
    words = list(ANALYSES) if name == "all" else [name]
    with status_line() as say:
        return [
            result for word in words for subject in subjects for result in _analyse_input(word, subject, say)
        ]


def _analyse_input(word: str, subject: AnalysisInput, say: Callable[[str], None]) -> Iterator[AnalysisResult]:
    """The analysis at every snapshot, then the trend over them; without snapshots, of the network itself."""
    kind, moments = ANALYSES[word], []
    if not (kind.at_snapshots and subject.snapshots):
        say(f"{word} of {subject.name}")
        yield AnalysisResult(word, kind.run(subject))
        return
    for index, (iteration, _) in enumerate(subject.snapshots):
        say(f"{word} of {subject.name}, iteration {iteration:,}")
        moments.append((iteration, kind.run(subject.at_snapshot(index))))
        yield AnalysisResult(word, moments[-1][1], iteration)
    if followed := collect_trends(word, moments):
        yield AnalysisResult(word, followed)
