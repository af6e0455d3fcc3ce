"""A residual unit described, and its layers worked out for one place in a network."""

from __future__ import annotations

from dataclasses import dataclass, field

from kilolayer.units import ops as op
from kilolayer.units.arrangement import ORIGINAL, Arrangement, activation_ops
from kilolayer.units.branch import Aggregated, Basic, Bottleneck, Branch, OneLayer
from kilolayer.units.field_checks import built_in_kinds, check_field
from kilolayer.units.ops import Ops
from kilolayer.units.shortcut import Downsample, Identity, Projection, Shortcut, ZeroPad


@dataclass(frozen=True)
class Unit:
    """y = h(x) + F(x), x' = f(y) (P2, Eq. 1 and 2) as a value; ablate it with `dataclasses.replace`.

    `branch` is F's convolutions, `arrangement` where BN and ReLU stand (and f), `h` the shortcut,
    `resize` what the shortcut does where the unit changes shape: `ZeroPad` (option A) or
    `Projection` (option B). Every combination of them is a unit.
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
    """The layers of one unit: x ← p(x); y = h(x) + F(x), gated by g where there is one; x' = f(y).

    `p` is the activation that both paths share, where there is one. `gates_branch`: g multiplies F too.
    """

    p: Ops
    h: Ops
    F: Ops
    f: Ops
    g: Ops = ()
    gates_branch: bool = False
    gate_bias: float = 0.0

    @property
    def parameters(self) -> int:
        return sum(map(op.parameters, (self.p, self.h, self.F, self.f, self.g)))

    def multiply_adds(self, side: int) -> int:
        return sum(op.multiply_adds(ops, side) for ops in (self.h, self.F, self.g))

    def output_side(self, side: int) -> int:
        return op.output_side(self.F, side)


def layout(unit: Unit, in_channels: int, width: int, stride: int = 1, *, activated: bool = False) -> Layout:
    """Works out `unit` for `in_channels` input channels at a stage of `width`.

    `activated`: the input is activated already, as behind the stem, so `before` is not repeated
    (P2: the first activation stands before the split into the two paths).
    Raises `InputError` where a shape cannot be made.
    """
    arrangement, branch, h = unit.arrangement, unit.branch, unit.h
    out = branch.out_channels(width)
    changes = stride != 1 or in_channels != out
    before = () if activated else activation_ops(arrangement.before, in_channels)
    shared = bool(before) and h.shares_activation(unit.downsample, changes=changes)
    acts = not changes or h.acts_at_downsample
    return Layout(
        p=before if shared else (),
        h=h.path(unit.downsample, arrangement, in_channels, out, stride) + (h.layers(out) if acts else ()),
        F=(*(() if shared else before), *branch.function(arrangement, in_channels, width, stride))
        + (h.branch_layers(out) if acts else ()),
        f=activation_ops(arrangement.f, out),
        g=h.gate(in_channels, out, stride) if acts else (),
        gates_branch=h.gates_branch,
        gate_bias=h.gate_bias,
    )
