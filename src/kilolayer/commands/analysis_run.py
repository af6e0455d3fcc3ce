"""Analyses carried out: every one asked for, of every network, at every snapshot of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kilolayer.analysis.chart import Analysis
from kilolayer.analysis.over_training import over_training
from kilolayer.analysis.subject import Subject
from kilolayer.commands.analyses import ANALYSES
from kilolayer.errors import InputError
from kilolayer.terminal import status


@dataclass(frozen=True)
class Measured:
    """One analysis of one network; `iteration` is that of a snapshot, else None."""

    what: str
    analysis: Analysis
    iteration: int | None = None


def measured(what: str, subjects: Sequence[Subject]) -> list[Measured]:
    """The analysis called `what`, or all, of every subject. Raises `InputError` where one cannot be made."""
    if what != "all" and what not in ANALYSES:
        raise InputError(f"no analysis {what!r}; allowed: {', '.join(ANALYSES)}, all")
    words = list(ANALYSES) if what == "all" else [what]
    with status() as say:
        return [one for word in words for subject in subjects for one in _of_subject(word, subject, say)]


def _of_subject(word: str, subject: Subject, say: Callable[[str], None]) -> Iterator[Measured]:
    """The analysis at every snapshot, then what changed from one to the next; or as the network is now."""
    kind, moments = ANALYSES[word], []
    if not (kind.over_training and subject.moments):
        say(f"{word} of {subject.name}")
        yield Measured(word, kind.of(subject))
        return
    for place, (iteration, _) in enumerate(subject.moments):
        say(f"{word} of {subject.name}, iteration {iteration:,}")
        moments.append((iteration, kind.of(subject.at(place))))
        yield Measured(word, moments[-1][1], iteration)
    if followed := over_training(word, moments):
        yield Measured(word, followed)
