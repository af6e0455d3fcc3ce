"""Names of networks: one pattern for all depths, and the list of the networks in the papers."""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from kilolayer.errors import InputError, looks_like_path, missing_path_error
from kilolayer.networks.description import Network
from kilolayer.networks.families import IMAGENET_UNITS, cifar, imagenet
from kilolayer.units.arrangement import FULL_PREACT, ORIGINAL
from kilolayer.units.branch import Aggregated, Basic, Bottleneck, Branch
from kilolayer.units.shortcut import Identity, Projection, Shortcut, Zero, ZeroPad
from kilolayer.units.unit import BASIC, BOTTLENECK, ONE_LAYER, Unit

T = TypeVar("T", Unit, Branch)

_PATTERN = re.compile(
    r"(?P<kind>preact_|plain_(?=res)|plain(?=\d)|)"
    r"(?P<family>resnet|resnext|wide_resnet|)(?P<depth>[1-9]\d{0,9})"
    r"(?:_(?P<cardinality>[1-9]\d{0,9})x(?P<d>[1-9]\d{0,9})d)?"
    r"(?:_(?P<widen>[1-9]\d{0,9}))?"
    r"(?:_(?P<block>basic|bottleneck|onelayer))?"
    r"(?:_(?P<option>[abc]))?"
    r"(?P<cifar>_cifar)?",
    re.ASCII,
)

_BLOCKS = {"basic": BASIC, "bottleneck": BOTTLENECK, "onelayer": ONE_LAYER}
_OPTIONS: dict[str, tuple[Shortcut, ZeroPad | Projection]] = {
    "a": (Identity(), ZeroPad()),
    "b": (Identity(), Projection()),
    "c": (Projection(), Projection()),
}

SYNTAX = (
    "[preact_]resnet<depth>[_basic|_bottleneck|_onelayer][_a|_b|_c][_cifar], plain<depth>[_cifar], "
    "[plain_|preact_]resnext<depth>_<C>x<d>d[_cifar], wide_resnet<depth>_<k>[_cifar]"
)


@dataclass(frozen=True)
class _ParsedName:
    """The parts of a name, with the rules that turn them into a unit."""

    kind: str
    family: str
    depth: int
    cardinality: str | None
    d: str | None
    widen: str | None
    block: str | None
    option: str | None
    cifar: bool

    @property
    def unit(self) -> Unit:
        unit = self._block()
        if self.option:
            h, downsample = _OPTIONS[self.option]
            unit = replace(unit, h=h, downsample=downsample)
        if self.kind == "plain":
            unit = replace(unit, h=Zero())
        preact = self.kind == "preact" or (self.cifar and self.family == "wide_resnet")
        return replace(unit, arrangement=FULL_PREACT if preact else ORIGINAL)

    def _block(self) -> Unit:
        if self.family == "resnext":
            return Unit(Aggregated(int(self.cardinality or 0), int(self.d or 0)), downsample=Projection())
        if self.family == "wide_resnet" and self.cifar:
            return Unit(Basic(widen=int(self.widen or 0)), downsample=Projection())
        if self.family == "wide_resnet":
            return Unit(Bottleneck(widen=int(self.widen or 0), stride_on="3x3"), downsample=Projection())
        unit = _BLOCKS[self.block or self._default_block()]
        return unit if self.cifar else replace(unit, downsample=Projection())

    def _default_block(self) -> str:
        if not self.cifar:
            return "basic" if self.depth in IMAGENET_UNITS[2] else "bottleneck"
        basic, bottleneck = self.depth % 6 == 2, self.depth % 9 == 2
        return "bottleneck" if bottleneck and (self.depth >= 164 or not basic) else "basic"


def _parse(name: str) -> _ParsedName | None:
    match = _PATTERN.fullmatch(name)
    if match is None:
        return None
    depth, cifar = int(match["depth"]), match["cifar"] is not None
    kinds = {key: match[key] for key in ("cardinality", "d", "widen", "block", "option")}
    parsed = _ParsedName(match["kind"].rstrip("_"), match["family"], depth, cifar=cifar, **kinds)
    return parsed if _is_consistent(parsed) else None


def _is_consistent(name: _ParsedName) -> bool:
    """Whether the parts fit: "plain20" has no family, ResNeXt needs C and d, and wide networks need k."""
    plain, named_block = name.kind == "plain", name.family in ("resnext", "wide_resnet")
    return (
        bool(name.family or plain)
        and (name.family == "resnext") == bool(name.cardinality)
        and (name.family == "wide_resnet") == bool(name.widen)
        and not (named_block and name.block)
        and not (plain and name.option)
    )


def describe(
    name: str, *, unit: dict[str, Any] | None = None, branch: dict[str, Any] | None = None, **options: Any
) -> Network:
    """The description of the network called `name`.

    `unit` and `branch` replace fields of its unit (`arrangement`, `h`, `downsample`) and of its branch
    (`stride_on`, `dropout`, `form`). `options` are fields of `Network` (`num_classes`, `in_chans`,
    `image_size`, `initialisation`). In the CIFAR family, depths 9n+2 from 164 on have bottlenecks, as in P2,
    and other depths 6n+2 have basic units; the suffixes `_basic` and `_bottleneck` choose one of them.

    >>> from kilolayer.units import Scaled
    >>> network = describe("preact_resnet110_cifar", unit={"h": Scaled(0.9)}, num_classes=100)
    >>> network.depth, network.unit.h.factor, network.num_classes
    (110, 0.9, 100)

    Raises:
        InputError: the name is unknown (the message names the nearest one), or the depth is impossible.
    """
    parsed = _parse(name)
    if parsed is None and looks_like_path(name):
        raise (
            InputError(f"{name} is a path, not the name of a network")
            if os.path.exists(name)
            else missing_path_error(name)
        )
    if parsed is None:
        raise InputError(f"unknown model {name!r}; nearest: {_nearest(name)}; names: {SYNTAX}")
    try:
        chosen = parsed.unit
        chosen = _replace_fields(
            chosen, {"branch": _replace_fields(chosen.branch, branch or {})} | (unit or {})
        )
        return (cifar if parsed.cifar else imagenet)(parsed.depth, chosen, **options)
    except InputError as error:
        raise InputError(f"{name}: {error}{_other_family(name, parsed)}") from None


def _nearest(name: str) -> str:
    longer = [model for model in _NAMES if model.startswith(name)]
    return get_close_matches(name.lower(), longer or _NAMES, n=1, cutoff=0.0)[0]


def _other_family(name: str, parsed: _ParsedName) -> str:
    """A hint where the other family has a network of this depth."""
    candidate = name.removesuffix("_cifar") if parsed.cifar else f"{name}_cifar"
    return f"; did you mean {candidate}?" if candidate in _NAMES else ""


def _replace_fields(value: T, fields: dict[str, Any]) -> T:
    """`value` with some fields replaced. Raises `InputError` for a field that it does not have."""
    allowed = [field.name for field in dataclasses.fields(value)]
    for field in fields:
        if field not in allowed:
            kind, has = type(value).__name__, ", ".join(allowed) or "no choices"
            raise InputError(f"{kind} has no {field!r}; it has: {has}")
    return replace(value, **fields)


_CIFAR_DEPTHS = (20, 32, 44, 56, 110, 164, 1001, 1202)
_RESNEXT = ("2x40d", "4x24d", "8x14d", "32x4d")

_NAMES = (
    *(f"{kind}{depth}_cifar" for kind in ("resnet", "preact_resnet", "plain") for depth in _CIFAR_DEPTHS),
    *(f"{kind}110_{suffix}_cifar" for kind in ("resnet", "preact_resnet") for suffix in ("onelayer", "c")),
    "resnext29_8x64d_cifar",
    "resnext29_16x64d_cifar",
    "wide_resnet28_10_cifar",
    *(f"plain{depth}" for depth in (18, 34, 50)),
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152, 200)),
    *(f"resnet{depth}_{option}" for depth in (18, 34) for option in "abc"),
    *(f"preact_resnet{depth}" for depth in (18, 34, 50, 101, 152, 200)),
    "resnext50_1x64d",
    *(f"resnext50_{size}" for size in _RESNEXT),
    "plain_resnext50_32x4d",
    "resnext101_1x64d",
    *(f"resnext101_{size}" for size in (*_RESNEXT, "1x100d", "2x64d", "64x4d")),
    "wide_resnet50_2",
    "wide_resnet101_2",
)


def list_models(pattern: str = "*") -> list[str]:
    """The names in the list that match a shell pattern. `describe` also accepts every other depth.

    >>> list_models("wide*")
    ['wide_resnet28_10_cifar', 'wide_resnet50_2', 'wide_resnet101_2']
    """
    return [name for name in _NAMES if fnmatchcase(name, pattern)]
