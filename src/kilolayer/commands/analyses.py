"""The analyses by name: each a function of a `Subject`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kilolayer.analysis.chart import Analysis
from kilolayer.analysis.decomposition import Decomposition, decomposition
from kilolayer.analysis.gradient import Gradient, gradient
from kilolayer.analysis.initialisation import initialisation
from kilolayer.analysis.jacobian import jacobian
from kilolayer.analysis.landscape import landscape
from kilolayer.analysis.paths import paths
from kilolayer.analysis.responses import Responses, responses
from kilolayer.analysis.shortcut import Shortcut, shortcut
from kilolayer.analysis.subject import Subject


@dataclass(frozen=True)
class Kind:
    """How an analysis is made of a subject; `over_training`: also at every snapshot of its run."""

    of: Callable[[Subject], Analysis]
    over_training: bool = False


def _decomposition(subject: Subject) -> Decomposition:
    return decomposition(subject.model, subject.x, network=subject.name, units=subject.units)


def _gradient(subject: Subject) -> Gradient:
    return gradient(subject.model, subject.x, subject.labels, network=subject.name, units=subject.units)


def _shortcut(subject: Subject) -> Shortcut:
    return shortcut(subject.model, subject.x, network=subject.name, units=subject.units)


def _responses(subject: Subject) -> Responses:
    return responses(subject.model, subject.x, network=subject.name)


ANALYSES: dict[str, Kind] = {
    "decomposition": Kind(_decomposition, over_training=True),
    "gradient": Kind(_gradient, over_training=True),
    "shortcut": Kind(_shortcut, over_training=True),
    "responses": Kind(_responses, over_training=True),
    "initialisation": Kind(initialisation),
    "paths": Kind(paths),
    "jacobian": Kind(jacobian),
    "landscape": Kind(landscape),
}
