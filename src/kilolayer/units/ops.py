"""The kinds of layers in a residual unit: frozen values, each with everything that is read of it.

    module          the PyTorch module that it is built as
    output          channels and side of what it gives for an input of `channels` × `side` × `side`
    parameters      trainable numbers
    multiply_adds   of one image (P1's FLOPs: those of convolutions and matrix products)
    label, style    how drawings show it
    saved           what autograd keeps of it from the forward to the backward pass
    carry           what the mean-field theory says that it does to signal and gradient

What is printed is what is stored is what is built. A layer of your own is `CustomLayer(MODULE, channels)`,
or a frozen dataclass that extends `Op` and says no more than `module`, and `channels`, those of its input:
the other readings are measured on that module. Theory cannot be measured, so without `carry` there is no
prediction. Nothing here imports PyTorch before a reading needs it.

An `Ops` is a tuple of layers applied from left to right; `Paths` are several side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

from kilolayer.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from kilolayer.units.measured_readings import MeasuredReadings

Style = Literal["conv", "norm", "activation", "other"]
S = TypeVar("S")
S_contra = TypeVar("S_contra", contravariant=True)


@dataclass(frozen=True)
class SavedForBackward:
    """What autograd keeps of a layer: its input, its output, and how many numbers an image beside these."""

    input: bool = False
    output: bool = False
    extra_numbers: int = 0


class NoReading(InputError):
    """A layer of this kind has no such reading: the message names both."""


class PropagationRules(Protocol[S_contra]):
    """What mean-field theory can do to a signal; each gives the new signal and the way back of gradients."""

    def convolve(self, conv: Conv, x: S_contra) -> Any:
        """Random weights of He's variance."""

    def batch_norm(self, x: S_contra) -> Any:
        """Every channel less its mean, of variance 1."""

    def relu(self, x: S_contra) -> Any:
        """max(x, 0)."""

    def drop(self, x: S_contra, p: float) -> Any:
        """Every number dropped with probability p, the others divided by 1 − p."""

    def multiply(self, x: S_contra, factor: float) -> Any:
        """factor · x."""

    def nothing(self, x: S_contra) -> Any:
        """0."""

    def pad(self, pad: PadChannels, x: S_contra) -> Any:
        """Every stride-th position, and channels of zeros."""

    def pool(self, x: S_contra) -> Any:
        """3×3 maxima at a stride of 2."""


@dataclass(frozen=True)
class Op:
    """One kind of layer (see the module). Extend it by a frozen dataclass to add a kind of your own:

        @dataclass(frozen=True)
        class Swish(Op):
            channels: int

            def module(self) -> nn.Module:
                return nn.SiLU()

    Raises `NoReading` where a reading is asked for that the kind does not have.
    """

    name: ClassVar[str] = ""
    """What its modules are called in a state dict, before their number; otherwise the class's name, in small
    letters."""
    style: ClassVar[Style] = "other"
    needs_batch: ClassVar[bool] = False
    """Whether it needs more than one value of every channel in a batch."""
    is_random: ClassVar[bool] = True
    """Whether it may draw random numbers in training, as dropout does: then every step begins from a seed of
    its own, so that a resumed run draws the same."""

    def module(self) -> nn.Module:
        kind = type(self).__name__
        raise NoReading(f"a layer of kind {kind} does not say what module it is: it has no module()")

    def output(self, channels: int, side: int) -> tuple[int, int]:
        return _measured_readings(self, side).output

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.module().parameters() if parameter.requires_grad)

    def multiply_adds(self, side: int) -> int:
        return _measured_readings(self, side).multiply_adds

    @property
    def label(self) -> str:
        values = (f"{name} {value}" for name, value in vars(self).items() if name != "channels")
        return ", ".join((type(self).__name__, *values))

    def saved(self, channels: int, side: int) -> SavedForBackward:
        return _measured_readings(self, side).saved

    def carry(self, theory: PropagationRules[S], x: S) -> Any:
        """The signal behind this layer, and the way back of its gradient."""
        raise NoReading(
            f"mean-field theory says nothing of a layer of kind {type(self).__name__}: no carry()"
        )


def _measured_readings(layer: Op, side: int) -> MeasuredReadings:
    from kilolayer.units.measured_readings import measure_layer

    channels = getattr(layer, "channels", None)
    if not isinstance(channels, int):
        kind = type(layer).__name__
        raise NoReading(f"a layer of kind {kind} does not say what it reads: it has no field `channels`")
    return measure_layer(layer, channels, side)


@dataclass(frozen=True)
class Conv(Op):
    """A square convolution, padded by ⌊kernel/2⌋; bias only where a gate's equation has one."""

    in_channels: int
    out_channels: int
    kernel: int
    stride: int = 1
    groups: int = 1
    bias: bool = False

    name = "conv"
    style = "conv"
    draws = False

    def module(self) -> nn.Module:
        from torch import nn

        return nn.Conv2d(
            self.in_channels, self.out_channels, self.kernel, self.stride, self.kernel // 2,
            groups=self.groups, bias=self.bias,
        )  # fmt: skip

    def output(self, channels: int, side: int) -> tuple[int, int]:
        return self.out_channels, -(-side // self.stride)

    @property
    def _weights(self) -> int:
        return self.kernel**2 * (self.in_channels // self.groups) * self.out_channels

    @property
    def parameters(self) -> int:
        return self._weights + (self.out_channels if self.bias else 0)

    def multiply_adds(self, side: int) -> int:
        return self._weights * self.output(self.in_channels, side)[1] ** 2

    @property
    def label(self) -> str:
        marks = (
            f", /{self.stride}" if self.stride > 1 else "",
            f", {self.groups} groups" if self.groups > 1 else "",
            ", bias" if self.bias else "",
        )
        return f"{self.kernel}×{self.kernel}, {self.in_channels} → {self.out_channels}{''.join(marks)}"

    def saved(self, channels: int, side: int) -> SavedForBackward:
        return SavedForBackward(input=True)

    def carry(self, theory: PropagationRules[S], x: S) -> Any:
        return theory.convolve(self, x)


@dataclass(frozen=True)
class SameShape(Op):
    """A layer without parameters or products whose output has its input's shape."""

    draws = False

    def output(self, channels: int, side: int) -> tuple[int, int]:
        return channels, side

    @property
    def parameters(self) -> int:
        return 0

    def multiply_adds(self, side: int) -> int:
        return 0


@dataclass(frozen=True)
class BatchNorm(SameShape):
    channels: int

    name = "bn"
    style = "norm"
    over_batch = True

    def module(self) -> nn.Module:
        from kilolayer.units.batch_norm_module import make_batch_norm

        return make_batch_norm(self.channels)

    @property
    def parameters(self) -> int:
        return 2 * self.channels

    @property
    def label(self) -> str:
        return "BN"

    def saved(self, channels: int, side: int) -> SavedForBackward:
        return SavedForBackward(input=True)

    def carry(self, theory: PropagationRules[S], x: S) -> Any:
        return theory.batch_norm(x)


@dataclass(frozen=True)
class ReLU(SameShape):
    name = "relu"
    style = "activation"

    def module(self) -> nn.Module:
        from torch import nn

        return nn.ReLU()

    @property
    def label(self) -> str:
        return "ReLU"

    def saved(self, channels: int, side: int) -> SavedForBackward:
        return SavedForBackward(output=True)

    def carry(self, theory: PropagationRules[S], x: S) -> Any:
        return theory.relu(x)


@dataclass(frozen=True)
class MaxPool(SameShape):
    """3×3 with stride 2, as after the ImageNet stem (P1, Table 1)."""

    name = "pool"

    def module(self) -> nn.Module:
        from torch import nn

        return nn.MaxPool2d(3, 2, 1)

    @property
    def label(self) -> str:
        return "3×3 max pool, /2"

    def output(self, channels: int, side: int) -> tuple[int, int]:
        return channels, -(-side // 2)

    def saved(self, channels: int, side: int) -> SavedForBackward:
        # The places of the maxima are 8 bytes each, as much as four numbers in bf16.
        return SavedForBackward(input=True, extra_numbers=4 * channels * (-(-side // 2)) ** 2)

    def carry(self, theory: PropagationRules[S], x: S) -> Any:
        return theory.pool(x)


@dataclass(frozen=True)
class DropoutOp(SameShape):
    p: float

    name = "dropout"
    draws = True

    def module(self) -> nn.Module:
        from torch import nn

        return nn.Dropout(self.p)

    @property
    def label(self) -> str:
        return f"dropout {self.p:g}"

    def saved(self, channels: int, side: int) -> SavedForBackward:
        return SavedForBackward(extra_numbers=channels * side**2 if self.p > 0 else 0)

    def carry(self, theory: PropagationRules[S], x: S) -> Any:
        return theory.drop(x, self.p)


@dataclass(frozen=True)
class ScaleOp(SameShape):
    """x ↦ factor · x (P2, Eq. 6)."""

    factor: float

    name = "scale"

    def module(self) -> nn.Module:
        from kilolayer.units import modules

        return modules.ScaleModule(self.factor)

    @property
    def label(self) -> str:
        return f"× {self.factor:g}"

    def saved(self, channels: int, side: int) -> SavedForBackward:
        return SavedForBackward()

    def carry(self, theory: PropagationRules[S], x: S) -> Any:
        return theory.multiply(x, self.factor)


@dataclass(frozen=True)
class PadChannels(SameShape):
    """Option A (P1, Sec. 3.3): every stride-th pixel, and `extra` zero channels behind the others."""

    extra: int
    stride: int = 1

    name = "pad"

    def module(self) -> nn.Module:
        from kilolayer.units import modules

        return modules.PadChannelsModule(self.extra, self.stride)

    def output(self, channels: int, side: int) -> tuple[int, int]:
        return channels + self.extra, -(-side // self.stride)

    @property
    def label(self) -> str:
        return f"pad +{self.extra}" + (f", /{self.stride}" if self.stride > 1 else "")

    def saved(self, channels: int, side: int) -> SavedForBackward:
        return SavedForBackward()

    def carry(self, theory: PropagationRules[S], x: S) -> Any:
        return theory.pad(self, x)


@dataclass(frozen=True)
class ZeroOp(SameShape):
    """x ↦ 0: the shortcut of a plain net. Its output is one number, which any shape can be added to."""

    name = "zero"

    def module(self) -> nn.Module:
        from kilolayer.units import modules

        return modules.ZeroModule()

    @property
    def label(self) -> str:
        return "0"

    def output(self, channels: int, side: int) -> tuple[int, int]:
        return 0, side

    def saved(self, channels: int, side: int) -> SavedForBackward:
        return SavedForBackward()

    def carry(self, theory: PropagationRules[S], x: S) -> Any:
        return theory.nothing(x)


@dataclass(frozen=True)
class ParallelPaths(Op):
    """Parallel paths that read the same input, then are summed or concatenated (PX, Fig. 3 a and b).

    No kind of layer but a way to put layers together, as `Ops` is: who walks through layers walks through
    the paths (drawings, activations, theory), so it has none of their readings.
    """

    paths: tuple[Ops, ...]
    join: Literal["sum", "concatenate"]

    name = "aggregated"

    def module(self) -> nn.Module:
        from kilolayer.units import modules

        return modules.ParallelPathsModule(self)

    def output(self, channels: int, side: int) -> tuple[int, int]:
        ends = [output(path, channels, side) for path in self.paths]
        return sum(end[0] for end in ends) if self.join == "concatenate" else ends[0][0], ends[0][1]

    @property
    def parameters(self) -> int:
        return sum(map(parameters, self.paths))

    def multiply_adds(self, side: int) -> int:
        return sum(multiply_adds(path, side) for path in self.paths)


@dataclass(frozen=True, init=False)
class CustomLayer(Op):
    """A layer that is built as a module of your own: `CustomLayer(Gain, 16, 0.9)` is `Gain(16, 0.9)`.

    Its readings are measured on that module, which takes the channels of its input first. Arguments are
    compared and hashed, so they are numbers, words and tuples of them.
    """

    kind: Callable[..., nn.Module]
    channels: int
    arguments: tuple[object, ...]

    def __init__(self, kind: Callable[..., nn.Module], channels: int, *arguments: object) -> None:
        for name, value in (("kind", kind), ("channels", channels), ("arguments", arguments)):
            object.__setattr__(self, name, value)

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.kind.__name__.lower()

    def module(self) -> nn.Module:
        return self.kind(self.channels, *self.arguments)

    @property
    def label(self) -> str:
        return " ".join((self.kind.__name__, *map(str, self.arguments)))


Ops = tuple[Op, ...]


def leaves(ops: Ops) -> Iterator[Op]:
    """Every layer in `ops`, those of paths too."""
    for op in ops:
        if isinstance(op, ParallelPaths):
            for path in op.paths:
                yield from leaves(path)
        else:
            yield op


def parameters(ops: Ops) -> int:
    """Trainable numbers in `ops`."""
    return sum(op.parameters for op in ops)


def multiply_adds(ops: Ops, side: int) -> int:
    """Multiply-adds of the convolutions in `ops` for one image of `side` × `side` (P1's FLOPs)."""
    total = 0
    for op in ops:
        total += op.multiply_adds(side)
        side = output_side((op,), side)
    return total


def output(ops: Ops, channels: int, side: int) -> tuple[int, int]:
    """Channels and side of the output for an input of `channels` × `side` × `side`."""
    for op in ops:
        channels, side = op.output(channels, side)
    return channels, side


def normalised_sides(ops: Ops, side: int) -> Iterator[int]:
    """The sides of the maps that the BNs in `ops` read, for an input of `side` × `side`."""
    for op in ops:
        if op.needs_batch:
            yield side
        if isinstance(op, ParallelPaths):
            for path in op.paths:
                yield from normalised_sides(path, side)
        side = output_side((op,), side)


def output_side(ops: Ops, side: int) -> int:
    """Side of the output for an input of `side` × `side`; every stride here rounds up."""
    return output(ops, 0, side)[1]
