"""The residual function F: its convolutions, in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from kilolayer.errors import InputError
from kilolayer.units.arrangement import Arrangement, Layers, activation_ops
from kilolayer.units.field_checks import check_choice, check_count, check_field, check_probability
from kilolayer.units.ops import Conv, DropoutOp, Ops, ParallelPaths
from kilolayer.units.readings import NoReading

StrideOn = Literal["1x1", "3x3"]
MAX_PATHS = 10_000


@dataclass(frozen=True)
class Branch:
    """The residual function F: its convolutions, and its layers that the arrangement does not name.

    Extend this class, or a branch below, by a frozen dataclass to add a branch of your own. Kilolayer's own
    branches are `Basic`, `OneLayer`, `Bottleneck` and `Aggregated`.

    >>> Basic().function(Arrangement(after=("BN",)), in_channels=16, width=16, stride=1)[0].label
    '3×3, 16 → 16'
    """

    layers: ClassVar[int] = 0
    """Number of weight layers, as they count for a network's depth."""

    def out_channels(self, width: int) -> int:
        """Channels of the output at a stage of `width`."""
        raise NoReading(f"{type(self).__name__} has no number of output channels: write out_channels(width)")

    def convs(self, in_channels: int, width: int, stride: int) -> tuple[Conv, ...]:
        """The convolutions, in order."""
        raise NoReading(f"{type(self).__name__} has no convolutions: write convs(in_channels, width, stride)")

    def function(self, arrangement: Arrangement, in_channels: int, width: int, stride: int) -> Ops:
        """F's layers, without the arrangement's `before`: the convolutions with `between`, then `after`."""
        convs = self.convs(in_channels, width, stride)
        stacked = self.stack(convs, arrangement.between)
        return (*stacked, *activation_ops(arrangement.after, convs[-1].out_channels))

    def stack(self, convs: tuple[Conv, ...], between: Layers) -> Ops:
        """The convolutions, with `between` after each but the last."""
        return _stack(convs, between)


def _stack(convs: tuple[Conv, ...], between: Layers, last: Ops = ()) -> Ops:
    """The convolutions with `between` after each but the last; `last` acts on the last one's input."""
    stacked: Ops = ()
    for conv in convs[:-1]:
        stacked += (conv, *activation_ops(between, conv.out_channels))
    return (*stacked, *last, convs[-1])


@dataclass(frozen=True)
class Basic(Branch):
    """Two 3×3 convolutions (P1, Fig. 5 left).

    Channels: in → widen·width → widen·width. The first convolution has the stride. With `widen` = k and
    `dropout` between the convolutions this is the unit of Wide ResNets.

    >>> [conv.label for conv in Basic(widen=2).convs(16, 16, stride=2)]
    ['3×3, 16 → 32, /2', '3×3, 32 → 32']

    Raises:
        InputError: `widen` is no whole number from 1, or `dropout` is outside of [0, 1).
    """

    widen: int = 1
    dropout: float = 0.0

    layers = 2

    def __post_init__(self) -> None:
        check_count(type(self).__name__, widen=self.widen)
        check_probability(type(self).__name__, dropout=self.dropout)

    def out_channels(self, width: int) -> int:
        return self.widen * width

    def convs(self, in_channels: int, width: int, stride: int) -> tuple[Conv, ...]:
        out = self.out_channels(width)
        return Conv(in_channels, out, 3, stride), Conv(out, out, 3)

    def stack(self, convs: tuple[Conv, ...], between: Layers) -> Ops:
        return _stack(convs, between, (DropoutOp(self.dropout),) if self.dropout else ())


@dataclass(frozen=True)
class OneLayer(Branch):
    """One 3×3 convolution (P2, Table 3, "1-layer skip"). Channels: in → width.

    >>> OneLayer().convs(16, 16, stride=1)[0].label
    '3×3, 16 → 16'
    """

    layers = 1

    def out_channels(self, width: int) -> int:
        return width

    def convs(self, in_channels: int, width: int, stride: int) -> tuple[Conv, ...]:
        return (Conv(in_channels, width, 3, stride),)


@dataclass(frozen=True)
class Bottleneck(Branch):
    """1×1, 3×3 and 1×1 convolutions (P1, Fig. 5 right).

    Channels: in → widen·width → widen·width → 4·width. `stride_on` names the convolution that has the stride:
    the first 1×1 in P1 and in P2's released code, the 3×3 in the models of FB and torchvision. `widen` = 2
    gives wide_resnet50_2.

    >>> [conv.label for conv in Bottleneck().convs(256, 128, stride=2)]
    ['1×1, 256 → 128, /2', '3×3, 128 → 128', '1×1, 128 → 512']

    Raises:
        InputError: `widen` is no whole number from 1, or `stride_on` is neither "1x1" nor "3x3".
    """

    widen: int = 1
    stride_on: StrideOn = "1x1"

    layers = 3

    def __post_init__(self) -> None:
        check_count(type(self).__name__, widen=self.widen)
        check_choice(type(self).__name__, "stride_on", self.stride_on, "1x1", "3x3")

    def out_channels(self, width: int) -> int:
        return 4 * width

    def convs(self, in_channels: int, width: int, stride: int) -> tuple[Conv, ...]:
        inner = self.widen * width
        return _bottleneck(in_channels, inner, self.out_channels(width), stride, 1, self.stride_on)


@dataclass(frozen=True)
class Aggregated(Branch):
    """C parallel bottlenecks of width d, ResNeXt's branch (PX, Fig. 3).

        F(x) = Σ_{i=1}^{C} T_i(x),   T_i: 1×1 to d channels, 3×3, 1×1 to 4·width channels

    `d` is the width of a path at a stage of width 64; it grows with the stage's width (PX, Table 1). `form`
    chooses one of three equivalent modules: "split" sums C paths (Fig. 3 a), "concatenated" joins them before
    one 1×1 convolution (3 b), "grouped" is one grouped convolution (3 c). `kilolayer.units.convert_unit_form`
    converts the weights of one form into those of another.

    >>> Aggregated(cardinality=32, d=4).convs(64, 64, stride=1)[1].label
    '3×3, 128 → 128, 32 groups'

    Raises:
        InputError: a field is out of its range, or d·width is no multiple of 64.
    """

    cardinality: int = 32
    d: int = 4
    form: Literal["split", "concatenated", "grouped"] = "grouped"
    stride_on: StrideOn = "3x3"

    layers = 3

    def __post_init__(self) -> None:
        check_count(type(self).__name__, cardinality=self.cardinality, d=self.d)
        check_choice(type(self).__name__, "stride_on", self.stride_on, "1x1", "3x3")
        check_choice(type(self).__name__, "form", self.form, "split", "concatenated", "grouped")
        # Paths are layers of their own here; a grouped convolution is one layer.
        holds = self.form == "grouped" or self.cardinality <= MAX_PATHS
        check_field(type(self).__name__, "cardinality", self.cardinality, holds, f"up to {MAX_PATHS:,} paths")

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
        """In form (a) every path ends in a 1×1 of its own; in (b) and (c) all paths share the last 1×1."""
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
