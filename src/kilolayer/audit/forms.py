"""One form for what was found and for what is described, so that `==` says "the same function"."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from kilolayer.audit.steps import AVERAGE, Linear, Step, Steps
from kilolayer.audit.units import FoundNetwork, FoundUnit
from kilolayer.networks.description import Network
from kilolayer.units import ops as op


@dataclass(frozen=True)
class Part:
    """A unit; `edge` is what stands between the addition before (or the image) and its split."""

    edge: Steps
    h: Steps
    F: Steps
    g: Steps = ()
    gates_branch: bool = False


@dataclass(frozen=True)
class Form:
    """All units, and what follows the last addition."""

    parts: tuple[Part, ...]
    end: Steps


def described(network: Network) -> Form:
    """The form of a description."""
    parts, edge = [], tuple(network.stem_ops)
    for placed in network.units():
        made = placed.layout
        gates = bool(made.g) and made.gates_branch
        parts.append(_part(Part((*edge, *made.p), _zero(made.h), made.F, made.g, gates)))
        edge = made.f
    head = (AVERAGE, Linear(network.channels, network.num_classes, True))
    return Form(tuple(parts), (*edge, *network.final_ops, *head))


def found(network: FoundNetwork) -> Form:
    """The form of what a graph showed."""
    units = list(network.units)
    if units and _runs_on_from_the_image(units[0]):
        units[0] = _without_stem(units)
    parts = (Part(unit.edge, unit.h, unit.F, unit.g, unit.gates_branch) for unit in units)
    return Form(tuple(map(_part, parts)), _with_linear(network.end))


def _with_linear(end: Steps) -> Steps:
    """A 1×1 convolution behind the pooling, where one pixel is left, is a fully-connected layer."""
    pooled = end.index(AVERAGE) if AVERAGE in end else len(end)
    head = (
        Linear(step.in_channels, step.out_channels, step.bias)
        if isinstance(step, op.Conv) and step.kernel == step.groups == 1
        else step
        for step in end[pooled:]
    )
    return (*end[:pooled], *head)


def without_biases(form: Form) -> Form:
    """The form with every convolution's bias left out, but the gates', whose equation has one."""
    parts = (
        replace(part, edge=_unbiased(part.edge), h=_unbiased(part.h), F=_unbiased(part.F))
        for part in form.parts
    )
    return Form(tuple(parts), _unbiased(form.end))


def _unbiased(steps: Steps) -> Steps:
    return tuple(replace(step, bias=False) if isinstance(step, op.Conv) else step for step in steps)


def _zero(h: Steps) -> Steps:
    return (op.Zero(),) if op.Scale(0.0) in h else h


def _part(part: Part) -> Part:
    """Of a plain unit, whose paths never part, what precedes the first convolution belongs to the edge."""
    if part.h != (op.Zero(),):
        return part
    first = next((i for i, step in enumerate(part.F) if has_weights(step)), 0)
    return replace(part, edge=(*part.edge, *part.F[:first]), F=part.F[first:])


def has_weights(step: Step) -> bool:
    return isinstance(step, (op.Conv, op.Paths, Linear))


def _runs_on_from_the_image(first: FoundUnit) -> bool:
    return not first.edge and first.h == (op.Zero(),)


def _without_stem(units: list[FoundUnit]) -> FoundUnit:
    """The first plain unit has as many layers as the second; the stem is what precedes them."""
    first = units[0]
    places = [i for i, step in enumerate(first.F) if has_weights(step)]
    layers = sum(map(has_weights, units[1].F)) if len(units) > 1 else len(places) - 1
    start = places[-layers]
    return replace(first, edge=first.F[:start], F=first.F[start:])


def convolutions(steps: Iterable[Step]) -> Iterator[op.Conv]:
    """Every convolution, those of parallel paths among them."""
    for step in steps:
        if isinstance(step, op.Conv):
            yield step
        elif isinstance(step, op.Paths):
            for path in step.paths:
                yield from convolutions(path)


def pattern(steps: Steps) -> str:
    """The kinds in order, as "BRCBRC": convolutions, normalisations, activations; the rest left out."""
    return "".join(_letter(step) for step in steps)


ACTIVATIONS = (
    "silu",
    "gelu",
    "elu",
    "leaky relu",
    "hardtanh",
    "hardswish",
    "prelu",
    "selu",
    "mish",
    "softplus",
)
NORMALISATIONS = ("native group norm", "native layer norm", "group norm", "layer norm")


def _letter(step: Step) -> str:
    if isinstance(step, (op.Conv, op.Paths)):
        return "C"
    if isinstance(step, op.BatchNorm) or getattr(step, "what", "") in NORMALISATIONS:
        return "B"
    return "R" if isinstance(step, op.ReLU) or getattr(step, "what", "") in ACTIVATIONS else ""
