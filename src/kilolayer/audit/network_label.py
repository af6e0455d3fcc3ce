"""Reads a network's label, such as "PreActResNet18", "resnext29_8x64d" or "wrn_28_10"."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kilolayer.errors import InputError
from kilolayer.networks.description import Network
from kilolayer.networks.names import describe

_WIDE = re.compile(r"(?:wide_?res_?net|wrn)_?(?P<depth>\d+)_(?P<widen>\d+)")
_NEXT = re.compile(r"resnext_?(?P<depth>\d+)(?:_(?P<cardinality>\d+)x(?P<d>\d+)d?)?")
_PLAIN = re.compile(r"plain(?:_?(?:res)?net)?_?(?P<depth>\d+)")
_RES = re.compile(r"res(?:_?net|_unit)?(?:_?v2)?(?:_pre_?act\w*?)?_?(?P<depth>\d+)")
_BARE = re.compile(r"(?<!\d)(?P<depth>\d{2,4})(?!\d)")


@dataclass(frozen=True)
class NetworkLabel:
    """The parts of a label; None for a part that it does not mention."""

    text: str
    depth: int
    preact: bool
    plain: bool = False
    cardinality: int | None = None
    d: int | None = None
    widen: int | None = None

    def network(self, stages: int, choice: str = "") -> Network | None:
        """Kilolayer's network of that name with so many stages (CIFAR's have three); None without one."""
        for family in ("_cifar", ""):
            try:
                ours = describe(self._name(choice) + family)
            except InputError:
                continue
            if len(ours.stages) == stages:
                return ours
        return None

    def _name(self, choice: str) -> str:
        if self.cardinality:
            return f"{'preact_' * self.preact}resnext{self.depth}_{self.cardinality}x{self.d}d"
        if self.widen:
            return f"wide_resnet{self.depth}_{self.widen}"
        kind = "plain" if self.plain else "preact_resnet" if self.preact else "resnet"
        return f"{kind}{self.depth}{choice}"


def read_label(text: str) -> NetworkLabel | None:
    """The label in a text; None if it names no network with a depth.

    >>> label = read_label("wrn_28_10")
    >>> label.depth, label.widen
    (28, 10)
    """
    words = re.sub(r"[^a-z0-9]+", "_", text.lower())
    preact = re.search(r"pre_?act|pre_?res|res_?net_?v2|identity", words) is not None
    if match := _WIDE.search(words):
        return NetworkLabel(text, int(match["depth"]), preact, widen=int(match["widen"]))
    if match := _NEXT.search(words):
        cardinality, d = (int(match[key]) if match[key] else None for key in ("cardinality", "d"))
        return NetworkLabel(text, int(match["depth"]), preact, cardinality=cardinality, d=d)
    if match := _PLAIN.search(words):
        return NetworkLabel(text, int(match["depth"]), preact, plain=True)
    match = _RES.search(words) or (_BARE.search(words) if preact or "res" in words else None)
    return NetworkLabel(text, int(match["depth"]), preact) if match else None
