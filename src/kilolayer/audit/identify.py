"""The description that fits what was found, by trying the papers' choices and comparing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise, product

from kilolayer.audit.branches import Core, branch_and_widths, core
from kilolayer.audit.forms import Form, Part, described, pattern, without_biases
from kilolayer.audit.steps import Linear
from kilolayer.errors import InputError
from kilolayer.networks.description import Network, Stage, Stem
from kilolayer.units import ops as op
from kilolayer.units.arrangement import ARRANGEMENTS, ORIGINAL, Arrangement, Layers
from kilolayer.units.branch import Branch
from kilolayer.units.shortcut import (
    Dropout,
    ExclusiveGate,
    Identity,
    Projection,
    Resize,
    Scaled,
    Shortcut,
    ShortcutGate,
    Zero,
    ZeroPad,
)
from kilolayer.units.unit import Unit

# Where two arrangements are the same function, as in a plain net, the first is named.
PREFERENCE = (
    "original", "full_preactivation", "bn_after_addition", "relu_before_addition", "relu_only_preactivation",
)  # fmt: skip
LETTERS: dict[str, Layers] = {"B": ("BN",), "R": ("ReLU",)}


@dataclass(frozen=True)
class Fit:
    """The nearest description. `exact`: it is the same function but for biases; `form` is its form.

    `arrangement`: its name, or None where it is none of the five. `equals`: other arrangements that
    would be the same function here.
    """

    network: Network
    form: Form
    arrangement: str | None
    equals: tuple[str, ...]
    exact: bool


@dataclass(frozen=True)
class Cores:
    """The units' convolutions and where a stage begins."""

    all: tuple[Core, ...]
    starts: tuple[int, ...]

    @property
    def first_of_stages(self) -> list[Core]:
        return [self.all[i] for i in self.starts]

    @property
    def counts(self) -> list[int]:
        return [b - a for a, b in pairwise((*self.starts, len(self.all)))]


def cores_of(form: Form) -> Cores | None:
    """None where a unit has no convolution."""
    cores = [core(part) for part in form.parts]
    known = [each for each in cores if each]
    if not known or len(known) != len(cores):
        return None
    starts = [i for i, each in enumerate(known) if i == 0 or each.stride != 1 or each.out != known[i - 1].out]
    return Cores(tuple(known), tuple(starts))


def fit(form: Form, gate_bias: float = 0.0) -> Fit | None:
    """The description nearest to `form`; None where F is none of the papers'."""
    form = without_biases(form)
    cores = cores_of(form)
    stem = _stem(form)
    if cores is None or stem is None:
        return None
    made = branch_and_widths(cores.first_of_stages, stem.channels)
    if made is None:
        return None
    branch, widths = made
    stages = tuple(
        Stage(count, width, first.stride)
        for count, width, first in zip(cores.counts, widths, cores.first_of_stages, strict=True)
    )
    linear = next((step for step in form.end if isinstance(step, Linear)), None)
    channels = next(step for step in form.parts[0].edge if isinstance(step, op.Conv)).in_channels
    unit = Unit(branch, resize=Projection())
    classes = linear.out_features if linear else 1
    try:
        base = Network(stem, stages, unit, classes, channels, image_size=1024)
    except InputError:
        return None
    return _best(form, base, branch, _shortcut(form, cores, gate_bias), _resizes(form, cores))


def _best(form: Form, base: Network, branch: Branch, h: Shortcut, resizes: tuple[Resize, ...]) -> Fit | None:
    tried = list(_tried(form, base, branch, h, resizes))
    if not tried:
        return None
    scores = [_score(form, candidate.form) for candidate in tried]
    best = tried[scores.index(max(scores))]
    same = [each.arrangement for each in tried if each.exact and each.arrangement != best.arrangement]
    return replace(best, equals=tuple(dict.fromkeys(name for name in same if name)))


def _tried(
    form: Form, base: Network, branch: Branch, h: Shortcut, resizes: tuple[Resize, ...]
) -> Iterator[Fit]:
    arrangements: dict[str | None, Arrangement] = {name: ARRANGEMENTS[name] for name in PREFERENCE}
    own = _own_arrangement(form)
    if own not in ARRANGEMENTS.values():
        arrangements[None] = own
    for (name, arrangement), resize, each in product(arrangements.items(), resizes, _at_change(h)):
        try:
            network = replace(base, unit=Unit(branch, each, arrangement, resize))
            made = described(network)
        except InputError:
            continue
        yield Fit(network, made, name, (), made == form)


def _score(form: Form, candidate: Form) -> tuple[int, int]:
    """How many units have the candidate's activations, then how many are the same altogether."""
    pairs = list(zip(form.parts, candidate.parts, strict=True))
    # The edge behind the last addition is checked for itself: where it is missing, it is a fault.
    alike = sum(pattern(a.F) == pattern(b.F) for a, b in pairs)
    edges = sum(pattern(a.edge) == pattern(b.edge) for a, b in pairs)
    return alike + edges, sum(a == b for a, b in pairs) + (form.end == candidate.end)


def _stem(form: Form) -> Stem | None:
    edge = form.parts[0].edge
    convs = [step for step in edge if isinstance(step, op.Conv)]
    if not convs:
        return None
    pooled = op.MaxPool() in edge
    return Stem(convs[-1].out_channels, convs[0].kernel | 1, convs[0].stride, pool=pooled)


def _shortcut(form: Form, cores: Cores, gate_bias: float) -> Shortcut:
    """h where a unit keeps its shape; with units that all change it, what can be told from those."""
    pairs = list(zip(form.parts, cores.all, strict=True))
    kept = [part for part, each in pairs if not each.changes]
    part = Counter(kept or form.parts).most_common(1)[0][0]
    if part.g:
        normalised = any(isinstance(step, op.BatchNorm) for step in part.g)
        gate = ExclusiveGate if part.gates_branch else ShortcutGate
        return gate(gate_bias, batch_norm=normalised)
    if part.h == (op.Zero(),):
        return Zero()
    scale, branch = (_factor(steps) for steps in (part.h, part.F))
    if (scale, branch) != (1.0, 1.0):
        return Scaled(scale, branch)
    dropped = [step.p for step in part.h if isinstance(step, op.Dropout)]
    if dropped:
        return Dropout(dropped[0])
    return Projection() if kept and any(isinstance(step, op.Conv) for step in part.h) else Identity()


def _factor(steps: tuple[object, ...]) -> float:
    return next((step.factor for step in steps if isinstance(step, op.Scale)), 1.0)


def _at_change(h: Shortcut) -> Iterator[Shortcut]:
    yield h
    if isinstance(h, (Scaled, ExclusiveGate, Dropout)):
        yield replace(h, at_change="skip")


def _resizes(form: Form, cores: Cores) -> tuple[Resize, ...]:
    """What the shape-changing shortcuts can be: projections, or zero-padding that reads either tensor."""
    changing = [part.h for part, each in zip(form.parts, cores.all, strict=True) if each.changes]
    projected = sum(any(isinstance(step, op.Conv) for step in h) for h in changing)
    if changing and 2 * projected > len(changing):
        return (Projection(),)
    return ZeroPad(), ZeroPad("preactivated")


def _own_arrangement(form: Form) -> Arrangement:
    """The activations of the most usual unit, where they are none of the paper's."""
    middle = [part for part in form.parts[1:] if _letters(part)] or list(form.parts)
    part = Counter(middle).most_common(1)[0][0]
    letters = _letters(part)
    if not letters:
        return ORIGINAL
    before, *rest = letters.split("C")
    between = rest[0] if len(rest) > 1 else ""
    return Arrangement(_layers(before), _layers(between), _layers(rest[-1]), _layers(pattern(part.edge)))


def _letters(part: Part) -> str:
    letters = pattern(part.F)
    return letters if "C" in letters else ""


def _layers(letters: str) -> Layers:
    return tuple(layer for letter in letters for layer in LETTERS.get(letter, ()))
