"""The description that fits what was found, by trying the papers' choices and comparing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise, product

from kilolayer.audit.branch_shape import BranchShape, branch_and_widths, read_branch_shape
from kilolayer.audit.canonical import (
    CanonicalNetwork,
    CanonicalUnit,
    canonical_description,
    layer_pattern,
    without_biases,
)
from kilolayer.audit.layer_reader import LinearLayer
from kilolayer.errors import InputError
from kilolayer.networks.description import Network, Stage, Stem
from kilolayer.units import ops as op
from kilolayer.units.arrangement import ARRANGEMENTS, ORIGINAL, Arrangement, Layers
from kilolayer.units.branch import Branch
from kilolayer.units.shortcut import (
    Downsample,
    Dropout,
    ExclusiveGate,
    Identity,
    Projection,
    Scaled,
    Shortcut,
    ShortcutGate,
    Zero,
    ZeroPad,
)
from kilolayer.units.unit import Unit

# Where two arrangements are the same function, as in a plain net, the report names the first of these.
ARRANGEMENT_PREFERENCE = tuple(dict.fromkeys(("original", "full_preactivation", *ARRANGEMENTS)))
LAYERS_BY_LETTER: dict[str, Layers] = {"B": ("BN",), "R": ("ReLU",)}


@dataclass(frozen=True)
class DescriptionFit:
    """The nearest description. `exact`: it is the same function but for biases; `form` is its form.

    `arrangement`: its name, or None where it is none of the five. `equals`: other arrangements that
    would be the same function here.
    """

    network: Network
    canonical: CanonicalNetwork
    arrangement: str | None
    equivalents: tuple[str, ...]
    exact: bool


@dataclass(frozen=True)
class BranchShapes:
    """The units' convolutions and where a stage begins."""

    units: tuple[BranchShape, ...]
    stage_starts: tuple[int, ...]

    @property
    def first_of_stages(self) -> list[BranchShape]:
        return [self.units[i] for i in self.stage_starts]

    @property
    def counts(self) -> list[int]:
        return [b - a for a, b in pairwise((*self.stage_starts, len(self.units)))]


def read_branch_shapes(canonical: CanonicalNetwork) -> BranchShapes | None:
    """None where a unit has no convolution."""
    readings = [read_branch_shape(part) for part in canonical.units]
    shapes = [shape for shape in readings if shape]
    if not shapes or len(shapes) != len(readings):
        return None
    starts = [
        i for i, shape in enumerate(shapes) if i == 0 or shape.stride != 1 or shape.out != shapes[i - 1].out
    ]
    return BranchShapes(tuple(shapes), tuple(starts))


def fit_description(canonical: CanonicalNetwork, gate_bias: float = 0.0) -> DescriptionFit | None:
    """The description nearest to `form`; None where F is none of the papers'."""
    canonical = without_biases(canonical)
    shapes = read_branch_shapes(canonical)
    stem = _stem(canonical)
    if shapes is None or stem is None:
        return None
    reading = branch_and_widths(shapes.first_of_stages, stem.channels)
    if reading is None:
        return None
    branch, widths = reading
    stages = tuple(
        Stage(count, width, first.stride)
        for count, width, first in zip(shapes.counts, widths, shapes.first_of_stages, strict=True)
    )
    linear = next((step for step in canonical.tail if isinstance(step, LinearLayer)), None)
    channels = next(step for step in canonical.units[0].edge if isinstance(step, op.Conv)).in_channels
    unit = Unit(branch, downsample=Projection())
    classes = linear.out_features if linear else 1
    try:
        base = Network(stem, stages, unit, classes, channels, image_size=1024)
    except InputError:
        return None
    return _best(
        canonical, base, branch, _shortcut(canonical, shapes, gate_bias), _resizes(canonical, shapes)
    )


def _best(
    canonical: CanonicalNetwork, base: Network, branch: Branch, h: Shortcut, resizes: tuple[Downsample, ...]
) -> DescriptionFit | None:
    candidates = list(_candidates(canonical, base, branch, h, resizes))
    if not candidates:
        return None
    scores = [_score(canonical, candidate.canonical) for candidate in candidates]
    best = candidates[scores.index(max(scores))]
    equivalents = [
        candidate_fit.arrangement
        for candidate_fit in candidates
        if candidate_fit.exact and candidate_fit.arrangement != best.arrangement
    ]
    return replace(best, equivalents=tuple(dict.fromkeys(name for name in equivalents if name)))


def _candidates(
    canonical: CanonicalNetwork, base: Network, branch: Branch, h: Shortcut, resizes: tuple[Downsample, ...]
) -> Iterator[DescriptionFit]:
    arrangements: dict[str | None, Arrangement] = {
        name: ARRANGEMENTS[name] for name in ARRANGEMENT_PREFERENCE
    }
    observed = _observed_arrangement(canonical)
    if observed not in ARRANGEMENTS.values():
        arrangements[None] = observed
    for (name, arrangement), resize, shortcut in product(arrangements.items(), resizes, _change_variants(h)):
        try:
            network = replace(base, unit=Unit(branch, shortcut, arrangement, resize))
            candidate = canonical_description(network)
        except InputError:
            continue
        yield DescriptionFit(network, candidate, name, (), candidate == canonical)


def _score(canonical: CanonicalNetwork, candidate: CanonicalNetwork) -> tuple[int, int]:
    """How many units have the candidate's activations, then how many are the same altogether."""
    pairs = list(zip(canonical.units, candidate.units, strict=True))
    # The edge behind the last addition is checked for itself: where it is missing, it is a fault.
    same_activations = sum(layer_pattern(a.F) == layer_pattern(b.F) for a, b in pairs)
    same_edges = sum(layer_pattern(a.edge) == layer_pattern(b.edge) for a, b in pairs)
    return same_activations + same_edges, sum(a == b for a, b in pairs) + (canonical.tail == candidate.tail)


def _stem(canonical: CanonicalNetwork) -> Stem | None:
    edge = canonical.units[0].edge
    convs = [step for step in edge if isinstance(step, op.Conv)]
    if not convs:
        return None
    pooled = op.MaxPool() in edge
    return Stem(convs[-1].out_channels, convs[0].kernel | 1, convs[0].stride, pool=pooled)


def _shortcut(canonical: CanonicalNetwork, shapes: BranchShapes, gate_bias: float) -> Shortcut:
    """h where a unit keeps its shape; with units that all change it, what can be told from those."""
    pairs = list(zip(canonical.units, shapes.units, strict=True))
    keeping_shape = [unit for unit, shape in pairs if not shape.changes_shape]
    unit = Counter(keeping_shape or canonical.units).most_common(1)[0][0]
    if unit.g:
        normalised = any(isinstance(step, op.BatchNorm) for step in unit.g)
        gate = ExclusiveGate if unit.gates_branch else ShortcutGate
        return gate(gate_bias, batch_norm=normalised)
    if unit.h == (op.ZeroOp(),):
        return Zero()
    scale, branch = (_factor(steps) for steps in (unit.h, unit.F))
    if (scale, branch) != (1.0, 1.0):
        return Scaled(scale, branch)
    dropouts = [step.p for step in unit.h if isinstance(step, op.DropoutOp)]
    if dropouts:
        return Dropout(dropouts[0])
    return Projection() if keeping_shape and any(isinstance(step, op.Conv) for step in unit.h) else Identity()


def _factor(layers: tuple[object, ...]) -> float:
    return next((step.factor for step in layers if isinstance(step, op.ScaleOp)), 1.0)


def _change_variants(h: Shortcut) -> Iterator[Shortcut]:
    yield h
    if isinstance(h, (Scaled, ExclusiveGate, Dropout)):
        yield replace(h, at_downsample="skip")


def _resizes(canonical: CanonicalNetwork, shapes: BranchShapes) -> tuple[Downsample, ...]:
    """What the shape-changing shortcuts can be: projections, or zero-padding that reads either tensor."""
    changing = [
        part.h for part, shape in zip(canonical.units, shapes.units, strict=True) if shape.changes_shape
    ]
    projected = sum(any(isinstance(step, op.Conv) for step in h) for h in changing)
    if changing and 2 * projected > len(changing):
        return (Projection(),)
    return ZeroPad(), ZeroPad("preactivated")


def _observed_arrangement(canonical: CanonicalNetwork) -> Arrangement:
    """The activations of the most usual unit, where they are none of the paper's."""
    middle = [unit for unit in canonical.units[1:] if _letters(unit)] or list(canonical.units)
    unit = Counter(middle).most_common(1)[0][0]
    letters = _letters(unit)
    if not letters:
        return ORIGINAL
    before, *activations = letters.split("C")
    between = activations[0] if len(activations) > 1 else ""
    return Arrangement(
        _layers(before), _layers(between), _layers(activations[-1]), _layers(layer_pattern(unit.edge))
    )


def _letters(unit: CanonicalUnit) -> str:
    letters = layer_pattern(unit.F)
    return letters if "C" in letters else ""


def _layers(letters: str) -> Layers:
    return tuple(layer for letter in letters for layer in LAYERS_BY_LETTER.get(letter, ()))
