"""Kinds of options: how the command line shows them, and how it reads them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Annotated, Any, Literal, TypeVar

from tyro.conf import FlagCreatePairsOff, Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

from kilolayer.errors import nearest
from kilolayer.folders import expand

T = TypeVar("T")


def _option(metavar: str, read: Callable[[str], Any]) -> PrimitiveConstructorSpec[Any]:
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
    )


def _number(kind: Callable[[str], T], called: str) -> Callable[[str], T]:
    def read(text: str) -> T:
        try:
            return kind(text)
        except ValueError:
            point = text.replace(",", ".", 1)
            hint = f"; with a point: {point}" if "," in text and _is_number(point) else ""
            raise ValueError(f"{text!r} is not a {called}{hint}") from None

    return read


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def choice(*allowed: str) -> PrimitiveConstructorSpec[Any]:
    """One of these words."""

    def read(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"{text!r} is unknown; {nearest(text, allowed)}")
        return text

    return _option("{" + ",".join(allowed) + "}", read)


_WHOLE = _option("N", _number(int, "whole number"))
_COMPILE = replace(choice("units", "model", "off"), metavar="[{units,model,off}]")
_WHOLES = replace(
    _WHOLE,
    nargs="*",
    metavar="N...",
    instance_from_str=lambda words: tuple(_number(int, "whole number")(word) for word in words),
    str_from_instance=lambda values: [str(value) for value in values],
)
_NUMBER = _option("X", _number(float, "number"))
# For options whose help says in words what happens without them.
SAID = arg(help_behavior_hint="")

Whole = Annotated[int, _WHOLE]
Wholes = Annotated[tuple[int, ...], _WHOLES]
OptionalWhole = Annotated[int | None, _WHOLE, SAID]
OptionalNumber = Annotated[float | None, _NUMBER, SAID]
OptionalText = Annotated[str | None, _option("TEXT", str), SAID]
OptionalName = Annotated[str | None, _option("NAME", str), SAID]
OptionalSplit = Annotated[str | None, _option("SPLIT", str), SAID]
OptionalColumn = Annotated[str | None, _option("COLUMN", str), SAID]
NUMBER_OR_SPLIT = _option("N|SPLIT", str)
OptionalFolder = Annotated[str | None, _option("DIR", expand), SAID]
OptionalFile = Annotated[str | None, _option("FILE", expand), SAID]
OptionalCsv = Annotated[str | None, _option("[FILE.csv]", expand), SAID]
OwnUnit = Annotated[str | None, _option("FILE.py[:NAME]", str), SAID]
Text = Annotated[str, _option("TEXT", str)]
Switch = Annotated[FlagCreatePairsOff[bool], SAID]
Name = Annotated[Positional[str], arg(metavar="NAME")]
Trained = Annotated[Positional[str], arg(metavar="RUN_OR_WEIGHTS")]
OptionalNames = Annotated[Positional[tuple[str, ...]], arg(metavar="[NAME...]", help_behavior_hint="")]
Files = Annotated[Positional[tuple[str, ...]], arg(metavar="IMAGE...", help_behavior_hint="")]
CompileChoice = Annotated[Literal["off", "units", "model"], _COMPILE]
GraphChoice = Annotated[Literal["auto", "off", "on"], choice("auto", "off", "on")]
Device = Annotated[str, _option("DEVICE", str)]
KernelsChoice = Annotated[Literal["auto", "plain", "fused"], choice("auto", "plain", "fused")]
PrecisionChoice = Annotated[Literal["auto", "fp32", "bf16"], choice("auto", "fp32", "bf16")]

BARE: dict[str, tuple[str, Callable[[str], bool]]] = {
    "--compile": ("model", lambda word: not word.startswith("-")),
    "--csv": ("-", lambda word: word == "-" or word.lower().endswith(".csv")),
}
"""Options that may stand without a word: what that means, and which word behind them is theirs."""


def with_words(argv: Sequence[str]) -> Iterator[str]:
    """The command line with a word behind every bare option; tyro would take, and drop, more than one."""
    ended = False
    for word, following in zip_longest(argv, argv[1:]):
        yield word
        ended = ended or word == "--"
        default, is_its = BARE.get(word, ("", None))
        if is_its and not ended and (following is None or not is_its(following)):
            yield default
