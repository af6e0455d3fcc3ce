"""The shortcut h, and what resizes it where a unit changes shape (P1, Sec. 3.3; P2, Sec. 3)."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from kilolayer.errors import InputError
from kilolayer.units.checks import check_choice, check_number, check_probability

AtChange = Literal["apply", "skip"]


@dataclass(frozen=True)
class Identity:
    """h(x) = x."""


@dataclass(frozen=True)
class Zero:
    """h(x) = 0: a plain net."""


@dataclass(frozen=True)
class Scaled:
    """h(x) = λ·x and F scaled by its own factor (P2, Table 1 "constant scaling").

    `at_change`: at shape-changing units λ acts on the resized shortcut ("apply", the default) or
    both factors are left out ("skip"); the paper does not say.
    """

    shortcut: float = 0.5
    branch: float = 1.0
    at_change: AtChange = "apply"

    def __post_init__(self) -> None:
        check_number("Scaled", shortcut=self.shortcut, branch=self.branch)
        check_choice("Scaled", "at_change", self.at_change, "apply", "skip")


@dataclass(frozen=True)
class ExclusiveGate:
    """y = (1−g(x))·h(x) + g(x)·F(x), g(x) = σ(W_g x + b_g) (P2, Sec. 3.1 "exclusive gating").

    g is a 1×1 convolution with bias, one value per channel and position; `bias` initialises b_g.
    Left open by the paper: `at_change`: at shape-changing units the gate is a strided 1×1
    convolution on the resized shortcut ("apply", the default) or is left out ("skip"); and
    `batch_norm`, BN on the gate's convolution (default: none, so that b_g alone sets the start).
    """

    bias: float = -6.0
    at_change: AtChange = "apply"
    batch_norm: bool = False

    def __post_init__(self) -> None:
        check_number(type(self).__name__, bias=self.bias)
        check_choice(type(self).__name__, "at_change", self.at_change, "apply", "skip")


@dataclass(frozen=True)
class ShortcutGate(ExclusiveGate):
    """y = (1−g(x))·h(x) + F(x) (P2, Sec. 3.1 "shortcut-only gating"); the choices of `ExclusiveGate`."""


@dataclass(frozen=True)
class Dropout:
    """h(x) = dropout(x) (P2, Sec. 3.1), on the output of the identity shortcut, also when resized.

    `at_change` = "skip" leaves it out at shape-changing units; the paper does not say.
    """

    p: float = 0.5
    at_change: AtChange = "apply"

    def __post_init__(self) -> None:
        check_probability("Dropout", p=self.p)
        check_choice("Dropout", "at_change", self.at_change, "apply", "skip")


@dataclass(frozen=True)
class Projection:
    """h(x) = W_s x, a 1×1 convolution; with BN where the arrangement puts BN after its last convolution.

    As a unit's `resize` it stands only where the shape changes (option B); as its `h`, in every
    unit (option C). With a pre-activation it reads the pre-activated tensor.
    """


@dataclass(frozen=True)
class ZeroPad:
    """Option A: strided identity and zero channels, free of parameters.

    `reads`: in a pre-activation unit the "raw" x, which keeps P2's Eq. (4) whole across stages (the
    default), or the "preactivated" tensor, as the released code's shape-changing units do.
    """

    reads: Literal["raw", "preactivated"] = "raw"

    def __post_init__(self) -> None:
        check_choice("ZeroPad", "reads", self.reads, "raw", "preactivated")


Shortcut = Identity | Zero | Scaled | ExclusiveGate | ShortcutGate | Dropout | Projection
Resize = ZeroPad | Projection

_SYNTAX: dict[str, tuple[type, tuple[str, ...]]] = {
    "identity": (Identity, ()),
    "zero": (Zero, ()),
    "scaled": (Scaled, ("shortcut", "branch")),
    "exclusive_gate": (ExclusiveGate, ("bias",)),
    "shortcut_gate": (ShortcutGate, ("bias",)),
    "dropout": (Dropout, ("p",)),
    "projection": (Projection, ()),
}


def parse_shortcut(text: str) -> Shortcut:
    """A shortcut from its command-line form, as "scaled:0.5", "scaled:0.5,0.5" or "exclusive_gate:-6".

    Raises `InputError` for an unknown name or a value that is no number.
    """
    name, _, rest = text.partition(":")
    if name not in _SYNTAX:
        near = get_close_matches(name, _SYNTAX, n=1)
        first = f"nearest: {near[0]}; " if near else ""
        raise InputError(f"unknown shortcut {text!r}; {first}allowed: {', '.join(map(_usage, _SYNTAX))}")
    kind, parameters = _SYNTAX[name]
    values = rest.split(",") if rest else []
    if len(values) > len(parameters):
        raise InputError(f"shortcut {text!r} has too many values; allowed: {_usage(name)}")
    try:
        numbers = {key: float(value) for key, value in zip(parameters, values, strict=False)}
    except ValueError:
        usage = _usage(name)
        raise InputError(f"shortcut {text!r} has a value that is no number; allowed: {usage}") from None
    shortcut: Shortcut = kind(**numbers)
    return shortcut


def _usage(name: str) -> str:
    parameters = _SYNTAX[name][1]
    return name + (f"[:{'[,'.join(parameters)}{']' * len(parameters)}" if parameters else "")
