"""Where BN and ReLU stand in a residual unit (P2, Sec. 4 and Fig. 4)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from kilolayer.errors import InputError
from kilolayer.units import ops as op
from kilolayer.units.ops import Ops


@dataclass(frozen=True)
class Activation:
    """A normaliser or nonlinearity of your own, to stand in an `Arrangement` beside "BN" and "ReLU".

    Extend it by a frozen dataclass that says which layer it is for so many channels.
    """

    normalises: ClassVar[bool] = False
    """Whether it takes BN's place: the stem and projections have it too, where the arrangement has no BN."""

    def layer(self, channels: int) -> op.Op:
        raise op.NoReading(f"{self} does not say which layer it is: it has no layer()")

    def __str__(self) -> str:
        return type(self).__name__


Layer = Literal["BN", "ReLU"] | Activation
Layers = tuple[Layer, ...]
BN: Layer = "BN"
RELU: Layer = "ReLU"


def activation_ops(layers: Layers, channels: int) -> Ops:
    """`layers` for so many channels."""
    return tuple(_layer(layer, channels) for layer in layers)


def _layer(layer: Layer, channels: int) -> op.Op:
    if isinstance(layer, Activation):
        return layer.layer(channels)
    return op.BatchNorm(channels) if layer == BN else op.ReLU()


def normalises(layer: Layer) -> bool:
    """Whether it is BN or takes its place."""
    return layer.normalises if isinstance(layer, Activation) else layer == BN


@dataclass(frozen=True)
class Arrangement:
    """The activations around F's convolutions, and f.

        F(x) = after(conv(between(… conv(before(x)))))        x' = f(h(x) + F(x))

    `before` stands ahead of the first convolution, `between` after every convolution but the
    last, `after` behind the last; f acts after the addition. A non-empty `before` is a
    pre-activation: the network then repeats it once after its last addition.

    Raises `InputError` for anything but "BN", "ReLU" and an `Activation` in a field.
    """

    before: Layers = ()
    between: Layers = (BN, RELU)
    after: Layers = ()
    f: Layers = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            for layer in getattr(self, field.name):
                if layer not in (BN, RELU) and not isinstance(layer, Activation):
                    raise InputError(f"Arrangement.{field.name} holds {layer!r}; allowed: 'BN', 'ReLU'")

    @property
    def normaliser(self) -> Layer:
        """What the stem and projections normalise with: BN, or what takes its place here."""
        layers = (*self.before, *self.between, *self.after, *self.f)
        return BN if BN in layers else next(filter(normalises, layers), BN)

    @property
    def nonlinearity(self) -> Layer:
        """What stands in the stem: ReLU, or what takes its place here."""
        layers = (*self.before, *self.between, *self.after, *self.f)
        nonlinearities = [layer for layer in layers if layer != BN and not normalises(layer)]
        return RELU if RELU in nonlinearities else next(iter(nonlinearities), RELU)


ORIGINAL = Arrangement(after=(BN,), f=(RELU,))
BN_AFTER_ADDITION = Arrangement(f=(BN, RELU))
RELU_BEFORE_ADDITION = Arrangement(after=(BN, RELU))
RELU_ONLY_PREACT = Arrangement(before=(RELU,), after=(BN,))
FULL_PREACT = Arrangement(before=(BN, RELU))

ARRANGEMENTS = {
    "original": ORIGINAL,
    "bn_after_addition": BN_AFTER_ADDITION,
    "relu_before_addition": RELU_BEFORE_ADDITION,
    "relu_only_preactivation": RELU_ONLY_PREACT,
    "full_preactivation": FULL_PREACT,
}
"""The five arrangements of P2, Fig. 4 (a)–(e), by name."""
