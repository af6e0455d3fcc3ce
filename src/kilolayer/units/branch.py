"""The residual function F: which convolutions it stacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from kilolayer.errors import InputError
from kilolayer.units.arrangement import Arrangement, Layers, activation_ops
from kilolayer.units.field_checks import check_choice, check_count, check_probability
from kilolayer.units.ops import Conv, DropoutOp, NoReading, Ops, ParallelPaths

StrideOn = Literal["1x1", "3x3"]


@dataclass(frozen=True)
class Branch:
    """F: which convolutions it stacks, and what else it has beside the arrangement's BN and ReLU.

    Extend it, or a branch below, by a frozen dataclass to add one of your own.
    """

    layers: ClassVar[int] = 0
    """Its weight layers, as a network's depth counts them."""

    def out_channels(self, width: int) -> int:
        """Channels of the output at a stage of `width`."""
        raise NoReading(f"{type(self).__name__} does not say how wide it ends: it has no out_channels()")

    def convs(self, in_channels: int, width: int, stride: int) -> tuple[Conv, ...]:
        """Its convolutions in their order."""
        raise NoReading(f"{type(self).__name__} does not say which convolutions it has: it has no convs()")

    def function(self, arrangement: Arrangement, in_channels: int, width: int, stride: int) -> Ops:
        """F's layers behind the arrangement's `before`: the convolutions with `between`, then `after`."""
        convs = self.convs(in_channels, width, stride)
        stacked = self.stack(convs, arrangement.between)
        return (*stacked, *activation_ops(arrangement.after, convs[-1].out_channels))

    def stack(self, convs: tuple[Conv, ...], between: Layers) -> Ops:
        """The convolutions with `between` behind all but the last."""
        return _stack(convs, between)


def _stack(convs: tuple[Conv, ...], between: Layers, last: Ops = ()) -> Ops:
    """`last` stands ahead of the last convolution."""
    stacked: Ops = ()
    for conv in convs[:-1]:
        stacked += (conv, *activation_ops(between, conv.out_channels))
    return (*stacked, *last, convs[-1])


@dataclass(frozen=True)
class Basic(Branch):
    """Two 3×3 convolutions (P1, Fig. 5 left); `widen` = k and `dropout` between them give WRN's unit.

    Shapes: in → k·width → k·width, the stride on the first convolution.
    """

    widen: int = 1
    dropout: float = 0.0

    layers = 2

    def __post_init__(self) -> None:
        check_count("Basic", widen=self.widen)
        check_probability("Basic", dropout=self.dropout)

    def out_channels(self, width: int) -> int:
        return self.widen * width

    def convs(self, in_channels: int, width: int, stride: int) -> tuple[Conv, ...]:
        out = self.out_channels(width)
        return Conv(in_channels, out, 3, stride), Conv(out, out, 3)

    def stack(self, convs: tuple[Conv, ...], between: Layers) -> Ops:
        return _stack(convs, between, (DropoutOp(self.dropout),) if self.dropout else ())


@dataclass(frozen=True)
class OneLayer(Branch):
    """One 3×3 convolution: the one-layer skip of P2, Table 3."""

    layers = 1

    def out_channels(self, width: int) -> int:
        return width

    def convs(self, in_channels: int, width: int, stride: int) -> tuple[Conv, ...]:
        return (Conv(in_channels, width, 3, stride),)


@dataclass(frozen=True)
class Bottleneck(Branch):
    """1×1, 3×3, 1×1 convolutions (P1, Fig. 5 right), inner width widen·width, output 4·width.

    `stride_on`: the first 1×1 convolution in P1 and in P2's released code, the 3×3 in FB's
    models and torchvision's. `widen` = 2 gives wide_resnet50_2.
    """

    widen: int = 1
    stride_on: StrideOn = "1x1"

    layers = 3

    def __post_init__(self) -> None:
        check_count("Bottleneck", widen=self.widen)
        check_choice("Bottleneck", "stride_on", self.stride_on, "1x1", "3x3")

    def out_channels(self, width: int) -> int:
        return 4 * width

    def convs(self, in_channels: int, width: int, stride: int) -> tuple[Conv, ...]:
        inner = self.widen * width
        return _bottleneck(in_channels, inner, self.out_channels(width), stride, 1, self.stride_on)


@dataclass(frozen=True)
class Aggregated(Branch):
    """ResNeXt's C parallel bottlenecks of width d (PX, Fig. 3), output 4·width.

        F(x) = Σ_{i=1}^{C} T_i(x),   T_i: 1×1 to d, 3×3, 1×1 to 4·width

    d is the width where the stage's width is 64 and grows with it (PX, Table 1). `form` chooses
    one of three equivalent modules: "split" (Fig. 3 a: C paths summed), "concatenated" (3 b) and
    "grouped" (3 c: one grouped convolution); `kilolayer.units.convert_form` carries weights across.
    """

    cardinality: int = 32
    d: int = 4
    form: Literal["split", "concatenated", "grouped"] = "grouped"
    stride_on: StrideOn = "3x3"

    layers = 3

    def __post_init__(self) -> None:
        check_count("Aggregated", cardinality=self.cardinality, d=self.d)
        check_choice("Aggregated", "stride_on", self.stride_on, "1x1", "3x3")
        check_choice("Aggregated", "form", self.form, "split", "concatenated", "grouped")

    def out_channels(self, width: int) -> int:
        return 4 * width

    def path_width(self, width: int) -> int:
        """Channels of one path at a stage of `width`."""
        if self.d * width % 64:
            raise InputError(
                f"ResNeXt {self.cardinality}×{self.d}d has no whole path width at stage width {width}; "
                f"d·width must be a multiple of 64"
            )
        return self.d * width // 64

    def convs(self, in_channels: int, width: int, stride: int) -> tuple[Conv, ...]:
        inner = self.cardinality * self.path_width(width)
        out = self.out_channels(width)
        return _bottleneck(in_channels, inner, out, stride, self.cardinality, self.stride_on)

    def stack(self, convs: tuple[Conv, ...], between: Layers) -> Ops:
        """Fig. 3 (a): each path ends in its own 1×1; (b): paths are concatenated before one 1×1; (c)."""
        if self.form == "grouped":
            return _stack(convs, between)
        reduce, spatial, expand = convs
        d = reduce.out_channels // self.cardinality
        narrow = Conv(reduce.in_channels, d, 1, reduce.stride), Conv(d, d, 3, spatial.stride)
        if self.form == "split":
            path = _stack((*narrow, Conv(d, expand.out_channels, 1)), between)
            return (ParallelPaths((path,) * self.cardinality, "sum"),)
        joined = ParallelPaths((_stack(narrow, between),) * self.cardinality, "concatenate")
        return (joined, *activation_ops(between, reduce.out_channels), expand)


def _bottleneck(
    in_channels: int, inner: int, out: int, stride: int, groups: int, stride_on: StrideOn
) -> tuple[Conv, ...]:
    first, second = (stride, 1) if stride_on == "1x1" else (1, stride)
    return Conv(in_channels, inner, 1, first), Conv(inner, inner, 3, second, groups), Conv(inner, out, 1)
