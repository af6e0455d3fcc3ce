"""A unit's equation in plain Unicode, and the effect of its shortcuts on a signal in plain sentences."""

from __future__ import annotations

import math

from kilolayer.theory.mean_field import MeanFieldPrediction
from kilolayer.units import (
    Branch,
    Dropout,
    ExclusiveGate,
    Identity,
    Projection,
    Scaled,
    Shortcut,
    Unit,
    Zero,
)
from kilolayer.units.arrangement import Layers
from kilolayer.units.field_checks import built_in_kinds


def unit_equation(unit: Unit) -> str:
    """y = h(x) + F(x) and x′ = f(y) (P2, Eq. 1 and 2), with this unit's h, F and f.

    >>> from kilolayer.units import BASIC
    >>> unit_equation(BASIC)
    'y = x + F(x),  F(x) = BN(W_2·ReLU(BN(W_1·x))),  x′ = ReLU(y)'
    """
    arrangement, branch = unit.arrangement, unit.branch
    f = _apply_layers(arrangement.f, "y")
    if type(branch) not in built_in_kinds(Branch):
        return f"y = {unit.h.equation},  F = {type(branch).__name__},  x′ = {f}"
    F = _apply_layers(arrangement.before, "x")
    for number in range(1, branch.layers + 1):
        F = f"W_{number}·{F}"
        F = _apply_layers(arrangement.between if number < branch.layers else arrangement.after, F)
    return f"y = {unit.h.equation},  F(x) = {F},  x′ = {f}"


def _apply_layers(layers: Layers, inner: str) -> str:
    for layer in layers:
        inner = f"{layer}({inner})"
    return inner


def explain_shortcuts(unit: Unit, prediction: MeanFieldPrediction) -> str:
    """The share of a signal that passes the shortcuts of all units, and the gradient along all paths."""
    units, all_paths = len(prediction.units), prediction.gradient[0]
    sentences = (
        _shortcuts(unit.h, units),
        _between(unit),
        f"In theory the gradient at the first unit, along all paths, is {_number(all_paths)} times the last"
        f"{_shortcuts_alone(unit.h, prediction.direct[0])}.",
    )
    return " ".join(filter(None, sentences))


def _shortcuts(h: Shortcut, units: int) -> str:
    match h:
        case Zero():
            return "There is no shortcut: the signal passes through every weight layer."
        case Scaled(factor):
            return _remaining_signal(factor, units, f"of the signal passes the {units} shortcuts")
        case ExclusiveGate(bias):
            return _gate_sentence(bias, units)
        case Dropout(p):
            text = f"is the probability that a value passes all {units} shortcuts without being dropped"
            return _remaining_signal(1 - p, units, text)
        case Projection():
            text = f"Every shortcut is a matrix: the signal passes the product of {units} matrices, "
            return text + "which mixes the channels and has no fixed factor."
        case Identity():
            return f"1^{units} = 1: the whole signal passes the {units} shortcuts."
        case _:
            return f"Theory has no factor for {type(h).__name__}: no prediction of the shortcuts alone."


def _shortcuts_alone(h: Shortcut, direct: float) -> str:
    """The gradient through the shortcuts alone, including f and the changes of shape."""
    if isinstance(h, Zero):
        return ""
    return (
        f"; through the shortcuts alone it is {_number(direct)} times, including f and the changes of shape"
    )


def _gate_sentence(bias: float, units: int) -> str:
    """The share that gated shortcuts pass at the start of training, with W_g at its mean, 0."""
    b_g, opened = _minus_sign(bias), 1 / (1 + math.exp(bias))
    text = f"With b_g = {b_g} a gate leaves about 1 − σ({b_g}) = {opened:.4g} of its shortcut: "
    return text + _remaining_signal(opened, units, f"of the signal passes all {units}")


def _remaining_signal(factor: float, units: int, subject: str) -> str:
    """The factor of all units together, with a verdict."""
    remaining = factor**units
    verdict = ": almost nothing." if remaining < 0.01 else ": it explodes." if remaining > 100 else "."
    return f"{factor:.4g}^{units} = {_number(remaining)} {subject}{verdict}"


def _between(unit: Unit) -> str:
    f = " and ".join(map(str, unit.arrangement.f))
    if not f or isinstance(unit.h, Zero):
        return ""
    return f"But f = {f} acts after every addition, so the path from unit to unit is not clear."


def _number(value: float) -> str:
    if value == 0 or 1e-4 <= abs(value) < 1e5:
        return f"{value:.2g}" if value < 100 else f"{value:,.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}·10^{{{_minus_sign(int(exponent))}}}"


def _minus_sign(value: float) -> str:
    return f"{value:g}".replace("-", "−")
