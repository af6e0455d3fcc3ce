"""The layers of a residual unit as plain values: what is printed is what is stored is what is built.

An `Ops` is a tuple of layers applied from left to right. It has three readings: modules
(`kilolayer.units.modules`), exact counts (`parameters`, `multiply_adds`), and a drawing
(`kilolayer.networks.drawing`). Nothing here imports PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, assert_never


@dataclass(frozen=True)
class Conv:
    """A square convolution, padded by ⌊kernel/2⌋; bias only where a gate's equation has one."""

    in_channels: int
    out_channels: int
    kernel: int
    stride: int = 1
    groups: int = 1
    bias: bool = False


@dataclass(frozen=True)
class BatchNorm:
    channels: int


@dataclass(frozen=True)
class ReLU:
    pass


@dataclass(frozen=True)
class MaxPool:
    """3×3 with stride 2, as after the ImageNet stem (P1, Table 1)."""


@dataclass(frozen=True)
class Dropout:
    p: float


@dataclass(frozen=True)
class Scale:
    """x ↦ factor · x (P2, Eq. 6)."""

    factor: float


@dataclass(frozen=True)
class PadChannels:
    """Option A (P1, Sec. 3.3): every stride-th pixel, and `extra` zero channels behind the others."""

    extra: int
    stride: int = 1


@dataclass(frozen=True)
class Zero:
    """x ↦ 0: the shortcut of a plain net."""


@dataclass(frozen=True)
class Paths:
    """Parallel paths that read the same input, then are summed or concatenated (PX, Fig. 3 a and b)."""

    paths: tuple[Ops, ...]
    join: Literal["sum", "concatenate"]


Op = Conv | BatchNorm | ReLU | MaxPool | Dropout | Scale | PadChannels | Zero | Paths
Ops = tuple[Op, ...]


def parameters(ops: Ops) -> int:
    """Trainable numbers in `ops`."""
    return sum(_parameters(op) for op in ops)


def _parameters(op: Op) -> int:
    match op:
        case Conv():
            weights = op.kernel**2 * (op.in_channels // op.groups) * op.out_channels
            return weights + (op.out_channels if op.bias else 0)
        case BatchNorm(channels):
            return 2 * channels
        case Paths(paths):
            return sum(parameters(path) for path in paths)
        case ReLU() | MaxPool() | Dropout() | Scale() | PadChannels() | Zero():
            return 0
        case _:
            assert_never(op)


def multiply_adds(ops: Ops, side: int) -> int:
    """Multiply-adds of the convolutions in `ops` for one image of `side` × `side` (P1's FLOPs)."""
    total = 0
    for op in ops:
        match op:
            case Conv():
                weights = op.kernel**2 * (op.in_channels // op.groups) * op.out_channels
                total += weights * output_side((op,), side) ** 2
            case Paths(paths):
                total += sum(multiply_adds(path, side) for path in paths)
            case BatchNorm() | ReLU() | MaxPool() | Dropout() | Scale() | PadChannels() | Zero():
                pass
            case _:
                assert_never(op)
        side = output_side((op,), side)
    return total


def normalised_sides(ops: Ops, side: int) -> Iterator[int]:
    """The sides of the maps that the BNs in `ops` read, for an input of `side` × `side`."""
    for op in ops:
        match op:
            case BatchNorm():
                yield side
            case Paths(paths):
                for path in paths:
                    yield from normalised_sides(path, side)
        side = output_side((op,), side)


def output_side(ops: Ops, side: int) -> int:
    """Side of the output for an input of `side` × `side`; every stride here rounds up."""
    for op in ops:
        match op:
            case Conv(stride=stride) | PadChannels(stride=stride):
                side = -(-side // stride)
            case MaxPool():
                side = -(-side // 2)
            case Paths(paths):
                side = output_side(paths[0], side)
            case BatchNorm() | ReLU() | Dropout() | Scale() | Zero():
                pass
            case _:
                assert_never(op)
    return side
