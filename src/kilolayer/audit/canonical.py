"""One form for what was found and for what is described, so that `==` says "the same function"."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from kilolayer.audit.layer_reader import AVERAGE_POOLING, AuditLayer, AuditLayers, LinearLayer
from kilolayer.audit.traced_units import TracedNetwork, TracedUnit
from kilolayer.networks.description import Network
from kilolayer.units import ops as op


@dataclass(frozen=True)
class CanonicalUnit:
    """A unit; `edge` is what stands between the addition before (or the image) and its split."""

    edge: AuditLayers
    h: AuditLayers
    F: AuditLayers
    g: AuditLayers = ()
    gates_branch: bool = False


@dataclass(frozen=True)
class CanonicalNetwork:
    """All units, and what follows the last addition."""

    units: tuple[CanonicalUnit, ...]
    tail: AuditLayers


def canonical_description(network: Network) -> CanonicalNetwork:
    """The form of a description."""
    units, edge = [], tuple(network.stem_ops)
    for placed in network.units():
        layout = placed.layout
        gates = bool(layout.g) and layout.gates_branch
        units.append(
            _canonical_unit(
                CanonicalUnit((*edge, *layout.p), _canonical_zero(layout.h), layout.F, layout.g, gates)
            )
        )
        edge = layout.f
    head = (AVERAGE_POOLING, LinearLayer(network.channels, network.num_classes, True))
    return CanonicalNetwork(tuple(units), (*edge, *network.final_ops, *head))


def canonical_trace(network: TracedNetwork) -> CanonicalNetwork:
    """The form of what a graph showed."""
    units = list(network.units)
    if units and _includes_stem(units[0]):
        units[0] = _without_stem(units)
    parts = (CanonicalUnit(unit.edge, unit.h, unit.F, unit.g, unit.gates_branch) for unit in units)
    return CanonicalNetwork(tuple(map(_canonical_unit, parts)), _with_linear(network.tail))


def _with_linear(end: AuditLayers) -> AuditLayers:
    """A 1×1 convolution behind the pooling, where one pixel is left, is a fully-connected layer."""
    pooled = end.index(AVERAGE_POOLING) if AVERAGE_POOLING in end else len(end)
    head = (
        LinearLayer(step.in_channels, step.out_channels, step.bias)
        if isinstance(step, op.Conv) and step.kernel == step.groups == 1
        else step
        for step in end[pooled:]
    )
    return (*end[:pooled], *head)


def without_biases(canonical: CanonicalNetwork) -> CanonicalNetwork:
    """The form with every convolution's bias left out, but the gates', whose equation has one."""
    units = (
        replace(part, edge=_without_bias(part.edge), h=_without_bias(part.h), F=_without_bias(part.F))
        for part in canonical.units
    )
    return CanonicalNetwork(tuple(units), _without_bias(canonical.tail))


def _without_bias(layers: AuditLayers) -> AuditLayers:
    return tuple(replace(step, bias=False) if isinstance(step, op.Conv) else step for step in layers)


def _canonical_zero(h: AuditLayers) -> AuditLayers:
    return (op.ZeroOp(),) if op.ScaleOp(0.0) in h else h


def _canonical_unit(part: CanonicalUnit) -> CanonicalUnit:
    """Of a plain unit, whose paths never part, what precedes the first convolution belongs to the edge."""
    if part.h != (op.ZeroOp(),):
        return part
    first = next((i for i, step in enumerate(part.F) if has_weights(step)), 0)
    return replace(part, edge=(*part.edge, *part.F[:first]), F=part.F[first:])


def has_weights(layer: AuditLayer) -> bool:
    return isinstance(layer, (op.Conv, op.ParallelPaths, LinearLayer))


def _includes_stem(first: TracedUnit) -> bool:
    return not first.edge and first.h == (op.ZeroOp(),)


def _without_stem(units: list[TracedUnit]) -> TracedUnit:
    """The first plain unit has as many layers as the second; the stem is what precedes them."""
    first = units[0]
    places = [i for i, step in enumerate(first.F) if has_weights(step)]
    layers = sum(map(has_weights, units[1].F)) if len(units) > 1 else len(places) - 1
    start = places[-layers]
    return replace(first, edge=first.F[:start], F=first.F[start:])


def convolutions(layers: Iterable[AuditLayer]) -> Iterator[op.Conv]:
    """Every convolution, those of parallel paths among them."""
    for step in layers:
        if isinstance(step, op.Conv):
            yield step
        elif isinstance(step, op.ParallelPaths):
            for path in step.paths:
                yield from convolutions(path)


def layer_pattern(layers: AuditLayers) -> str:
    """The kinds in order, as "BRCBRC": convolutions, normalisations, activations; the rest left out."""
    return "".join(_letter(step) for step in layers)


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


def _letter(layer: AuditLayer) -> str:
    if isinstance(layer, (op.Conv, op.ParallelPaths)):
        return "C"
    if isinstance(layer, op.BatchNorm) or getattr(layer, "text", "") in NORMALISATIONS:
        return "B"
    return "R" if isinstance(layer, op.ReLU) or getattr(layer, "text", "") in ACTIVATIONS else ""
