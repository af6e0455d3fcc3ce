"""The shortcut h, and what resizes it where a unit changes shape (P1, Sec. 3.3; P2, Sec. 3).

A kind of shortcut says everything of itself in its class: its layers, what it does to F, its gate, its word
on the command line, its equation and its factor. Your own is a frozen dataclass that extends `Shortcut`.
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

AtDownsample = Literal["apply", "skip"]


@dataclass(frozen=True)
class Downsample:
    """What gives the shortcut its unit's shape where the unit changes it."""

    @property
    def reads(self) -> str:
        """In a pre-activation unit: the "raw" x or the "preactivated" tensor."""
        raise op.NoReading(f"{type(self).__name__} does not say what it reads")

    def downsample(self, arrangement: Arrangement, in_channels: int, out_channels: int, stride: int) -> Ops:
        """The layers. Raises `InputError` where it cannot go from one width to the other."""
        raise op.NoReading(f"{type(self).__name__} does not say which layers it has")


@dataclass(frozen=True)
class Shortcut:
    """h of y = h(x) + F(x). A kind that says no more is the identity, under its own name."""

    name: ClassVar[str] = ""
    """Its word on the command line, and the numbers that follow it, by their fields."""
    numbers: ClassVar[tuple[str, ...]] = ()

    @property
    def acts_at_downsample(self) -> bool:
        """Whether it acts on the resized shortcut too where the unit changes shape."""
        return getattr(self, "at_downsample", "apply") == "apply"

    def path(
        self,
        downsample: Downsample,
        arrangement: Arrangement,
        in_channels: int,
        out_channels: int,
        stride: int,
    ) -> Ops:
        """x with the shape of F(x): nothing where it has it, else `resize`."""
        if stride == 1 and in_channels == out_channels:
            return ()
        return downsample.downsample(arrangement, in_channels, out_channels, stride)

    def layers(self, channels: int) -> Ops:
        """What acts on x behind `path`."""
        return ()

    def branch_layers(self, channels: int) -> Ops:
        """What acts on F(x)."""
        return ()

    def gate(self, in_channels: int, out_channels: int, stride: int) -> Ops:
        """Where there is one, y = (1−g)·h(x) + F(x) with g = σ(gate(x))."""
        return ()

    gates_branch: ClassVar[bool] = True
    """Whether g multiplies F(x) too."""

    @property
    def gate_bias(self) -> float:
        """b_g at the beginning."""
        return 0.0

    def shares_activation(self, downsample: Downsample, *, changes: bool) -> bool:
        """Whether h reads what stands ahead of F's first convolution, in a pre-activation unit."""
        return changes and downsample.reads == "preactivated"

    @property
    def equation(self) -> str:
        """The sum, as P2 writes it."""
        return f"{type(self).__name__}(x) + F(x)"

    @property
    def factor(self) -> float | None:
        """λ where h(x) = λ·x when training begins, on average over what is drawn; None if not known."""
        return None


@dataclass(frozen=True)
class Identity(Shortcut):
    """h(x) = x."""

    name = "identity"

    @property
    def equation(self) -> str:
        return "x + F(x)"

    @property
    def factor(self) -> float:
        return 1.0


@dataclass(frozen=True)
class Zero(Shortcut):
    """h(x) = 0: a plain net."""

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
    """h(x) = λ·x and F scaled by its own factor (P2, Table 1 "constant scaling").

    `at_change`: at shape-changing units λ acts on the resized shortcut ("apply", the default) or
    both factors are left out ("skip"); the paper does not say.
    """

    shortcut: float = 0.5
    branch: float = 1.0
    at_downsample: AtDownsample = "apply"

    name = "scaled"
    numbers = ("shortcut", "branch")

    def __post_init__(self) -> None:
        check_number("Scaled", shortcut=self.shortcut, branch=self.branch)
        check_choice("Scaled", "at_downsample", self.at_downsample, "apply", "skip")

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
    """y = (1−g(x))·h(x) + g(x)·F(x), g(x) = σ(W_g x + b_g) (P2, Sec. 3.1 "exclusive gating").

    g is a 1×1 convolution with bias, one value per channel and position; `bias` initialises b_g.
    Left open by the paper: `at_change`: at shape-changing units the gate is a strided 1×1
    convolution on the resized shortcut ("apply", the default) or is left out ("skip"); and
    `batch_norm`, BN on the gate's convolution (default: none, so that b_g alone sets the start).
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
        """1 − σ(b_g), the gate's convolution at its mean."""
        return 1 / (1 + math.exp(self.bias))


@dataclass(frozen=True)
class ShortcutGate(ExclusiveGate):
    """y = (1−g(x))·h(x) + F(x) (P2, Sec. 3.1 "shortcut-only gating"); the choices of `ExclusiveGate`."""

    name = "shortcut_gate"
    gates_branch = False


@dataclass(frozen=True)
class Dropout(Shortcut):
    """h(x) = dropout(x) (P2, Sec. 3.1), on the output of the identity shortcut, also when resized.

    `at_change` = "skip" leaves it out at shape-changing units; the paper does not say.
    """

    p: float = 0.5
    at_downsample: AtDownsample = "apply"

    name = "dropout"
    numbers = ("p",)

    def __post_init__(self) -> None:
        check_probability("Dropout", p=self.p)
        check_choice("Dropout", "at_downsample", self.at_downsample, "apply", "skip")

    def layers(self, channels: int) -> Ops:
        return (op.DropoutOp(self.p),)

    @property
    def equation(self) -> str:
        return f"dropout(x, {self.p:g}) + F(x)"


@dataclass(frozen=True)
class Projection(Shortcut, Downsample):
    """h(x) = W_s x, a 1×1 convolution; with BN where the arrangement puts BN after its last convolution.

    As a unit's `resize` it stands only where the shape changes (option B); as its `h`, in every
    unit (option C). With a pre-activation it reads the pre-activated tensor.
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
    """Option A: strided identity and zero channels, free of parameters.

    `reads`: in a pre-activation unit the "raw" x, which keeps P2's Eq. (4) whole across stages (the
    default), or the "preactivated" tensor, as the released code's shape-changing units do.
    """

    reads: Literal["raw", "preactivated"] = "raw"

    def __post_init__(self) -> None:
        check_choice("ZeroPad", "reads", self.reads, "raw", "preactivated")

    def downsample(self, arrangement: Arrangement, in_channels: int, out_channels: int, stride: int) -> Ops:
        if in_channels > out_channels:
            raise InputError(
                f"a zero-padding shortcut (option A) cannot go from {in_channels} to {out_channels} "
                f"channels; use downsample=Projection() (option B)"
            )
        return (op.PadChannels(out_channels - in_channels, stride),)


def parse_shortcut(text: str) -> Shortcut:
    """A shortcut from its command-line form, as "scaled:0.5", "scaled:0.5,0.5" or "exclusive_gate:-6".

    Raises `InputError` for an unknown name or a value that is no number.
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
