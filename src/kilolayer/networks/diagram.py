"""What a drawing of a unit shows, whatever it is drawn with: p, h, g, F and f as labelled steps."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from kilolayer.units import ops as op
from kilolayer.units.ops import Op, Ops
from kilolayer.units.unit import Layout, Unit, layout

Kind = Literal["conv", "norm", "activation", "gate", "other", "open", "close"]


@dataclass(frozen=True)
class Step:
    """One labelled layer; "open" and "close" stand around the layers of one of several equal paths."""

    kind: Kind
    label: str


Steps = tuple[Step, ...]


@dataclass(frozen=True)
class Diagram:
    """x passes p, splits into h, F and, where there is one, the gate g; ⊕ joins them, and f ends the unit."""

    p: Steps
    h: Steps
    g: Steps
    F: Steps
    f: Steps

    @property
    def columns(self) -> tuple[Steps, ...]:
        """The parallel parts from the shortcut to F."""
        return (self.h, self.g, self.F) if self.g else (self.h, self.F)

    @property
    def caption(self) -> str:
        """The diagram as a sentence, for those who cannot see it."""
        parts = ((field.name, getattr(self, field.name)) for field in fields(self))
        described = (f"{name}: {', '.join(step.label for step in steps)}" for name, steps in parts if steps)
        return "Residual unit. " + "; ".join(described)


def diagram(unit: Unit | Layout) -> Diagram:
    """The steps of `unit`; a `Unit` is taken where it keeps its shape, at a stage of width 64."""
    made = unit if isinstance(unit, Layout) else layout(unit, unit.branch.out_channels(64), 64)
    h, g, F = steps(made.h), steps(made.g), steps(made.F)
    if g:
        g += (Step("gate", "g = σ"),)
        h += (Step("gate", "× (1−g)"),)
        F += (Step("gate", "× g"),) if made.gates_branch else ()
    return Diagram(steps(made.p), h, g, F, steps(made.f))


def steps(ops: Ops) -> Steps:
    """`ops` in order; of parallel paths, which are all alike, one is shown."""
    return tuple(step for spec in ops for step in _steps(spec))


def _steps(spec: Op) -> Steps:
    if isinstance(spec, op.Paths):
        return Step("open", f"{len(spec.paths)} paths"), *steps(spec.paths[0]), Step("close", spec.join)
    return (Step(spec.style, spec.label),)
