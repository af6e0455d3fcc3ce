"""Analyses carried out: every one asked for, of every network, at every snapshot of a run."""

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
    """One analysis of one network; `iteration` is that of a snapshot, else None."""

    analysis_name: str
    analysis: Analysis
    iteration: int | None = None


def run_analyses(name: str, subjects: Sequence[AnalysisInput]) -> list[AnalysisResult]:
    """The analysis called `what`, or all, of every subject. Raises `InputError` where one cannot be made."""
    if name != "all" and name not in ANALYSES:
        raise InputError(f"no analysis {name!r}; allowed: {', '.join(ANALYSES)}, all")
    words = list(ANALYSES) if name == "all" else [name]
    with status_line() as say:
        return [one for word in words for subject in subjects for one in _of_subject(word, subject, say)]


def _of_subject(word: str, subject: AnalysisInput, say: Callable[[str], None]) -> Iterator[AnalysisResult]:
    """The analysis at every snapshot, then what changed from one to the next; or as the network is now."""
    kind, moments = ANALYSES[word], []
    if not (kind.at_snapshots and subject.snapshots):
        say(f"{word} of {subject.name}")
        yield AnalysisResult(word, kind.run(subject))
        return
    for place, (iteration, _) in enumerate(subject.snapshots):
        say(f"{word} of {subject.name}, iteration {iteration:,}")
        moments.append((iteration, kind.run(subject.at_snapshot(place))))
        yield AnalysisResult(word, moments[-1][1], iteration)
    if followed := collect_trends(word, moments):
        yield AnalysisResult(word, followed)
