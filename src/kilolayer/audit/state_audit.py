"""A state dict audited: what shapes and their order tell, and what they cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from kilolayer.audit.audit_report import AuditReport, NetworkContent
from kilolayer.audit.branch_shape import branch_and_widths
from kilolayer.audit.canonical import CanonicalNetwork, CanonicalUnit, canonical_description
from kilolayer.audit.context import AuditContext
from kilolayer.audit.identify import ARRANGEMENT_PREFERENCE, BranchShapes, DescriptionFit
from kilolayer.audit.layer_reader import AVERAGE_POOLING, AuditLayers
from kilolayer.audit.model_audit import nearest_network, network_content
from kilolayer.audit.nearest import find_nearest
from kilolayer.audit.network_label import read_label
from kilolayer.audit.rules import collect_findings
from kilolayer.audit.state_layers import StateLayer, StateUnit, chain_state_units, read_state_layers
from kilolayer.audit.traced_units import TracedNetwork, TracedUnit
from kilolayer.errors import InputError
from kilolayer.networks.description import Network, Stage, Stem
from kilolayer.units import ops as op
from kilolayer.units.arrangement import ARRANGEMENTS
from kilolayer.units.shortcut import Downsample, Identity, Projection, Shortcut, ShortcutGate, ZeroPad
from kilolayer.units.unit import Unit

UNKNOWN = (
    "strides, pooling and dropout: weights hold none, so the papers' are assumed",
    "where ReLU stands, and what projections and the first shortcut read",
    "whether a shortcut without weights is there at all, scaled, or zero-padded",
)


def audit_state(state: Mapping[str, Tensor], label: str = "state dict") -> AuditReport:
    """What a state dict's shapes and their order say of its network; `unknown` lists what they do not.

    Names group tensors into layers and put a sorted file in order; what a layer is its shapes say.
    Raises `InputError` for a state dict without tensors.
    """
    if not state:
        raise InputError(f"{label} holds no tensors")
    found = read_state_layers(state)
    parameters = sum(layer.parameters for layer in found)
    chained = chain_state_units(found)
    fitted = _fit_state(found, *chained) if chained else None
    if chained is None or fitted is None:
        unchained = "its convolutions do not chain into the papers' basic or bottleneck units"
        return AuditReport(label, "shapes", NetworkContent(parameters), unknown=(unchained, *UNKNOWN))
    fit, lacking = fitted
    case = _audit_context(label, parameters, chained[1], fit, lacking=lacking, biased=chained[0].bias)
    near = nearest_network(case)
    near = replace(near, identical=False) if near else None
    told = replace(network_content(case), stride_on=None)
    return AuditReport(label, "shapes", told, near, collect_findings(case), UNKNOWN)


def _audit_context(
    label: str, parameters: int, units: list[StateUnit], fit: DescriptionFit, *, lacking: bool, biased: bool
) -> AuditContext:
    """The fit's own form, with the biases and without the final activation, as the weights have it."""
    parts = []
    for i, (part, unit) in enumerate(zip(fit.canonical.units, units, strict=True)):
        edge = _with_bias(part.edge, biased and i == 0)
        h = _with_bias(part.h, unit.projection is not None and unit.projection.bias)
        parts.append(
            CanonicalUnit(edge, h, _with_bias(part.F, unit.convs[0].bias), part.g, part.gates_branch)
        )
    end = fit.canonical.tail[fit.canonical.tail.index(AVERAGE_POOLING) :] if lacking else fit.canonical.tail
    named = tuple(
        TracedUnit(_unit_name(unit), p.edge, p.h, p.F, p.g) for p, unit in zip(parts, units, strict=True)
    )
    return AuditContext(
        traced=TracedNetwork(named, end),
        canonical=CanonicalNetwork(tuple(parts), end),
        parameters=parameters,
        branch_shapes=_branch_shapes(units),
        fit=fit,
        nearest=find_nearest(fit.network),
        label=read_label(label),
    )


def _with_bias(layers: AuditLayers, bias: bool) -> AuditLayers:
    return tuple(replace(step, bias=bias) if isinstance(step, op.Conv) else step for step in layers)


def _unit_name(unit: StateUnit) -> str:
    return unit.convs[0].prefix.rpartition(".")[0]


def _branch_shapes(units: list[StateUnit]) -> BranchShapes:
    cores = tuple(unit.shape for unit in units)
    starts = tuple(i for i, each in enumerate(cores) if i == 0 or each.out != cores[i - 1].out)
    return BranchShapes(cores, starts)


def _fit_state(
    layers: list[StateLayer], stem: StateLayer, units: list[StateUnit]
) -> tuple[DescriptionFit, bool] | None:
    """The arrangement whose BNs have the widths found, and whether its final one is lacking."""
    base = _base_description(layers, stem, units)
    if base is None:
        return None
    widths = Counter(layer.vectors[0] for layer in layers if layer.is_norm)
    tried = []
    for name in ARRANGEMENT_PREFERENCE:
        network = replace(base, unit=replace(base.unit, arrangement=ARRANGEMENTS[name]))
        form = canonical_description(network)
        expected = _norm_widths(form)
        missing, more = expected - widths, widths - expected
        lacking = bool(network.final_ops) and missing[network.channels] == 1 and missing.total() == 1
        tried.append(
            (missing.total() + more.total(), name, DescriptionFit(network, form, name, (), False), lacking)
        )
    least = min(distance for distance, *_ in tried)
    best = [(name, fit, lacking) for distance, name, fit, lacking in tried if distance == least]
    final = _norm_outside_units(layers, units)
    chosen = [each for each in best if bool(each[1].network.final_ops and not each[2]) == final]
    (_, fit, lacking), *others = chosen or best
    return replace(fit, equivalents=tuple(name for name, *_ in others)), lacking


def _norm_widths(canonical: CanonicalNetwork) -> Counter[int]:
    steps = [*canonical.tail]
    for part in canonical.units:
        steps.extend((*part.edge, *part.h, *part.F, *part.g))
    return Counter(step.channels for step in steps if isinstance(step, op.BatchNorm))


def _base_description(layers: list[StateLayer], stem: StateLayer, units: list[StateUnit]) -> Network | None:
    """The description but for its arrangement."""
    cores = _branch_shapes(units)
    made = branch_and_widths(cores.first_of_stages, stem.kernel[0])
    if made is None:
        return None
    branch, widths = made
    h, resize = _read_shortcuts(units)
    counted = zip(cores.counts, widths, strict=True)
    stages = tuple(Stage(count, width, 2 if i else 1) for i, (count, width) in enumerate(counted))
    out, channels, kernel = stem.kernel[:3]
    imagenet = kernel == 7
    linear = next((layer.kernel[0] for layer in layers if len(layer.kernel) == 2), 1)
    try:
        described_stem = Stem(out, kernel, 2 if imagenet else 1, pool=imagenet)
        return Network(
            described_stem, stages, Unit(branch, h, downsample=resize), linear, channels, image_size=1024
        )
    except InputError:
        return None


def _read_shortcuts(units: list[StateUnit]) -> tuple[Shortcut, Downsample]:
    changing = [unit for unit in units if unit.shape.changes_shape]
    kept = [unit for unit in units if not unit.shape.changes_shape]
    projected = bool(changing) and all(unit.projection for unit in changing)
    h: Shortcut = Identity()
    if kept and all(unit.projection for unit in kept):
        h = Projection()
    elif any(unit.gate for unit in units):
        h = ShortcutGate(0.0)
    return h, Projection() if projected else ZeroPad()


def _norm_outside_units(layers: list[StateLayer], units: list[StateUnit]) -> bool:
    """Whether a BN as wide as the last unit stands apart from the units, as a final activation's does."""
    parts = [layer.prefix.split(".") for layer in layers if layer.is_conv]
    shared = 0
    while all(len(each) > shared + 1 for each in parts) and len({each[shared] for each in parts}) == 1:
        shared += 1
    inside = {each[shared] for each in parts}
    last = units[-1].shape.out
    norms = (layer.prefix.split(".") for layer in layers if layer.is_norm and layer.vectors[0] == last)
    return any(len(each) <= shared or each[shared] not in inside for each in norms)
