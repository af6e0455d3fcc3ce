"""Reads a network's label, such as "PreActResNet18", "resnext29_8x64d" or "wrn_28_10"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from kilolayer.errors import InputError
from kilolayer.networks.description import Network
from kilolayer.networks.names import describe

_PREACT = r"(?:pre_?act(?:ivation)?_?|pre_?(?=res))"
_VERSION = r"(?:_?v(?P<version>[12])(?![a-z]))?"
_CARDINALITY = r"(?:_(?P<cardinality>\d+)x(?P<d>\d+)d?(?![a-z0-9]))?"
_WIDE = re.compile(r"(?:wide_?res_?net|wrn)_?(?P<depth>\d+)(?P<letters>[a-z]*)_(?P<widen>\d+)(?![a-z0-9])")
_NEXT = re.compile(
    rf"(?P<preact>{_PREACT})?res_?next{_VERSION}_?(?P<depth>\d+)(?P<letters>[a-z]*){_CARDINALITY}"
)
_PLAIN = re.compile(r"plain(?:_?(?:res)?net)?_?(?P<depth>\d+)(?P<letters>[a-z]*)")
_RES = re.compile(
    rf"(?P<preact>{_PREACT})?res_?(?:net|unit){_VERSION}(?P<behind>_?{_PREACT})?_?(?P<depth>\d+)(?P<letters>[a-z]*)"
)
_BASE = re.compile(
    rf"{_PREACT}?(?:wide_?)?(?:res_?net|res_?next|plain_?(?:res)?net|wrn)(?:_?v[12](?![a-z0-9]))?"
)

# The letters behind a depth that leave its counting as it is: timm's and pytorchcv's b, c, d, s and t change
# the stem, the position of the stride or the shortcut.
_SAME_DEPTH = ("", "b", "bn", "c", "d", "s", "t")

# Words behind a depth that say how a network differs from the papers'.
_VARIANTS = re.compile(
    r"_(?:w\d*d?\d+|x\d+|gn|ln|ibn|frn|evos|bit|clip|mlp|half|slim|thin|wide|tiny|small|mini|pruned|light)(?![a-z0-9])"
)

# The depths at which the papers' networks are made of one block.
_BLOCKS = {
    3: {"basic": (20, 32, 44, 56, 110, 1202), "bottleneck": (164, 1001)},
    4: {"basic": (18, 34), "bottleneck": (50, 101, 152, 200)},
}


@dataclass(frozen=True)
class NetworkLabel:
    """What a label claims; None or False for what it does not certainly claim."""

    text: str
    depth: int
    preact: bool
    plain: bool = False
    aggregated: bool = False
    cardinality: int | None = None
    d: int | None = None
    widen: int | None = None
    counts_depth: bool = True
    """Whether the number is the papers' depth: not behind letters that change what is counted."""

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

    def claims_block(self, stages: int) -> bool:
        """Whether the papers' networks of that depth are made of one block only."""
        return any(self.depth in depths for depths in _BLOCKS.get(stages, {}).values())

    def _name(self, choice: str) -> str:
        if self.aggregated:
            return f"{'preact_' * self.preact}resnext{self.depth}_{self.cardinality}x{self.d}d"
        if self.widen:
            return f"wide_resnet{self.depth}_{self.widen}"
        kind = "plain" if self.plain else "preact_resnet" if self.preact else "resnet"
        return f"{kind}{self.depth}{choice}"


def _words(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower())


def read_label(text: str) -> NetworkLabel | None:
    """The label in a text; None if it names no network with a depth.

    >>> label = read_label("wrn_28_10")
    >>> label.depth, label.widen
    (28, 10)
    """
    words = _words(text)
    if match := _WIDE.search(words):
        return NetworkLabel(text, int(match["depth"]), False, widen=int(match["widen"]))
    if match := _NEXT.search(words):
        cardinality, d = (int(match[key]) if match[key] else None for key in ("cardinality", "d"))
        preact, counts = _claims_preact(match), match["letters"] in _SAME_DEPTH
        return NetworkLabel(
            text, int(match["depth"]), preact, False, True, cardinality, d, counts_depth=counts
        )
    if match := _PLAIN.search(words):
        return NetworkLabel(text, int(match["depth"]), False, plain=True, counts_depth=not match["letters"])
    if match := _RES.search(words):
        preact = _claims_preact(match) or bool(match["behind"])
        counts = match["letters"] in _SAME_DEPTH
        return NetworkLabel(text, int(match["depth"]), preact, counts_depth=counts)
    return None


def _claims_preact(match: re.Match[str]) -> bool:
    return bool(match["preact"]) or match["version"] == "2"


def label_base(text: str) -> Literal["papers", "variant", "other"]:
    """Whether a name is one of the papers' networks, a variant of one ("seresnet50d"), or another.

    >>> [label_base(name) for name in ("PreActResNet18", "seresnet50", "resnet50d", "pyramidnet110")]
    ['papers', 'variant', 'variant', 'other']
    """
    words = _words(text)
    match = _BASE.search(words)
    if match is None:
        return "other"
    before, behind = words[: match.start()], words[match.end() :]
    is_attached = before[-1:].isalpha() or behind[:1].isalpha()
    letters = re.match(r"_?\d+([a-z]+)", behind)
    is_variant = is_attached or (letters is not None and letters[1] != "bn") or _VARIANTS.search(behind)
    return "variant" if is_variant else "papers"
