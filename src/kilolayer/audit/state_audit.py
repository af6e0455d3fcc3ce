"""Audits a state dict: chains its layers into units by their shapes, and says what shapes cannot show."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from kilolayer.audit.audit_report import AuditFinding, AuditReport, NetworkContent
from kilolayer.audit.branch_shape import BRANCH_KINDS, BranchShape, branch_and_widths
from kilolayer.audit.canonical import CanonicalNetwork, CanonicalUnit, canonical_description
from kilolayer.audit.context import AuditContext
from kilolayer.audit.identify import ARRANGEMENT_PREFERENCE, BranchShapes, DescriptionFit
from kilolayer.audit.layer_reader import AVERAGE_POOLING, AuditLayers
from kilolayer.audit.model_audit import nearest_network, network_content
from kilolayer.audit.nearest import find_nearest
from kilolayer.audit.network_label import read_label
from kilolayer.audit.rules import collect_findings
from kilolayer.audit.traced_units import TracedNetwork, TracedUnit
from kilolayer.errors import InputError
from kilolayer.networks.description import Network, Stage, Stem
from kilolayer.system.message_text import listing
from kilolayer.units import ops as op
from kilolayer.units.arrangement import ARRANGEMENTS
from kilolayer.units.branch import StrideOn
from kilolayer.units.shortcut import Downsample, Identity, Projection, Shortcut, ShortcutGate, ZeroPad
from kilolayer.units.unit import Unit


@dataclass(frozen=True)
class StateLayer:
    """The tensors of one prefix: a convolution (4-D), a linear layer (2-D), or a norm (vectors only)."""

    prefix: str
    kernel: tuple[int, ...]
    vectors: tuple[int, ...]

    @property
    def is_conv(self) -> bool:
        return len(self.kernel) == 4

    @property
    def is_norm(self) -> bool:
        return not self.kernel and len(self.vectors) > 1 and len(set(self.vectors)) == 1

    @property
    def bias(self) -> bool:
        return bool(self.kernel) and bool(self.vectors)

    @property
    def parameters(self) -> int:
        """Its trainable numbers; of a norm scale and shift, not the running statistics."""
        count = 1
        for size in self.kernel:
            count *= size
        vectors = self.vectors[:2] if self.is_norm else self.vectors
        return (count if self.kernel else 0) + sum(vectors)


@dataclass(frozen=True)
class StateUnit:
    """The convolutions of F with their shape, the projection, and the gate."""

    shape: BranchShape
    convs: tuple[StateLayer, ...]
    projection: StateLayer | None = None
    gate: StateLayer | None = None


def read_state_layers(state: Mapping[str, Tensor]) -> list[StateLayer]:
    """The layers in the order of the file."""
    kernels: dict[str, tuple[int, ...]] = {}
    vectors: dict[str, tuple[int, ...]] = {}
    for name, tensor in state.items():
        prefix = name.rpartition(".")[0]
        if tensor.ndim > 1:
            kernels[prefix] = tuple(tensor.shape)
        if tensor.ndim == 1 and tensor.is_floating_point():
            vectors[prefix] = (*vectors.get(prefix, ()), tensor.shape[0])
    prefixes = dict.fromkeys(name.rpartition(".")[0] for name in state)
    return [StateLayer(prefix, kernels.get(prefix, ()), vectors.get(prefix, ())) for prefix in prefixes]


def chain_state_units(layers: Sequence[StateLayer]) -> tuple[StateLayer, list[StateUnit]] | None:
    """The stem and the units, in the file's order or else in that of the names; None if they do not chain.

    safetensors sorts its tensors by name, so a file's order need not be the network's.
    """
    orders = list(layers), sorted(layers, key=lambda layer: _natural_key(layer.prefix))
    for order in orders:
        convs = [layer for layer in order if layer.is_conv]
        if not convs:
            return None
        stem = min(convs, key=lambda layer: layer.kernel[1])
        convs.remove(stem)
        units = _chain_units(convs, stem.kernel[0])
        if units:
            return stem, units
    return None


def _natural_key(text: str) -> list[tuple[int, str]]:
    return [(int(unit), "") if unit.isdigit() else (0, unit) for unit in re.split(r"(\d+)", text)]


def _chain_units(convs: list[StateLayer], channels: int) -> list[StateUnit]:
    """All of `convs` as a chain of units; empty if they do not chain."""
    units: list[StateUnit] = []
    while convs:
        unit, used = _read_unit(convs, channels, first=not units)
        if unit is None:
            return []
        units.append(unit)
        channels, convs = unit.shape.out, convs[used:]
    return units


def _read_unit(convs: list[StateLayer], channels: int, *, first: bool) -> tuple[StateUnit | None, int]:
    """The first unit of `convs`, and the number of its convolutions; shortcuts may stand on either side."""
    for lead in (0, 1, 2):
        for size in (3, 2):
            body = convs[lead : lead + size]
            shape = _read_shape(body, channels, first=first)
            if shape is None:
                continue
            ahead = [layer for layer in convs[:lead] if _is_shortcut(layer, shape)]
            if len(ahead) != lead:
                continue
            # If shortcuts stand ahead of F here, those that follow belong to the next unit.
            behind = [] if lead else _trailing_shortcuts(convs[lead + size :], shape)
            sides = ahead + behind
            gates = [layer for layer in sides if layer.bias and not body[0].bias]
            projections = [layer for layer in sides if layer not in gates]
            unit = StateUnit(
                shape, tuple(body), *(next(iter(layers), None) for layers in (projections, gates))
            )
            return unit, lead + size + len(behind)
    return None, 0


def _trailing_shortcuts(convs: list[StateLayer], shape: BranchShape) -> list[StateLayer]:
    """The shortcuts that follow F; a 1×1 convolution before a 3×3 belongs to the next bottleneck."""
    shortcuts = []
    for layer, following in zip(convs[:2], [*convs[1:3], None, None], strict=False):
        reduces = shape.kind == "bottleneck" and following is not None and following.kernel[-1] > 1
        if reduces or not _is_shortcut(layer, shape):
            break
        shortcuts.append(layer)
    return shortcuts


def _is_shortcut(layer: StateLayer, shape: BranchShape) -> bool:
    """A 1×1 convolution from the unit's input to its output: a projection or a gate."""
    return layer.kernel == (shape.out, shape.channels, 1, 1)


def _read_shape(body: list[StateLayer], channels: int, *, first: bool) -> BranchShape | None:
    kernels = tuple(layer.kernel[-1] for layer in body)
    kind = BRANCH_KINDS.get(kernels)
    if kind not in ("basic", "bottleneck") or len(body) != len(kernels):
        return None
    groups, at = 1, channels
    for layer in body:
        out, inside = layer.kernel[:2]
        if not inside or at % inside or (at != inside and layer.kernel[-1] == 1):
            return None
        groups, at = max(groups, at // inside), out
    # Shapes say nothing about strides: as in the papers, the side halves where the channels change.
    stride = 2 if at != channels and not first else 1
    inner = body[-1].kernel[1]
    stride_on: StrideOn = "3x3" if groups > 1 else "1x1"
    return BranchShape(kind, len(body), channels, inner, at, stride, stride_on, groups, "grouped", 0.0)


UNKNOWN = (
    "strides, pooling and dropout: weights do not show them, so the papers' are assumed",
    "where ReLU stands, and which tensor projections and the first shortcut read",
    "whether a shortcut without weights exists, is scaled, or is zero-padded",
)


def audit_state(state: Mapping[str, Tensor], label: str = "state dict") -> AuditReport:
    """Says what the shapes of a state dict and their order show of its network; `unknown` lists the rest.

    Names group tensors into layers and put a sorted file in order. The kind of a layer follows from its
    shapes.

    Args:
        state: tensors by name.
        label: what the network calls itself.

    Raises:
        InputError: the state dict holds no tensors.

    >>> from kilolayer.networks import build, describe
    >>> report = audit_state(build(describe("resnet20_cifar")).state_dict(), "resnet20_cifar")
    >>> report.content.depth, report.content.arrangement, report.clean
    (20, 'original', True)
    """
    if not state:
        raise InputError(f"{label} holds no tensors")
    layers = read_state_layers(state)
    parameters = sum(layer.parameters for layer in layers)
    chain = chain_state_units(layers)
    reading = _fit_state(layers, *chain) if chain else None
    if chain is None or reading is None:
        unchained = "its convolutions do not chain into the papers' basic or bottleneck units"
        return AuditReport(label, "shapes", NetworkContent(parameters), unknown=(unchained, *UNKNOWN))
    fit, lacking = reading
    context = _audit_context(label, parameters, chain[1], fit, lacking=lacking, biased=chain[0].bias)
    nearest = nearest_network(context)
    nearest = replace(nearest, identical=None) if nearest else None
    content = _shown_content(network_content(context), layers, *chain)
    findings = (*collect_findings(context), *_norm_findings(layers, fit, lacking=lacking))
    return AuditReport(label, "shapes", content, nearest, findings, (*UNKNOWN, *_unread(layers, chain[1])))


def _shown_content(
    content: NetworkContent, layers: list[StateLayer], stem: StateLayer, units: list[StateUnit]
) -> NetworkContent:
    """`content` without what the fit assumes of the papers' networks, and shapes do not show."""
    linears = [layer for layer in layers if len(layer.kernel) == 2]
    is_classifier = len(linears) == 1 and linears[0].kernel[1] == units[-1].shape.out
    out, channels, kernel = stem.kernel[:3]
    has_weights = any(unit.projection or unit.gate for unit in units)
    return replace(
        content,
        stride_on=None,
        shortcut=content.shortcut if content.shortcut != str(Identity()) else None,
        option=content.option if has_weights and content.option != "A" else None,
        stem=f"{kernel}×{kernel} conv {channels}→{out}",
        stages=tuple(replace(stage, stride=None) for stage in content.stages),
        depth=content.depth if is_classifier else None,
        classes=linears[0].kernel[0] if is_classifier else None,
    )


def _norm_findings(layers: list[StateLayer], fit: DescriptionFit, *, lacking: bool) -> Iterator[AuditFinding]:
    """The norms, where no arrangement of the papers has as many of these widths."""
    norms = Counter(layer.vectors[0] for layer in layers if layer.is_norm)
    expected = _norm_widths(fit.canonical)
    if lacking or norms == expected:
        return
    text = f"its {norms.total()} norms fit none of the papers' arrangements"
    paper = f"the nearest, {(fit.arrangement or '').replace('_', ' ')}, has {expected.total()} BNs"
    yield AuditFinding("deviation", "norms", text, "", paper)


def _unread(layers: list[StateLayer], units: list[StateUnit]) -> Iterator[str]:
    """The tensors that are in no convolution and no lone classifier, in words."""
    linears = [layer for layer in layers if len(layer.kernel) == 2]
    if len(linears) != 1 or linears[0].kernel[1] != units[-1].shape.out:
        yield f"what its {len(linears)} fully-connected layers do, and so its depth and classes"
    bare = [layer for layer in layers if layer.is_norm and len(layer.vectors) == 2]
    if bare:
        yield f"whether {len(bare)} of its norms are BN: they keep no running statistics ({bare[0].prefix})"
    more = [
        layer.prefix or "(no name)"
        for layer in layers
        if (layer.kernel and len(layer.kernel) not in (2, 4))
        or (len(layer.vectors) == 1 and not layer.kernel)
    ]
    if more:
        yield f"what {len(more)} more of its layers do: {listing(more)}"


def _audit_context(
    label: str, parameters: int, units: list[StateUnit], fit: DescriptionFit, *, lacking: bool, biased: bool
) -> AuditContext:
    """The audit context of the fitted description, with the weights' biases and without the BN they lack."""
    canonical_units = []
    for i, (part, unit) in enumerate(zip(fit.canonical.units, units, strict=True)):
        edge = _with_bias(part.edge, biased and i == 0)
        h = _with_bias(part.h, unit.projection is not None and unit.projection.bias)
        canonical_units.append(
            CanonicalUnit(edge, h, _with_bias(part.F, unit.convs[0].bias), part.g, part.gates_branch)
        )
    end = fit.canonical.tail[fit.canonical.tail.index(AVERAGE_POOLING) :] if lacking else fit.canonical.tail
    traced_units = tuple(
        TracedUnit(_unit_name(unit), p.edge, p.h, p.F, p.g)
        for p, unit in zip(canonical_units, units, strict=True)
    )
    return AuditContext(
        traced=TracedNetwork(traced_units, end),
        canonical=CanonicalNetwork(tuple(canonical_units), end),
        parameters=parameters,
        branch_shapes=_branch_shapes(units),
        fit=fit,
        nearest=find_nearest(fit.network),
        label=read_label(label),
        text=label,
    )


def _with_bias(layers: AuditLayers, bias: bool) -> AuditLayers:
    return tuple(replace(layer, bias=bias) if isinstance(layer, op.Conv) else layer for layer in layers)


def _unit_name(unit: StateUnit) -> str:
    return unit.convs[0].prefix.rpartition(".")[0]


def _branch_shapes(units: list[StateUnit]) -> BranchShapes:
    shapes = tuple(unit.shape for unit in units)
    starts = tuple(i for i, shape in enumerate(shapes) if i == 0 or shape.out != shapes[i - 1].out)
    return BranchShapes(shapes, starts)


def _fit_state(
    layers: list[StateLayer], stem: StateLayer, units: list[StateUnit]
) -> tuple[DescriptionFit, bool] | None:
    """The arrangement whose BNs have the widths of the file's, and whether its final BN is lacking."""
    base = _base_description(layers, stem, units)
    if base is None:
        return None
    widths = Counter(layer.vectors[0] for layer in layers if layer.is_norm)
    candidates = []
    for name in ARRANGEMENT_PREFERENCE:
        network = replace(base, unit=replace(base.unit, arrangement=ARRANGEMENTS[name]))
        form = canonical_description(network)
        expected = _norm_widths(form)
        missing, more = expected - widths, widths - expected
        lacking = bool(network.final_ops) and missing[network.channels] == 1 and missing.total() == 1
        candidates.append(
            (missing.total() + more.total(), name, DescriptionFit(network, form, name, (), False), lacking)
        )
    least = min(distance for distance, *_ in candidates)
    best = [(name, fit, lacking) for distance, name, fit, lacking in candidates if distance == least]
    has_final_norm = _norm_outside_units(layers, units)
    chosen = [
        candidate
        for candidate in best
        if bool(candidate[1].network.final_ops and not candidate[2]) == has_final_norm
    ]
    (_, fit, lacking), *equivalents = chosen or best
    return replace(fit, equivalents=tuple(name for name, *_ in equivalents)), lacking


def _norm_widths(canonical: CanonicalNetwork) -> Counter[int]:
    layers = [*canonical.tail]
    for unit in canonical.units:
        layers.extend((*unit.edge, *unit.h, *unit.F, *unit.g))
    return Counter(layer.channels for layer in layers if isinstance(layer, op.BatchNorm))


def _base_description(layers: list[StateLayer], stem: StateLayer, units: list[StateUnit]) -> Network | None:
    """The description, without its arrangement."""
    shapes = _branch_shapes(units)
    branch_reading = branch_and_widths(shapes.first_of_stages, stem.kernel[0])
    if branch_reading is None:
        return None
    branch, widths = branch_reading
    h, resize = _read_shortcuts(units)
    counted = zip(shapes.counts, widths, strict=True)
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
    keeping_shape = [unit for unit in units if not unit.shape.changes_shape]
    projected = bool(changing) and all(unit.projection for unit in changing)
    h: Shortcut = Identity()
    if keeping_shape and all(unit.projection for unit in keeping_shape):
        h = Projection()
    elif any(unit.gate for unit in units):
        h = ShortcutGate(0.0)
    return h, Projection() if projected else ZeroPad()


def _norm_outside_units(layers: list[StateLayer], units: list[StateUnit]) -> bool:
    """Whether a BN as wide as the last unit lies outside of all units, as a final activation's does."""
    parts = [layer.prefix.split(".") for layer in layers if layer.is_conv]
    shared = 0
    while all(len(parts) > shared + 1 for parts in parts) and len({parts[shared] for parts in parts}) == 1:
        shared += 1
    inside = {parts[shared] for parts in parts}
    last = units[-1].shape.out
    norms = (layer.prefix.split(".") for layer in layers if layer.is_norm and layer.vectors[0] == last)
    return any(len(parts) <= shared or parts[shared] not in inside for parts in norms)
