"""The kinds of layers in a residual unit: frozen values with all of their readings.

    module          the PyTorch module that computes the layer
    output          channels and side of the output for an input of `channels` × `side` × `side`
    parameters      number of trainable parameters
    multiply_adds   multiply-adds for one image (P1's FLOPs: convolutions and matrix products)
    label, style    text and colour in drawings
    saved           the tensors that autograd saves for the backward pass
    carry           the effect on signal and gradient in mean-field theory
    expected_factor the λ of E[layer(x)] = λ·x

One value is printed, stored and built. A layer of your own is `CustomLayer(MODULE, channels)`, or a frozen
dataclass that extends `Op` with the method `module` and the field `channels`, the channels of its input:
Kilolayer measures the other readings on that module. Theory cannot be measured, so a layer without `carry`
or `expected_factor` has no prediction. This file imports PyTorch only when a reading needs it.

An `Ops` is a tuple of layers, applied from left to right. `ParallelPaths` are several `Ops` side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

from kilolayer.units.readings import MeasuredReadings, NoReading, SavedForBackward, Style

if TYPE_CHECKING:
    from torch import nn

S = TypeVar("S")
S_contra = TypeVar("S_contra", contravariant=True)


class PropagationRules(Protocol[S_contra]):
    """The operations of mean-field theory. Each returns the new signal and the map of gradients back."""

    def convolve(self, conv: Conv, x: S_contra) -> Any:
        """A convolution with random weights of He's variance."""

    def batch_norm(self, x: S_contra) -> Any:
        """Every channel, shifted to mean 0 and scaled to variance 1."""

    def relu(self, x: S_contra) -> Any:
        """max(x, 0)."""

    def drop(self, x: S_contra, p: float) -> Any:
        """Dropout: 0 with probability p, otherwise x / (1 − p)."""

    def multiply(self, x: S_contra, factor: float) -> Any:
        """factor · x."""

    def nothing(self, x: S_contra) -> Any:
        """The constant 0."""

    def pad(self, pad: PadChannels, x: S_contra) -> Any:
        """Every stride-th position, with channels of zeros appended."""

    def pool(self, x: S_contra) -> Any:
        """Max pooling, 3×3 with stride 2."""


@dataclass(frozen=True)
class Op:
    """One layer, with the readings that the module's docstring lists.

    Extend this class by a frozen dataclass to add a kind of your own. The readings that you do not write are
    measured on the module.

    >>> from torch import nn
    >>> @dataclass(frozen=True)
    ... class Swish(Op):
    ...     channels: int
    ...     def module(self):
    ...         return nn.SiLU()
    >>> Swish(16).output(16, 8), Swish(16).parameters, Swish(16).label
    ((16, 8), 0, 'Swish')

    Raises:
        NoReading: the kind does not have the reading that you ask for.
    """

    name: ClassVar[str] = ""
    """The layer's name in a state dict, before its number; by default the class's name in lower case."""
    style: ClassVar[Style] = "other"
    """The group of layers that drawings colour alike."""
    needs_batch: ClassVar[bool] = False
    """Whether training needs more than one value of every channel in a batch, as BN does."""
    is_random: ClassVar[bool] = True
    """Whether the layer may draw random numbers in training, as dropout does. A network with such a layer
    sets a seed in every training step, so that a resumed run draws the same numbers."""

    def module(self) -> nn.Module:
        """A new module that computes this layer."""
        kind = type(self).__name__
        raise NoReading(f"a layer of kind {kind} does not define its module: write the method module()")

    def output(self, channels: int, side: int) -> tuple[int, int]:
        """Channels and side of the output for an input of `channels` × `side` × `side`."""
        return _measure(self, side).output

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.module().parameters() if parameter.requires_grad)

    def multiply_adds(self, side: int) -> int:
        """Multiply-adds for one image whose feature map is `side` × `side`."""
        return _measure(self, side).multiply_adds

    @property
    def label(self) -> str:
        """The text of this layer in a drawing."""
        values = (f"{name} {value}" for name, value in vars(self).items() if name != "channels")
        return ", ".join((type(self).__name__, *values))

    def saved(self, channels: int, side: int) -> SavedForBackward:
        """The tensors that autograd saves for an input of `channels` × `side` × `side`."""
        return _measure(self, side).saved

    @property
    def expected_factor(self) -> float | None:
        """λ if E[layer(x)] = λ·x at the start of training; None if no such number is known."""
        return None

    def carry(self, theory: PropagationRules[S], x: S) -> Any:
        """The signal after this layer, and the map of gradients back to its input, by rules of `theory`."""
        raise NoReading(
            f"mean-field theory has no rule for a layer of kind {type(self).__name__}: write carry()"
        )


def _measure(layer: Op, side: int) -> MeasuredReadings:
    from kilolayer.units.measured_readings import measure_layer

    channels = getattr(layer, "channels", None)
    if not isinstance(channels, int):
        kind = type(layer).__name__
        raise NoReading(f"a layer of kind {kind} has no field `channels`: add the channels of its input")
    return measure_layer(layer, channels, side)


@dataclass(frozen=True)
class Conv(Op):
    """A square convolution with padding ⌊kernel/2⌋. Only the convolution of a gate has a bias.

    (N, in_channels, H, W) → (N, out_channels, ⌈H/stride⌉, ⌈W/stride⌉)
    """

    in_channels: int
    out_channels: int
    kernel: int
    stride: int = 1
    groups: int = 1
    bias: bool = False

    name = "conv"
    style = "conv"
    is_random = False

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
    """A layer without parameters and multiply-adds, with an output of the input's shape."""

    is_random = False

    def output(self, channels: int, side: int) -> tuple[int, int]:
        return channels, side

    @property
    def parameters(self) -> int:
        return 0

    def multiply_adds(self, side: int) -> int:
        return 0


@dataclass(frozen=True)
class BatchNorm(SameShape):
    """Batch normalisation over (N, H, W), with a learned scale and shift for each channel."""

    channels: int

    name = "bn"
    style = "norm"
    needs_batch = True

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
    """max(x, 0)."""

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
    """3×3 max pooling with stride 2, the end of the ImageNet stem (P1, Table 1)."""

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
        # Autograd saves the index of every maximum: 8 bytes, the size of four bf16 numbers.
        return SavedForBackward(input=True, extra_numbers=4 * channels * (-(-side // 2)) ** 2)

    def carry(self, theory: PropagationRules[S], x: S) -> Any:
        return theory.pool(x)


@dataclass(frozen=True)
class DropoutOp(SameShape):
    """0 with probability p, otherwise x / (1 − p), in training alone."""

    p: float

    name = "dropout"
    is_random = True

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

    @property
    def expected_factor(self) -> float:
        return 1.0


@dataclass(frozen=True)
class ScaleOp(SameShape):
    """x ↦ factor · x (P2, Eq. 6)."""

    factor: float

    name = "scale"

    def module(self) -> nn.Module:
        from kilolayer.units import layer_modules

        return layer_modules.ScaleModule(self.factor)

    @property
    def label(self) -> str:
        return f"× {self.factor:g}"

    def saved(self, channels: int, side: int) -> SavedForBackward:
        return SavedForBackward()

    def carry(self, theory: PropagationRules[S], x: S) -> Any:
        return theory.multiply(x, self.factor)

    @property
    def expected_factor(self) -> float:
        return self.factor


@dataclass(frozen=True)
class PadChannels(SameShape):
    """Option A (P1, Sec. 3.3): every stride-th pixel, with `extra` channels of zeros appended."""

    extra: int
    stride: int = 1

    name = "pad"

    def module(self) -> nn.Module:
        from kilolayer.units import layer_modules

        return layer_modules.PadChannelsModule(self.extra, self.stride)

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
    """x ↦ 0: the shortcut of a plain net. The output is a single 0, which broadcasts to any shape."""

    name = "zero"

    def module(self) -> nn.Module:
        from kilolayer.units import layer_modules

        return layer_modules.ZeroModule()

    @property
    def label(self) -> str:
        return "0"

    def output(self, channels: int, side: int) -> tuple[int, int]:
        return 0, side

    def saved(self, channels: int, side: int) -> SavedForBackward:
        return SavedForBackward()

    def carry(self, theory: PropagationRules[S], x: S) -> Any:
        return theory.nothing(x)

    @property
    def expected_factor(self) -> float:
        return 0.0


@dataclass(frozen=True)
class ParallelPaths(Op):
    """Parallel paths with the same input, summed or concatenated (PX, Fig. 3 a and b).

    This is a container, as `Ops` is: code that visits layers (drawings, saved activations, theory) visits the
    layers of every path. So it has no label, no `saved` and no `carry`.
    """

    paths: tuple[Ops, ...]
    join: Literal["sum", "concatenate"]

    name = "aggregated"

    def module(self) -> nn.Module:
        from kilolayer.units import layer_modules

        return layer_modules.ParallelPathsModule(self.paths, self.join)

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
    """A layer of your own: `CustomLayer(KIND, channels, …)` is built as `KIND(channels, …)`.

    `kind` is a class of modules, or a function that returns one, with the channels of the input as its first
    argument. Kilolayer measures all readings on that module. The other arguments are compared and hashed, so
    they must be numbers, strings or tuples of these.

    >>> from torch import nn
    >>> layer = CustomLayer(nn.PReLU, 16, 0.1)
    >>> layer.module(), layer.parameters, layer.label
    (PReLU(num_parameters=16), 16, 'PReLU 0.1')
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
    """Every layer in `ops`, including the layers of parallel paths."""
    for op in ops:
        if isinstance(op, ParallelPaths):
            for path in op.paths:
                yield from leaves(path)
        else:
            yield op


def parameters(ops: Ops) -> int:
    """Number of trainable parameters in `ops`."""
    return sum(op.parameters for op in ops)


def multiply_adds(ops: Ops, side: int) -> int:
    """Multiply-adds of `ops` for one feature map of `side` × `side` (P1's FLOPs)."""
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
    """The side of every BN's input in `ops`, for an input of `side` × `side`."""
    for op in ops:
        if op.needs_batch:
            yield side
        if isinstance(op, ParallelPaths):
            for path in op.paths:
                yield from normalised_sides(path, side)
        side = output_side((op,), side)


def output_side(ops: Ops, side: int) -> int:
    """Side of the output for an input of `side` × `side`. Every stride rounds up."""
    return output(ops, 0, side)[1]
