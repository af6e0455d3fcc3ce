"""The canonical form of traced and described networks, in which `==` means "the same function"."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from kilolayer.audit.layer_reader import AVERAGE_POOLING, AuditLayer, AuditLayers, LinearLayer
from kilolayer.audit.traced_units import TracedNetwork, TracedUnit
from kilolayer.networks.description import Network
from kilolayer.units import ops as op


@dataclass(frozen=True)
class CanonicalUnit:
    """One unit as layers. `edge` stands between the previous addition (or the image) and the unit's split."""

    edge: AuditLayers
    h: AuditLayers
    F: AuditLayers
    g: AuditLayers = ()
    gates_branch: bool = False


@dataclass(frozen=True)
class CanonicalNetwork:
    """All units, and the layers behind the last addition."""

    units: tuple[CanonicalUnit, ...]
    tail: AuditLayers


def canonical_description(network: Network) -> CanonicalNetwork:
    """The canonical form of a description."""
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
    """The canonical form of a traced network."""
    units = list(network.units)
    if units and _includes_stem(units[0]):
        units[0] = _without_stem(units)
    parts = (CanonicalUnit(unit.edge, unit.h, unit.F, unit.g, unit.gates_branch) for unit in units)
    return CanonicalNetwork(tuple(map(_canonical_unit, parts)), _with_linear(network.tail))


def _with_linear(tail: AuditLayers) -> AuditLayers:
    """`tail` with 1×1 convolutions behind the pooling, where one pixel is left, as fully-connected layers."""
    pooled = tail.index(AVERAGE_POOLING) if AVERAGE_POOLING in tail else len(tail)
    head = (
        LinearLayer(layer.in_channels, layer.out_channels, layer.bias)
        if isinstance(layer, op.Conv) and layer.kernel == layer.groups == 1
        else layer
        for layer in tail[pooled:]
    )
    return (*tail[:pooled], *head)


def without_biases(canonical: CanonicalNetwork) -> CanonicalNetwork:
    """The network without the biases of its convolutions, except for gates, whose equation has one."""
    units = (
        replace(unit, edge=_without_bias(unit.edge), h=_without_bias(unit.h), F=_without_bias(unit.F))
        for unit in canonical.units
    )
    return CanonicalNetwork(tuple(units), _without_bias(canonical.tail))


def _without_bias(layers: AuditLayers) -> AuditLayers:
    return tuple(replace(layer, bias=False) if isinstance(layer, op.Conv) else layer for layer in layers)


def _canonical_zero(h: AuditLayers) -> AuditLayers:
    return (op.ZeroOp(),) if op.ScaleOp(0.0) in h else h


def _canonical_unit(unit: CanonicalUnit) -> CanonicalUnit:
    """The unit, with the layers before the first convolution moved to the edge if it is a plain one.

    A plain unit has no split that would say where it begins.
    """
    if unit.h != (op.ZeroOp(),):
        return unit
    first = next((i for i, layer in enumerate(unit.F) if has_weights(layer)), 0)
    return replace(unit, edge=(*unit.edge, *unit.F[:first]), F=unit.F[first:])


def has_weights(layer: AuditLayer) -> bool:
    return isinstance(layer, (op.Conv, op.ParallelPaths, LinearLayer))


def _includes_stem(first: TracedUnit) -> bool:
    return not first.edge and first.h == (op.ZeroOp(),)


def _without_stem(units: list[TracedUnit]) -> TracedUnit:
    """The first plain unit, cut to as many weight layers as the second has; the stem stands before them."""
    first = units[0]
    indices = [i for i, layer in enumerate(first.F) if has_weights(layer)]
    layers = sum(map(has_weights, units[1].F)) if len(units) > 1 else len(indices) - 1
    start = indices[-layers]
    return replace(first, edge=first.F[:start], F=first.F[start:])


def convolutions(layers: Iterable[AuditLayer]) -> Iterator[op.Conv]:
    """Every convolution, including those of parallel paths."""
    for layer in layers:
        if isinstance(layer, op.Conv):
            yield layer
        elif isinstance(layer, op.ParallelPaths):
            for path in layer.paths:
                yield from convolutions(path)


def layer_pattern(layers: AuditLayers) -> str:
    """The kinds of layers in order, as "BRCBRC": B normalises, R activates, C convolves, others no letter."""
    return "".join(_letter(layer) for layer in layers)


ACTIVATIONS = (
    "silu",
    "gelu",
    "elu",
    "leaky relu",
    "relu6",
    "hardswish",
    "prelu",
    "selu",
    "mish",
    "softplus",
)
NORMALISATIONS = ("group norm", "layer norm", "instance norm", "frozen batch norm")


def _letter(layer: AuditLayer) -> str:
    if isinstance(layer, (op.Conv, op.ParallelPaths)):
        return "C"
    if isinstance(layer, op.BatchNorm) or getattr(layer, "text", "") in NORMALISATIONS:
        return "B"
    return "R" if isinstance(layer, op.ReLU) or getattr(layer, "text", "") in ACTIVATIONS else ""
