"""Where BN and ReLU stand in a residual unit (P2, Sec. 4 and Fig. 4)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from kilolayer.errors import InputError

Layer = Literal["BN", "ReLU"]
Layers = tuple[Layer, ...]
BN: Layer = "BN"
RELU: Layer = "ReLU"


@dataclass(frozen=True)
class Arrangement:
    """The activations around F's convolutions, and f.

        F(x) = after(conv(between(… conv(before(x)))))        x' = f(h(x) + F(x))

    `before` stands ahead of the first convolution, `between` after every convolution but the
    last, `after` behind the last; f acts after the addition. A non-empty `before` is a
    pre-activation: the network then repeats it once after its last addition.

    Raises `InputError` for anything but "BN" and "ReLU" in a field.
    """

    before: Layers = ()
    between: Layers = (BN, RELU)
    after: Layers = ()
    f: Layers = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            for layer in getattr(self, field.name):
                if layer not in (BN, RELU):
                    raise InputError(f"Arrangement.{field.name} holds {layer!r}; allowed: 'BN', 'ReLU'")


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
