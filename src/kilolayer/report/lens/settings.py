"""The settings on the lens's page: read from an address, and turned into a network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from kilolayer.errors import InputError
from kilolayer.networks import Network, Stem, cifar
from kilolayer.units import ARRANGEMENTS, BASIC, BOTTLENECK, ONE_LAYER, Arrangement, Branch, Shortcut, Unit
from kilolayer.units.field_checks import built_in_kinds

BRANCHES = {"basic": BASIC, "bottleneck": BOTTLENECK, "one_layer": ONE_LAYER}
SHORTCUTS = {kind.name: kind for kind in built_in_kinds(Shortcut)}
SLIDERS = {"shortcut": "scale", "bias": "bias", "p": "p"}
"""The slider for a field of a shortcut; a field without a slider keeps its default."""
WORDS = {
    "arrangement": tuple(ARRANGEMENTS),
    "shortcut": tuple(SHORTCUTS),
    "branch": tuple(BRANCHES),
    "images": ("noise", "digits"),
}
RANGES = {"scale": (0, 2), "bias": (-10, 10), "p": (0, 0.95), "depth": (20, 1001), "width": (4, 16)}
OWN = "own"
"""The word for a part of your own, where the lens was started with one."""
SIDE = 8
"""Side of the images in pixels; the measurement of a thousand layers takes about a second."""


Part = Unit | Shortcut | Branch | Arrangement


def own_parts(user_part: Part | None) -> dict[str, Any]:
    """The settings that your own part answers, and its value for each."""
    match user_part:
        case Unit():
            return {"arrangement": user_part.arrangement, "shortcut": user_part.h, "branch": user_part.branch}
        case Shortcut():
            return {"shortcut": user_part}
        case Branch():
            return {"branch": user_part}
        case Arrangement():
            return {"arrangement": user_part}
    return {}


def words(user_part: Part | None = None) -> dict[str, tuple[str, ...]]:
    """The words allowed for each setting, those for your own part last."""
    parts = own_parts(user_part)
    return {name: (*allowed, OWN) if name in parts else allowed for name, allowed in WORDS.items()}


@dataclass(frozen=True)
class LensSettings:
    """A network in a few words and numbers.

    `scale` is λ, `bias` is b_g and `p` is the probability of dropout, for shortcuts with such a field.
    `width` is the number of channels of the first stage, `images` the kind of images in the measurement.
    `user_part` is a unit of your own, or a part of one; the word "own" chooses it.

    >>> LensSettings(shortcut="scaled", scale=0.5).h.equation
    '0.5·x + F(x)'

    Raises:
        InputError: a word is not allowed, or a number is out of its range.
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
    user_part: Part | None = None

    def __post_init__(self) -> None:
        for name, allowed in words(self.user_part).items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        for name, (low, high) in RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} is {getattr(self, name)}; allowed: {low} to {high}")

    @classmethod
    def with_own(cls, user_part: Part | None) -> LensSettings:
        """The default settings, with your own part chosen where there is one."""
        layers = own_parts(user_part).get("branch", BASIC.branch).layers
        depth = 3 * layers * max(2, round((cls.depth - 2) / (3 * layers))) + 2
        chosen: dict[str, Any] = dict.fromkeys(own_parts(user_part), OWN)
        return cls(depth=depth, user_part=user_part, **chosen)

    @classmethod
    def from_query(cls, query: Mapping[str, str], user_part: Part | None = None) -> LensSettings:
        """The settings in the parameters of an address; missing ones are those of `with_own`."""
        types = {field.name: type(field.default) for field in fields(cls) if field.name != "own"}
        for name in query:
            if name not in types:
                raise InputError(f"no parameter {name!r}; there are: {', '.join(types)}")
        values = {name: _value(name, text, types[name]) for name, text in query.items()}
        return replace(cls.with_own(user_part), **values)

    @property
    def h(self) -> Shortcut:
        """The shortcut, with the values of its sliders."""
        if self.shortcut == OWN:
            shortcut: Shortcut = own_parts(self.user_part)["shortcut"]
            return shortcut
        kind = SHORTCUTS[self.shortcut]
        return kind(**{name: getattr(self, SLIDERS[name]) for name in kind.numbers if name in SLIDERS})

    @property
    def unit(self) -> Unit:
        """The residual unit. A whole unit of your own keeps its change of shape whatever else is chosen."""
        parts = own_parts(self.user_part)
        arrangement = parts["arrangement"] if self.arrangement == OWN else ARRANGEMENTS[self.arrangement]
        branch = parts["branch"] if self.branch == OWN else BRANCHES[self.branch].branch
        base = self.user_part if isinstance(self.user_part, Unit) else BRANCHES.get(self.branch, BASIC)
        return replace(base, branch=branch, h=self.h, arrangement=arrangement)

    def network(self) -> Network:
        """The CIFAR network of this depth and width, for grey images of 8×8 pixels.

        Raises `InputError` where no network has this depth; the message names the nearest depths.
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
