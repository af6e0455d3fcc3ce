"""The position of BN and ReLU in a residual unit (P2, Sec. 4 and Fig. 4).

To add an arrangement, add it to `ARRANGEMENTS`: the command line, the lens and the audit read that table.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from kilolayer.errors import InputError
from kilolayer.units import ops as op
from kilolayer.units.ops import Ops
from kilolayer.units.readings import NoReading


@dataclass(frozen=True)
class Activation:
    """A normaliser or nonlinearity of your own, for an `Arrangement`, beside "BN" and "ReLU".

    Extend it by a frozen dataclass with a method `layer`.

    >>> from kilolayer.units.ops import CustomLayer
    >>> from torch import nn
    >>> @dataclass(frozen=True)
    ... class Groups(Activation):
    ...     count: int = 4
    ...     normalises = True
    ...     def layer(self, channels):
    ...         return CustomLayer(nn.BatchNorm2d, channels)
    >>> Arrangement(between=(Groups(), RELU)).normaliser
    Groups(count=4)
    """

    normalises: ClassVar[bool] = False
    """Whether the layer normalises. In an arrangement without BN, the stem and the projections use it too."""

    def layer(self, channels: int) -> op.Op:
        """The layer for an input of `channels`."""
        raise NoReading(f"{self} does not define its layer: write the method layer(channels)")

    def __str__(self) -> str:
        return type(self).__name__


Layer = Literal["BN", "ReLU"] | Activation
Layers = tuple[Layer, ...]
BN: Layer = "BN"
RELU: Layer = "ReLU"
ALLOWED_LAYERS = "'BN', 'ReLU', or an instance of a class that extends Activation"


def activation_ops(layers: Layers, channels: int) -> Ops:
    """The layers named by `layers`, for an input of `channels`."""
    return tuple(_layer(layer, channels) for layer in layers)


def _layer(layer: Layer, channels: int) -> op.Op:
    if isinstance(layer, Activation):
        return layer.layer(channels)
    return op.BatchNorm(channels) if layer == BN else op.ReLU()


def normalises(layer: Layer) -> bool:
    """Whether `layer` is BN or another normaliser."""
    return layer.normalises if isinstance(layer, Activation) else layer == BN


@dataclass(frozen=True)
class Arrangement:
    """The activations around F's convolutions, and f (P2, Fig. 4).

        F(x) = after(conv(between(… conv(before(x)))))        x' = f(h(x) + F(x))

    `before` acts on the input of the first convolution, `between` on the output of every convolution but the
    last, `after` on the output of the last, and `f` on the sum. A non-empty `before` is a pre-activation: the
    network repeats it once after its last addition.

    >>> ORIGINAL
    Arrangement(before=(), between=('BN', 'ReLU'), after=('BN',), f=('ReLU',))
    >>> FULL_PREACT == Arrangement(before=(BN, RELU))
    True

    Raises:
        InputError: a field holds anything but "BN", "ReLU" or an `Activation`.
    """

    before: Layers = ()
    between: Layers = (BN, RELU)
    after: Layers = ()
    f: Layers = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            for layer in getattr(self, field.name):
                if layer not in (BN, RELU) and not isinstance(layer, Activation):
                    raise InputError(f"Arrangement.{field.name} holds {layer!r}; allowed: {ALLOWED_LAYERS}")

    @property
    def normaliser(self) -> Layer:
        """The normaliser of the stem and of projections: BN, or the one that this arrangement has instead."""
        layers = (*self.before, *self.between, *self.after, *self.f)
        return BN if BN in layers else next(filter(normalises, layers), BN)

    @property
    def nonlinearity(self) -> Layer:
        """The nonlinearity of the stem: ReLU, or the one that this arrangement has instead."""
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
"""Every arrangement that has a name; the first five are P2, Fig. 4 (a) to (e)."""
