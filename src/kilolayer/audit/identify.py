"""Finds the description that fits a canonical network, by trying the papers' choices."""

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

# Where two arrangements are the same function, as in a plain network, the report names the first of these.
ARRANGEMENT_PREFERENCE = tuple(dict.fromkeys(("original", "full_preactivation", *ARRANGEMENTS)))
MOST_STAGES = 6
"""The papers' networks have three or four; where the width grows from unit to unit there are none."""
LAYERS_BY_LETTER: dict[str, Layers] = {"B": ("BN",), "R": ("ReLU",)}


@dataclass(frozen=True)
class DescriptionFit:
    """The description nearest to a network, and its canonical form.

    `arrangement` is its name, None if it is none of the five. `equivalents` are other arrangements that are
    the same function here. `exact`: network and description are the same function, up to biases.
    """

    network: Network
    canonical: CanonicalNetwork
    arrangement: str | None
    equivalents: tuple[str, ...]
    exact: bool


@dataclass(frozen=True)
class BranchShapes:
    """The branch shapes of all units, and the units at which stages begin."""

    units: tuple[BranchShape, ...]
    stage_starts: tuple[int, ...]

    @property
    def first_of_stages(self) -> list[BranchShape]:
        return [self.units[i] for i in self.stage_starts]

    @property
    def counts(self) -> list[int]:
        return [b - a for a, b in pairwise((*self.stage_starts, len(self.units)))]


def read_branch_shapes(canonical: CanonicalNetwork) -> BranchShapes | None:
    """The branch shape of every unit; None if a unit has no convolution."""
    readings = [read_branch_shape(unit) for unit in canonical.units]
    shapes = [shape for shape in readings if shape]
    if not shapes or len(shapes) != len(readings):
        return None
    starts = [
        i for i, shape in enumerate(shapes) if i == 0 or shape.stride != 1 or shape.out != shapes[i - 1].out
    ]
    return BranchShapes(tuple(shapes), tuple(starts))


def fit_description(canonical: CanonicalNetwork, gate_bias: float = 0.0) -> DescriptionFit | None:
    """The description nearest to a network; None if its F is none of the papers'."""
    canonical = without_biases(canonical)
    shapes = read_branch_shapes(canonical)
    stem = _stem(canonical)
    if shapes is None or stem is None:
        return None
    reading = branch_and_widths(shapes.first_of_stages, stem.channels)
    if reading is None or len(shapes.stage_starts) > MOST_STAGES:
        return None
    branch, widths = reading
    stages = tuple(
        Stage(count, width, first.stride)
        for count, width, first in zip(shapes.counts, widths, shapes.first_of_stages, strict=True)
    )
    linear = next((layer for layer in reversed(canonical.tail) if isinstance(layer, LinearLayer)), None)
    channels = next(layer for layer in canonical.units[0].edge if isinstance(layer, op.Conv)).in_channels
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
    observed = _arrangement_of(canonical)
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
    """The number of units with the candidate's activations, then the number of identical units."""
    pairs = list(zip(canonical.units, candidate.units, strict=True))
    # The layers behind the last addition do not count: a missing final activation is a fault of its own.
    same_activations = sum(layer_pattern(a.F) == layer_pattern(b.F) for a, b in pairs)
    same_edges = sum(layer_pattern(a.edge) == layer_pattern(b.edge) for a, b in pairs)
    return same_activations + same_edges, sum(a == b for a, b in pairs) + (canonical.tail == candidate.tail)


def _stem(canonical: CanonicalNetwork) -> Stem | None:
    edge = canonical.units[0].edge
    convs = [layer for layer in edge if isinstance(layer, op.Conv)]
    if not convs:
        return None
    pooled = op.MaxPool() in edge
    return Stem(convs[-1].out_channels, convs[0].kernel | 1, convs[0].stride, pool=pooled)


def _shortcut(canonical: CanonicalNetwork, shapes: BranchShapes, gate_bias: float) -> Shortcut:
    """h of the units that keep their shape; if all change it, as much of h as those show."""
    pairs = list(zip(canonical.units, shapes.units, strict=True))
    keeping_shape = [unit for unit, shape in pairs if not shape.changes_shape]
    unit = Counter(keeping_shape or canonical.units).most_common(1)[0][0]
    if unit.g:
        normalised = any(isinstance(layer, op.BatchNorm) for layer in unit.g)
        gate = ExclusiveGate if unit.gates_branch else ShortcutGate
        return gate(gate_bias, batch_norm=normalised)
    if unit.h == (op.ZeroOp(),):
        return Zero()
    scale, branch = (_factor(layers) for layers in (unit.h, unit.F))
    if (scale, branch) != (1.0, 1.0):
        return Scaled(scale, branch)
    dropouts = [layer.p for layer in unit.h if isinstance(layer, op.DropoutOp)]
    if dropouts:
        return Dropout(dropouts[0])
    return (
        Projection() if keeping_shape and any(isinstance(layer, op.Conv) for layer in unit.h) else Identity()
    )


def _factor(layers: tuple[object, ...]) -> float:
    return next((layer.factor for layer in layers if isinstance(layer, op.ScaleOp)), 1.0)


def _change_variants(h: Shortcut) -> Iterator[Shortcut]:
    yield h
    if isinstance(h, (Scaled, ExclusiveGate, Dropout)):
        yield replace(h, at_downsample="skip")


def _resizes(canonical: CanonicalNetwork, shapes: BranchShapes) -> tuple[Downsample, ...]:
    """The candidates for shape-changing shortcuts: a projection, or zero-padding that reads either tensor."""
    changing = [
        unit.h for unit, shape in zip(canonical.units, shapes.units, strict=True) if shape.changes_shape
    ]
    projected = sum(any(isinstance(layer, op.Conv) for layer in h) for h in changing)
    if changing and 2 * projected > len(changing):
        return (Projection(),)
    return ZeroPad(), ZeroPad("preactivated")


def _arrangement_of(canonical: CanonicalNetwork) -> Arrangement:
    """The arrangement of the most frequent unit, one of the paper's or not."""
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
