"""Audits a module: traces it, splits it into units, and compares them with the papers'."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from kilolayer.audit.audit_report import AuditReport, NearestNetwork, NetworkContent, StageContent
from kilolayer.audit.canonical import CanonicalNetwork, canonical_trace
from kilolayer.audit.certificate import with_proof
from kilolayer.audit.context import AuditContext, layers_text
from kilolayer.audit.dataflow import DataflowGraph
from kilolayer.audit.identify import DescriptionFit, fit_description, read_branch_shapes
from kilolayer.audit.layer_reader import LinearLayer, OtherLayer
from kilolayer.audit.nearest import NearestCandidate, find_nearest, shortcut_option
from kilolayer.audit.network_label import read_label
from kilolayer.audit.structure import (
    GraphStructure,
    count_additions,
    count_depth,
    describe_structure,
    hidden_additions,
)
from kilolayer.audit.trace import Trace, trace_model
from kilolayer.audit.traced_units import find_units
from kilolayer.errors import InputError
from kilolayer.networks.description import Network
from kilolayer.units import ops as op
from kilolayer.units.branch import Aggregated
from kilolayer.units.shortcut import Zero


def audit_model(model: nn.Module, label: str | None = None, *, side: int | None = None) -> AuditReport:
    """Says what a module is, by tracing one image through it and feeding signals to its shortcuts.

    Class names say nothing here, except for the `label`, which is compared with the content. The module is
    not changed.

    Args:
        model: any module that takes a batch of images, (1, C, side, side).
        label: what the network calls itself; by default the class's name.
        side: pixels a side of the traced image; by default the usual sizes are tried in turn.

    Raises:
        InputError: the module takes no image, or its output does not depend on it.

    >>> from kilolayer.networks import build, describe
    >>> report = audit_model(build(describe("resnet20_cifar")), "resnet32_cifar")
    >>> [(finding.severity, finding.code) for finding in report.findings]
    [('fault', 'label')]
    """
    label = type(model).__name__ if label is None else label
    traced = trace_model(model, side)
    graph = DataflowGraph(traced)
    units = find_units(graph)
    structure = GraphStructure(graph, units)
    canonical = canonical_trace(units)
    gate_bias = next((unit.gate_bias for unit in units.units if unit.g), 0.0)
    is_whole = bool(canonical.units) and not _hides_weights(canonical) and not hidden_additions(graph, units)
    description_fit = fit_description(canonical, gate_bias) if is_whole else None
    nearest = _nearest_or_none(description_fit)
    description_fit = description_fit if nearest else None
    names = set(graph.parameters.values())
    context = AuditContext(
        traced=units,
        canonical=canonical,
        parameters=traced.parameter_count,
        unused=tuple(sorted(names - graph.used_parameters())),
        branch_shapes=read_branch_shapes(canonical) if canonical.units else None,
        fit=description_fit,
        nearest=nearest,
        label=read_label(label),
        text=label,
        has_one_output=len(graph.outputs) == 1,
        additions=count_additions(graph),
        shared=structure.shared,
        decides=structure.decides,
        unread_joins=structure.unread_joins,
    )
    proven, context, findings = with_proof(nearest_network(context), context, model, traced, graph)
    content = _with_measures(network_content(context), context, structure, traced)
    return AuditReport(label, "traced", content, proven, findings, traced.remarks)


def _nearest_or_none(fit: DescriptionFit | None) -> NearestCandidate | None:
    """The nearest network; None where the papers' names have no word for the widths."""
    try:
        return find_nearest(fit.network) if fit else None
    except InputError:
        return None


def _hides_weights(canonical: CanonicalNetwork) -> bool:
    """Whether paths of weight layers meet between or inside of units: then the units are not all of it."""
    between = [layer for unit in canonical.units for layer in unit.edge]
    inside = [layer for unit in canonical.units for layer in (*unit.h, *unit.F)]
    return any(isinstance(layer, op.ParallelPaths) or _joins(layer) for layer in between) or any(
        _joins(layer) and layer.join != "mul" for layer in inside if isinstance(layer, OtherLayer)
    )


def _joins(layer: object) -> bool:
    return isinstance(layer, OtherLayer) and bool(layer.join) and layer.weights > 0


def _with_measures(
    content: NetworkContent, context: AuditContext, structure: GraphStructure, traced: Trace
) -> NetworkContent:
    """`content` with what is counted in the graph: depth, outputs, input channels, structure."""
    shapes = {name: node.shape for name, node in structure.graph.outputs.items()}
    single = next(iter(shapes.values())) if len(shapes) == 1 else ()
    linear = next(
        (layer for layer in reversed(context.canonical.tail) if isinstance(layer, LinearLayer)), None
    )
    is_classifier = len(single) == 2 and linear is not None and linear.out_features == single[1]
    return replace(
        content,
        depth=count_depth(structure),
        classes=single[1] if is_classifier else None,
        in_chans=traced.channels or None,
        outputs=() if is_classifier else tuple(_output_text(name, shape) for name, shape in shapes.items()),
        structure=None if context.fit else describe_structure(structure),
    )


def _output_text(name: str, shape: tuple[int, ...]) -> str:
    sizes = "×".join(map(str, shape)) or "one number"
    return f"{name}: {sizes}" if name else sizes


def nearest_network(context: AuditContext) -> NearestNetwork | None:
    """The nearest network with the classes and channels of the audited one; None for foreign units."""
    if context.fit is None or context.nearest is None:
        return None
    nearest, network = context.nearest, context.fit.network
    has_classes = any(isinstance(layer, LinearLayer) for layer in context.canonical.tail)
    return NearestNetwork(
        nearest.name,
        nearest.choices,
        _parameters_as_given(nearest, network, has_classes=has_classes),
        False,
        tuple(difference.text for difference in nearest.differences),
    )


def _parameters_as_given(candidate: NearestCandidate, network: Network, *, has_classes: bool) -> int:
    """The candidate's parameters with the classes and channels of `network`; its own classes without any."""
    classes = network.num_classes if has_classes else candidate.network.num_classes
    return replace(candidate.network, num_classes=classes, in_chans=network.in_chans).parameters


def network_content(context: AuditContext) -> NetworkContent:
    """What the units say that the network is, in plain values."""
    common = NetworkContent(parameters=context.parameters)
    return _with_description(common, context) if context.fit else common


def _with_description(common: NetworkContent, context: AuditContext) -> NetworkContent:
    assert context.fit is not None  # noqa: S101 - the caller asked
    network = context.fit.network
    branch = network.unit.branch
    aggregated = isinstance(branch, Aggregated)
    return replace(
        common,
        family=family_name(network),
        arrangement=context.fit.arrangement or "other",
        alternatives=context.fit.equivalents,
        branch=type(branch).__name__.lower(),
        cardinality=branch.cardinality if isinstance(branch, Aggregated) else None,
        d=branch.path_width(network.stages[0].width) if isinstance(branch, Aggregated) else None,
        widen=None if aggregated else getattr(branch, "widen", None),
        stride_on=getattr(branch, "stride_on", None),
        shortcut=str(network.unit.h),
        option=shortcut_option(network),
        stem=layers_text(context.canonical.units[0].edge),
        depth=network.depth,
        stages=_stages(context),
        in_chans=network.in_chans,
    )


def family_name(network: Network) -> str:
    """The papers' word for a network: plain, ResNeXt, wide, v2 (pre-activation) or v1."""
    if isinstance(network.unit.h, Zero):
        return "plain"
    if isinstance(network.unit.branch, Aggregated):
        return "ResNeXt"
    if getattr(network.unit.branch, "widen", 1) > 1:
        return "wide"
    return "v2 (pre-activation)" if network.unit.arrangement.before else "v1"


def _stages(context: AuditContext) -> tuple[StageContent, ...]:
    assert context.fit is not None and context.branch_shapes is not None  # noqa: S101, PT018 - the caller asked
    widths = [stage.width for stage in context.fit.network.stages]
    firsts = zip(widths, context.branch_shapes.counts, context.branch_shapes.first_of_stages, strict=True)
    return tuple(
        StageContent(count, width, shape.inner, shape.out, shape.stride) for width, count, shape in firsts
    )
