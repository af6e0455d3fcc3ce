"""The content of a unit's drawing, in text or SVG: p, h, g, F and f as labelled steps."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from kilolayer.units import ops as op
from kilolayer.units.ops import Op, Ops
from kilolayer.units.unit import Layout, Unit, layout

StepKind = Literal["conv", "norm", "activation", "gate", "other", "open", "close"]


@dataclass(frozen=True)
class DiagramStep:
    """One labelled layer; "open" and "close" enclose the layers of one of several equal paths."""

    kind: StepKind
    label: str


DiagramSteps = tuple[DiagramStep, ...]


@dataclass(frozen=True)
class Diagram:
    """p, then h and F (and a gate g) side by side, then their sum ⊕, then f."""

    p: DiagramSteps
    h: DiagramSteps
    g: DiagramSteps
    F: DiagramSteps
    f: DiagramSteps

    @property
    def columns(self) -> tuple[DiagramSteps, ...]:
        """The parts that stand side by side, from the shortcut to F."""
        return (self.h, self.g, self.F) if self.g else (self.h, self.F)

    @property
    def caption(self) -> str:
        """The diagram as a sentence, for readers who cannot see it."""
        parts = ((field.name, getattr(self, field.name)) for field in fields(self))
        described = (f"{name}: {', '.join(step.label for step in steps)}" for name, steps in parts if steps)
        return "Residual unit. " + "; ".join(described)


def unit_diagram(unit: Unit | Layout) -> Diagram:
    """The diagram of `unit`. A `Unit` is drawn without a change of shape, at a stage of width 64.

    >>> from kilolayer.units import BASIC
    >>> [step.label for step in unit_diagram(BASIC).F]
    ['3×3, 64 → 64', 'BN', 'ReLU', '3×3, 64 → 64', 'BN']
    """
    unit_layout = unit if isinstance(unit, Layout) else layout(unit, unit.branch.out_channels(64), 64)
    h, g, F = diagram_steps(unit_layout.h), diagram_steps(unit_layout.g), diagram_steps(unit_layout.F)
    if g:
        g += (DiagramStep("gate", "g = σ"),)
        h += (DiagramStep("gate", "× (1−g)"),)
        F += (DiagramStep("gate", "× g"),) if unit_layout.gates_branch else ()
    return Diagram(diagram_steps(unit_layout.p), h, g, F, diagram_steps(unit_layout.f))


def diagram_steps(ops: Ops) -> DiagramSteps:
    """`ops` as steps, with one of several parallel paths, which are all equal."""
    return tuple(step for spec in ops for step in _layer_steps(spec))


def _layer_steps(spec: Op) -> DiagramSteps:
    if isinstance(spec, op.ParallelPaths):
        return (
            DiagramStep("open", f"{len(spec.paths)} paths"),
            *diagram_steps(spec.paths[0]),
            DiagramStep("close", spec.join),
        )
    return (DiagramStep(spec.style, spec.label),)
