"""A residual unit described, and its layers worked out for one place in a network."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import UnionType
from typing import assert_never

from kilolayer.errors import InputError
from kilolayer.units import ops as op
from kilolayer.units.arrangement import BN, ORIGINAL, Arrangement, Layers
from kilolayer.units.branch import Aggregated, Basic, Bottleneck, Branch, OneLayer
from kilolayer.units.checks import check
from kilolayer.units.ops import Ops
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
    resize: Resize = field(default_factory=ZeroPad)

    def __post_init__(self) -> None:
        check("Unit", "branch", self.branch, isinstance(self.branch, Branch), _kinds(Branch))
        check("Unit", "h", self.h, isinstance(self.h, Shortcut), _kinds(Shortcut))
        check("Unit", "resize", self.resize, isinstance(self.resize, Resize), _kinds(Resize))
        is_arrangement = isinstance(self.arrangement, Arrangement)
        check("Unit", "arrangement", self.arrangement, is_arrangement, "an Arrangement")


def _kinds(union: UnionType) -> str:
    return ", ".join(kind.__name__ for kind in union.__args__)


BASIC = Unit()
ONE_LAYER = Unit(OneLayer())
BOTTLENECK = Unit(Bottleneck(), resize=Projection())
AGGREGATED = Unit(Aggregated(), resize=Projection())


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


def activation(layers: Layers, channels: int) -> Ops:
    """BN and ReLU for `channels` channels."""
    return tuple(op.BatchNorm(channels) if layer == BN else op.ReLU() for layer in layers)


def layout(unit: Unit, in_channels: int, width: int, stride: int = 1, *, activated: bool = False) -> Layout:
    """Works out `unit` for `in_channels` input channels at a stage of `width`.

    `activated`: the input is activated already, as behind the stem, so `before` is not repeated
    (P2: the first activation stands before the split into the two paths).
    Raises `InputError` where a shape cannot be made.
    """
    out = unit.branch.out_channels(width)
    changes = stride != 1 or in_channels != out
    before = () if activated else activation(unit.arrangement.before, in_channels)
    shared = bool(before) and _shares_preactivation(unit, changes)
    h = _shortcut(unit, in_channels, out, stride) if changes else _equal_shape_shortcut(unit, out)
    F = (*(() if shared else before), *_residual_function(unit, in_channels, width, stride))
    modifies = not (changes and getattr(unit.h, "at_change", "apply") == "skip")
    g: Ops = ()
    match unit.h:
        case Scaled(shortcut, branch) if modifies:
            h, F = _scaled(h, shortcut), _scaled(F, branch)
        case Dropout(p) if modifies:
            h = (*h, op.Dropout(p))
        case ExclusiveGate(batch_norm=normalised) if modifies:
            g = (op.Conv(in_channels, out, 1, stride, bias=not normalised),)
            g += (op.BatchNorm(out),) if normalised else ()
    return Layout(
        p=before if shared else (),
        h=h,
        F=F,
        f=activation(unit.arrangement.f, out),
        g=g,
        gates_branch=not isinstance(unit.h, ShortcutGate),
        gate_bias=unit.h.bias if isinstance(unit.h, ExclusiveGate) else 0.0,
    )


def _shares_preactivation(unit: Unit, changes: bool) -> bool:
    if isinstance(unit.h, Projection):
        return True
    if isinstance(unit.h, Zero) or not changes:
        return False
    return unit.resize == Projection() or unit.resize == ZeroPad("preactivated")


def _equal_shape_shortcut(unit: Unit, channels: int) -> Ops:
    match unit.h:
        case Zero():
            return (op.Zero(),)
        case Projection():
            return _projection(unit, channels, channels, 1)
        case Identity() | Scaled() | ExclusiveGate() | Dropout():
            return ()
        case _:
            assert_never(unit.h)


def _shortcut(unit: Unit, in_channels: int, out: int, stride: int) -> Ops:
    if isinstance(unit.h, Zero):
        return (op.Zero(),)
    if isinstance(unit.h, Projection) or isinstance(unit.resize, Projection):
        return _projection(unit, in_channels, out, stride)
    if in_channels > out:
        raise InputError(
            f"a zero-padding shortcut (option A) cannot go from {in_channels} to {out} channels; "
            f"use resize=Projection() (option B)"
        )
    return (op.PadChannels(out - in_channels, stride),)


def _projection(unit: Unit, in_channels: int, out: int, stride: int) -> Ops:
    normalised = activation((BN,), out) if BN in unit.arrangement.after else ()
    return (op.Conv(in_channels, out, 1, stride), *normalised)


def _scaled(ops: Ops, factor: float) -> Ops:
    return ops if factor == 1 else (*ops, op.Scale(factor))


def _residual_function(unit: Unit, in_channels: int, width: int, stride: int) -> Ops:
    branch, arrangement = unit.branch, unit.arrangement
    convs = branch.convs(in_channels, width, stride)
    if isinstance(branch, Aggregated) and branch.form != "grouped":
        stacked: Ops = _paths(branch, convs, arrangement.between)
    else:
        drop = (op.Dropout(branch.dropout),) if isinstance(branch, Basic) and branch.dropout else ()
        stacked = _stack(convs, arrangement.between, drop)
    return (*stacked, *activation(arrangement.after, convs[-1].out_channels))


def _stack(convs: tuple[op.Conv, ...], between: Layers, drop: Ops = ()) -> Ops:
    stacked: Ops = ()
    for conv in convs[:-1]:
        stacked += (conv, *activation(between, conv.out_channels))
    return (*stacked, *drop, convs[-1])


def _paths(branch: Aggregated, convs: tuple[op.Conv, ...], between: Layers) -> Ops:
    """PX, Fig. 3 (a): each path ends in its own 1×1; (b): paths are concatenated before one 1×1."""
    reduce, spatial, expand = convs
    d = reduce.out_channels // branch.cardinality
    narrow = (
        op.Conv(reduce.in_channels, d, 1, reduce.stride),
        op.Conv(d, d, 3, spatial.stride),
    )
    if branch.form == "split":
        path = _stack((*narrow, op.Conv(d, expand.out_channels, 1)), between)
        return (op.Paths((path,) * branch.cardinality, "sum"),)
    path = _stack(narrow, between)
    joined = op.Paths((path,) * branch.cardinality, "concatenate")
    return (joined, *activation(between, reduce.out_channels), expand)
