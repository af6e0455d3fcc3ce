"""The shortcut h, and its downsampling where a unit changes shape (P1, Sec. 3.3; P2, Sec. 3).

The class of a shortcut holds all that is known of it: its layers, its effect on F, its gate, its name on the
command line, its equation and its factor. A shortcut of your own extends `Shortcut` by a frozen dataclass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from difflib import get_close_matches
from typing import ClassVar, Literal

from kilolayer.errors import InputError
from kilolayer.units import ops as op
from kilolayer.units.arrangement import Arrangement, activation_ops, normalises
from kilolayer.units.field_checks import built_in_kinds, check_choice, check_number, check_probability
from kilolayer.units.ops import Ops
from kilolayer.units.readings import NoReading

AtDownsample = Literal["apply", "skip"]


@dataclass(frozen=True)
class Downsample:
    """The layers that give the shortcut the shape of F(x), where the unit changes its shape.

    Kilolayer has `ZeroPad` (option A) and `Projection` (option B).

    >>> [layer.label for layer in ZeroPad().downsample(Arrangement(), 16, 32, stride=2)]
    ['pad +16, /2']
    """

    @property
    def reads(self) -> str:
        """The input in a pre-activation unit: the "raw" x, or the "preactivated" tensor."""
        raise NoReading(f"{type(self).__name__} does not define its input: write the property reads")

    def downsample(self, arrangement: Arrangement, in_channels: int, out_channels: int, stride: int) -> Ops:
        """The layers. Raises `InputError` for widths that this kind cannot connect."""
        raise NoReading(f"{type(self).__name__} has no layers: write the method downsample()")


@dataclass(frozen=True)
class Shortcut:
    """The shortcut h in y = h(x) + F(x).

    A frozen dataclass that extends this class is a shortcut of your own. Every method has a default, which is
    the identity's; you write those that differ.

    >>> @dataclass(frozen=True)
    ... class Negative(Shortcut):
    ...     def layers(self, channels):
    ...         return (op.ScaleOp(-1.0),)
    >>> Negative().layers(16)[0].label, Negative().equation
    ('× -1', 'Negative(x) + F(x)')
    """

    name: ClassVar[str] = ""
    """The shortcut's name on the command line."""
    numbers: ClassVar[tuple[str, ...]] = ()
    """The fields whose values follow the name on the command line, as in "scaled:0.5,1"."""

    @property
    def acts_at_downsample(self) -> bool:
        """Whether `layers`, `branch_layers` and `gate` act in a unit that changes its shape, too."""
        return getattr(self, "at_downsample", "apply") == "apply"

    def path(
        self,
        downsample: Downsample,
        arrangement: Arrangement,
        in_channels: int,
        out_channels: int,
        stride: int,
    ) -> Ops:
        """The layers that give x the shape of F(x): those of `downsample`, or none where x has it."""
        if stride == 1 and in_channels == out_channels:
            return ()
        return downsample.downsample(arrangement, in_channels, out_channels, stride)

    def layers(self, channels: int) -> Ops:
        """The layers of h, after `path`."""
        return ()

    def branch_layers(self, channels: int) -> Ops:
        """Layers that act on F(x), as a factor does."""
        return ()

    def gate(self, in_channels: int, out_channels: int, stride: int) -> Ops:
        """The layers of a gate, if any: y = (1−g)·h(x) + F(x) with g = σ(gate(x))."""
        return ()

    gates_branch: ClassVar[bool] = True
    """Whether the gate g multiplies F(x) too."""

    @property
    def gate_bias(self) -> float:
        """The initial bias b_g of the gate."""
        return 0.0

    def shares_activation(self, downsample: Downsample, *, changes: bool) -> bool:
        """Whether h reads the activated tensor in a pre-activation unit, as F's first convolution does."""
        return changes and downsample.reads == "preactivated"

    @property
    def equation(self) -> str:
        """The sum h(x) + F(x), as P2 writes it."""
        return f"{type(self).__name__}(x) + F(x)"

    @property
    def factor(self) -> float | None:
        """λ if E[h(x)] = λ·x at the start of training; None if no such number is known."""
        return None


@dataclass(frozen=True)
class Identity(Shortcut):
    """h(x) = x.

    >>> Identity().equation, Identity().factor
    ('x + F(x)', 1.0)
    """

    name = "identity"

    @property
    def equation(self) -> str:
        return "x + F(x)"

    @property
    def factor(self) -> float:
        return 1.0


@dataclass(frozen=True)
class Zero(Shortcut):
    """h(x) = 0: a plain net.

    >>> Zero().equation, Zero().factor
    ('F(x)', 0.0)
    """

    name = "zero"

    @property
    def equation(self) -> str:
        return "F(x)"

    @property
    def factor(self) -> float:
        return 0.0

    def path(
        self,
        downsample: Downsample,
        arrangement: Arrangement,
        in_channels: int,
        out_channels: int,
        stride: int,
    ) -> Ops:
        return (op.ZeroOp(),)

    def shares_activation(self, downsample: Downsample, *, changes: bool) -> bool:
        return False


@dataclass(frozen=True)
class Scaled(Shortcut):
    """h(x) = λ·x, with a factor of its own for F (P2, Table 1, "constant scaling").

        y = shortcut · x + branch · F(x)

    `at_downsample` decides what the paper leaves open: in a unit that changes its shape, the factors act
    after the downsampling ("apply", the default) or not at all ("skip").

    >>> Scaled(0.5, 0.5).equation
    '0.5·x + 0.5·F(x)'

    Raises:
        InputError: a factor is not finite, or no number that float32 can hold.
    """

    shortcut: float = 0.5
    branch: float = 1.0
    at_downsample: AtDownsample = "apply"

    name = "scaled"
    numbers = ("shortcut", "branch")

    def __post_init__(self) -> None:
        check_number(type(self).__name__, shortcut=self.shortcut, branch=self.branch)
        check_choice(type(self).__name__, "at_downsample", self.at_downsample, "apply", "skip")

    def layers(self, channels: int) -> Ops:
        return _scale(self.shortcut)

    def branch_layers(self, channels: int) -> Ops:
        return _scale(self.branch)

    @property
    def equation(self) -> str:
        return f"{self.shortcut:g}·x + {'' if self.branch == 1 else f'{self.branch:g}·'}F(x)"

    @property
    def factor(self) -> float:
        return self.shortcut


def _scale(factor: float) -> Ops:
    return () if factor == 1 else (op.ScaleOp(factor),)


@dataclass(frozen=True)
class ExclusiveGate(Shortcut):
    """Exclusive gating (P2, Sec. 3.1):

        y = (1−g(x))·h(x) + g(x)·F(x),   g(x) = σ(W_g x + b_g)

    W_g is a 1×1 convolution, so g has one value for each channel and position. `bias` is the initial b_g. Two
    fields decide what the paper leaves open. `at_downsample`: in a unit that changes its shape, the gate is a
    1×1 convolution with stride ("apply", the default), or there is no gate ("skip"). `batch_norm` adds BN
    after the gate's convolution (the default is none, so that b_g alone sets the start).

    >>> ExclusiveGate(-6.0).equation
    '(1−g)·x + g·F(x),  g = σ(W_g·x + b_g),  b_g = −6'

    Raises:
        InputError: `bias` is not finite, or `at_downsample` is neither "apply" nor "skip".
    """

    bias: float = -6.0
    at_downsample: AtDownsample = "apply"
    batch_norm: bool = False

    name = "exclusive_gate"
    numbers = ("bias",)

    def __post_init__(self) -> None:
        check_number(type(self).__name__, bias=self.bias)
        check_choice(type(self).__name__, "at_downsample", self.at_downsample, "apply", "skip")

    def gate(self, in_channels: int, out_channels: int, stride: int) -> Ops:
        conv = op.Conv(in_channels, out_channels, 1, stride, bias=not self.batch_norm)
        return (conv, op.BatchNorm(out_channels)) if self.batch_norm else (conv,)

    @property
    def gate_bias(self) -> float:
        return self.bias

    @property
    def equation(self) -> str:
        gated = "g·F(x)" if self.gates_branch else "F(x)"
        return f"(1−g)·x + {gated},  g = σ(W_g·x + b_g),  b_g = {f'{self.bias:g}'.replace('-', '−')}"

    @property
    def factor(self) -> float:
        """1 − σ(b_g), for a convolution W_g at its mean, 0."""
        return 1 / (1 + math.exp(self.bias))


@dataclass(frozen=True)
class ShortcutGate(ExclusiveGate):
    """Shortcut-only gating: y = (1−g(x))·h(x) + F(x) (P2, Sec. 3.1), with the fields of `ExclusiveGate`.

    >>> ShortcutGate(-6.0).equation
    '(1−g)·x + F(x),  g = σ(W_g·x + b_g),  b_g = −6'
    """

    name = "shortcut_gate"
    gates_branch = False


@dataclass(frozen=True)
class Dropout(Shortcut):
    """h(x) = dropout(x) with probability `p` (P2, Sec. 3.1).

    `at_downsample` decides what the paper leaves open: in a unit that changes its shape, dropout acts after
    the downsampling ("apply", the default) or not at all ("skip").

    >>> Dropout(0.5).equation
    'dropout(x, 0.5) + F(x)'

    Raises:
        InputError: `p` is outside of [0, 1).
    """

    p: float = 0.5
    at_downsample: AtDownsample = "apply"

    name = "dropout"
    numbers = ("p",)

    def __post_init__(self) -> None:
        check_probability(type(self).__name__, p=self.p)
        check_choice(type(self).__name__, "at_downsample", self.at_downsample, "apply", "skip")

    def layers(self, channels: int) -> Ops:
        return (op.DropoutOp(self.p),)

    @property
    def equation(self) -> str:
        return f"dropout(x, {self.p:g}) + F(x)"


@dataclass(frozen=True)
class Projection(Shortcut, Downsample):
    """h(x) = W_s x, a 1×1 convolution (P1, Eq. 2), followed by BN if the arrangement ends in BN.

    As a unit's `downsample` it stands only where the shape changes (option B), as its `h` in every unit
    (option C). In a pre-activation unit it reads the activated tensor.

    >>> [layer.label for layer in Projection().downsample(Arrangement(after=("BN",)), 16, 32, stride=2)]
    ['1×1, 16 → 32, /2', 'BN']
    """

    name = "projection"

    @property
    def equation(self) -> str:
        return "W_s·x + F(x)"

    @property
    def reads(self) -> str:
        return "preactivated"

    def downsample(self, arrangement: Arrangement, in_channels: int, out_channels: int, stride: int) -> Ops:
        normalised = any(map(normalises, arrangement.after))
        after = activation_ops((arrangement.normaliser,), out_channels) if normalised else ()
        return (op.Conv(in_channels, out_channels, 1, stride), *after)

    def path(
        self,
        downsample: Downsample,
        arrangement: Arrangement,
        in_channels: int,
        out_channels: int,
        stride: int,
    ) -> Ops:
        return self.downsample(arrangement, in_channels, out_channels, stride)

    def shares_activation(self, downsample: Downsample, *, changes: bool) -> bool:
        return True


@dataclass(frozen=True)
class ZeroPad(Downsample):
    """Option A (P1, Sec. 3.3): every stride-th pixel and appended channels of zeros, without parameters.

    `reads` names the input in a pre-activation unit: the "raw" x (the default), so that P2's Eq. 4 holds
    across stages, or the "preactivated" tensor, as in P2's released code.

    >>> ZeroPad().downsample(Arrangement(), 64, 16, stride=2)
    Traceback (most recent call last):
    kilolayer.errors.InputError: a zero-padding shortcut (option A) cannot go from 64 to 16 channels; use \
downsample=Projection() (option B)

    Raises:
        InputError: `reads` is neither "raw" nor "preactivated".
    """

    reads: Literal["raw", "preactivated"] = "raw"

    def __post_init__(self) -> None:
        check_choice(type(self).__name__, "reads", self.reads, "raw", "preactivated")

    def downsample(self, arrangement: Arrangement, in_channels: int, out_channels: int, stride: int) -> Ops:
        if in_channels > out_channels:
            raise InputError(
                f"a zero-padding shortcut (option A) cannot go from {in_channels} to {out_channels} "
                f"channels; use downsample=Projection() (option B)"
            )
        return (op.PadChannels(out_channels - in_channels, stride),)


def parse_shortcut(text: str) -> Shortcut:
    """The shortcut that `text` names on the command line, as "scaled:0.5,0.5" or "exclusive_gate:-6".

    >>> parse_shortcut("scaled:0.9")
    Scaled(shortcut=0.9, branch=1.0, at_downsample='apply')

    Raises:
        InputError: the name is unknown, or a value is not a number.
    """
    kinds = {kind.name: kind for kind in built_in_kinds(Shortcut)}
    name, _, numbers_text = text.partition(":")
    if name not in kinds:
        near = get_close_matches(name, kinds, n=1)
        first = f"nearest: {near[0]}; " if near else ""
        usages = ", ".join(map(_usage, kinds.values()))
        raise InputError(f"unknown shortcut {text!r}; {first}allowed: {usages}")
    kind, usage = kinds[name], _usage(kinds[name])
    values = numbers_text.split(",") if numbers_text else []
    if len(values) > len(kind.numbers):
        raise InputError(f"shortcut {text!r} has too many values; allowed: {usage}")
    try:
        numbers = {key: float(value) for key, value in zip(kind.numbers, values, strict=False)}
    except ValueError:
        raise InputError(f"shortcut {text!r} has a value that is no number; allowed: {usage}") from None
    return kind(**numbers)


def _usage(kind: type[Shortcut]) -> str:
    return kind.name + (f"[:{'[,'.join(kind.numbers)}{']' * len(kind.numbers)}" if kind.numbers else "")
