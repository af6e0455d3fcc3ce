"""A residual unit as a value, and its layers at one place in a network."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from kilolayer.units import ops as op
from kilolayer.units.arrangement import ORIGINAL, Arrangement, activation_ops
from kilolayer.units.branch import Aggregated, Basic, Bottleneck, Branch, OneLayer
from kilolayer.units.field_checks import built_in_kinds, check_field
from kilolayer.units.ops import Ops
from kilolayer.units.shortcut import Downsample, Identity, Projection, Shortcut, ZeroPad


@dataclass(frozen=True)
class Unit:
    """A residual unit: y = h(x) + F(x), x' = f(y) (P2, Eq. 1 and 2).

    `branch` holds F's convolutions, `arrangement` the position of BN and ReLU (and f), `h` the shortcut.
    `downsample` fits the shortcut to the output where a unit changes its shape: `ZeroPad` (option A) or
    `Projection` (option B). Every combination is a unit. An ablation is one `dataclasses.replace`:

    >>> from dataclasses import replace
    >>> from kilolayer.units import Scaled
    >>> replace(BASIC, h=Scaled(0.5)).h.equation
    '0.5·x + F(x)'

    Raises:
        InputError: a field holds a value of another kind.
    """

    branch: Branch = field(default_factory=Basic)
    h: Shortcut = field(default_factory=Identity)
    arrangement: Arrangement = ORIGINAL
    downsample: Downsample = field(default_factory=ZeroPad)

    def __post_init__(self) -> None:
        check_field("Unit", "branch", self.branch, isinstance(self.branch, Branch), _allowed_kinds(Branch))
        check_field("Unit", "h", self.h, isinstance(self.h, Shortcut), _allowed_kinds(Shortcut))
        check_field(
            "Unit",
            "downsample",
            self.downsample,
            isinstance(self.downsample, Downsample),
            _allowed_kinds(Downsample),
        )
        is_arrangement = isinstance(self.arrangement, Arrangement)
        check_field("Unit", "arrangement", self.arrangement, is_arrangement, "an Arrangement")


def _allowed_kinds(base: type[object]) -> str:
    names = ", ".join(kind.__name__ for kind in built_in_kinds(base))
    return f"{names}, or one of your own"


BASIC = Unit()
ONE_LAYER = Unit(OneLayer())
BOTTLENECK = Unit(Bottleneck(), downsample=Projection())
AGGREGATED = Unit(Aggregated(), downsample=Projection())


@dataclass(frozen=True)
class Layout:
    """The layers of one unit at its place: x ← p(x); y = h(x) + F(x); x' = f(y).

    `p` is the activation that h and F share, if any. A gate, if any, has the layers `g`:
    y = (1 − σ(g(x)))·h(x) + F(x), and σ(g(x)) multiplies F(x) too where `gates_branch` is set. `gate_bias` is
    the initial bias of the gate's convolution. `shortcut_factor` is λ if E[h(x)] = λ·x at the start of
    training, without the gate; None if no such number is known, or the shape changes.

    >>> place = layout(BASIC, in_channels=16, width=32, stride=2)
    >>> place.parameters, place.multiply_adds(side=32), place.output_side(32)
    (13952, 3538944, 16)
    """

    p: Ops
    h: Ops
    F: Ops
    f: Ops
    g: Ops = ()
    gates_branch: bool = False
    gate_bias: float = 0.0
    shortcut_factor: float | None = None

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(map(op.parameters, self.parts))

    @property
    def parts(self) -> tuple[Ops, ...]:
        """All layers, by the letters of the equation."""
        return self.p, self.h, self.F, self.f, self.g

    def multiply_adds(self, side: int) -> int:
        """Multiply-adds of one image, for an input of `side` × `side`."""
        return sum(op.multiply_adds(ops, side) for ops in (self.h, self.F, self.g))

    def output_side(self, side: int) -> int:
        """Side of the output for an input of `side` × `side`."""
        return op.output_side(self.F, side)


def layout(unit: Unit, in_channels: int, width: int, stride: int = 1, *, activated: bool = False) -> Layout:
    """The layers of `unit` for `in_channels` input channels, at a stage of `width`.

    `activated` says that the input is activated already, as the stem's output is; then `before` is left out
    (P2, Sec. 4: the first activation stands before the split into the two paths).

    >>> [layer.label for layer in layout(BASIC, 16, 32, stride=2).h]
    ['pad +16, /2']

    Raises:
        InputError: the unit cannot have this shape.
    """
    arrangement, branch, h = unit.arrangement, unit.branch, unit.h
    out = branch.out_channels(width)
    changes = stride != 1 or in_channels != out
    before = () if activated else activation_ops(arrangement.before, in_channels)
    shared = bool(before) and h.shares_activation(unit.downsample, changes=changes)
    acts = not changes or h.acts_at_downsample
    shortcut = h.path(unit.downsample, arrangement, in_channels, out, stride) + (
        h.layers(out) if acts else ()
    )
    gate = h.gate(in_channels, out, stride) if acts else ()
    return Layout(
        p=before if shared else (),
        h=shortcut,
        F=(*(() if shared else before), *branch.function(arrangement, in_channels, width, stride))
        + (h.branch_layers(out) if acts else ()),
        f=activation_ops(arrangement.f, out),
        g=gate,
        gates_branch=h.gates_branch,
        gate_bias=h.gate_bias,
        shortcut_factor=None if changes or shared else _shortcut_factor(h, shortcut, gate),
    )


def _shortcut_factor(h: Shortcut, layers: Ops, gate: Ops) -> float | None:
    """The factor that the shortcut's kind states, or else the product of those that its layers state.

    A gated kind's own factor holds the gate, at its initial bias; then the layers alone count.
    """
    if not gate and h.factor is not None:
        return h.factor
    factors = [layer.expected_factor for layer in layers]
    known = [factor for factor in factors if factor is not None]
    return math.prod(known) if len(known) == len(factors) else None
