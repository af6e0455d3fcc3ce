"""The residual function F: which convolutions it stacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kilolayer.errors import InputError
from kilolayer.units.checks import check_choice, check_count, check_probability
from kilolayer.units.ops import Conv

StrideOn = Literal["1x1", "3x3"]


@dataclass(frozen=True)
class Basic:
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


@dataclass(frozen=True)
class OneLayer:
    """One 3×3 convolution: the one-layer skip of P2, Table 3."""

    layers = 1

    def out_channels(self, width: int) -> int:
        return width

    def convs(self, in_channels: int, width: int, stride: int) -> tuple[Conv, ...]:
        return (Conv(in_channels, width, 3, stride),)


@dataclass(frozen=True)
class Bottleneck:
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
class Aggregated:
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


def _bottleneck(
    in_channels: int, inner: int, out: int, stride: int, groups: int, stride_on: StrideOn
) -> tuple[Conv, ...]:
    first, second = (stride, 1) if stride_on == "1x1" else (1, stride)
    return Conv(in_channels, inner, 1, first), Conv(inner, inner, 3, second, groups), Conv(inner, out, 1)


Branch = Basic | OneLayer | Bottleneck | Aggregated
