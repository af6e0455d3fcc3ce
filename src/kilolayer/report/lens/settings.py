"""What one picks on the lens' page, read from an address and turned into a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from kilolayer.errors import InputError
from kilolayer.networks import Network, Stem, cifar
from kilolayer.units import (
    ARRANGEMENTS,
    BASIC,
    BOTTLENECK,
    ONE_LAYER,
    Dropout,
    ExclusiveGate,
    Identity,
    Projection,
    Scaled,
    Shortcut,
    ShortcutGate,
    Unit,
    Zero,
)

BRANCHES = {"basic": BASIC, "bottleneck": BOTTLENECK, "one_layer": ONE_LAYER}
SHORTCUTS: dict[str, Callable[[LensSettings], Shortcut]] = {
    "identity": lambda choice: Identity(),
    "scaled": lambda choice: Scaled(choice.scale),
    "exclusive_gate": lambda choice: ExclusiveGate(choice.bias),
    "shortcut_gate": lambda choice: ShortcutGate(choice.bias),
    "projection": lambda choice: Projection(),
    "dropout": lambda choice: Dropout(choice.p),
    "zero": lambda choice: Zero(),
}
WORDS = {
    "arrangement": tuple(ARRANGEMENTS),
    "shortcut": tuple(SHORTCUTS),
    "branch": tuple(BRANCHES),
    "images": ("noise", "digits"),
}
RANGES = {"scale": (0, 2), "bias": (-10, 10), "p": (0, 0.95), "depth": (20, 1001), "width": (4, 16)}
SIDE = 8
"""Pixels a side, so that a thousand layers are measured in about a second."""


@dataclass(frozen=True)
class LensSettings:
    """A network in a few words; `scale` is λ, `bias` b_g, `p` the dropout's, where the shortcut has them.

    `width` is that of the first stage; `images` are what is measured on. Raises `InputError` for a word that
    is not allowed or a number out of its range.
    """

    arrangement: str = "full_preactivation"
    shortcut: str = "scaled"
    scale: float = 0.9
    bias: float = -6.0
    p: float = 0.5
    branch: str = "basic"
    depth: int = 110
    width: int = 8
    images: str = "noise"

    def __post_init__(self) -> None:
        for name, allowed in WORDS.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        for name, (low, high) in RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} is {getattr(self, name)}; allowed: {low} to {high}")

    @classmethod
    def from_query(cls, words: Mapping[str, str]) -> LensSettings:
        """The choice in an address' parameters; what is not there is as on the first look."""
        types = {field.name: type(field.default) for field in fields(cls)}
        for name in words:
            if name not in types:
                raise InputError(f"no parameter {name!r}; there are: {', '.join(types)}")
        return cls(**{name: _value(name, text, types[name]) for name, text in words.items()})

    @property
    def h(self) -> Shortcut:
        return SHORTCUTS[self.shortcut](self)

    @property
    def unit(self) -> Unit:
        return replace(BRANCHES[self.branch], h=self.h, arrangement=ARRANGEMENTS[self.arrangement])

    def network(self) -> Network:
        """The CIFAR network of that depth for grey images of 8×8 pixels, as narrow as was asked for.

        Raises `InputError` naming the nearest depths where there is none of that depth.
        """
        full_width = cifar(self.depth, self.unit)
        stages = tuple(replace(stage, width=stage.width * self.width // 16) for stage in full_width.stages)
        return replace(full_width, stem=Stem(self.width), stages=stages, in_chans=1, image_size=SIDE)


def _value(name: str, text: str, kind: type) -> Any:
    try:
        value = kind(text)
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise InputError(f"{name} is {text[:40]!r}, which is not {expected}") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} is {text[:40]!r}, which is not finite")
    return value
