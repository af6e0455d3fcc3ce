"""The types of options: how help shows them, and how the command line reads them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Annotated, Any, Literal, TypeVar

from tyro.conf import FlagCreatePairsOff, Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

from kilolayer.errors import InputError, suggest
from kilolayer.system.folders import expand_home

T = TypeVar("T")


def _option(metavar: str, read: Callable[[str], Any]) -> PrimitiveConstructorSpec[Any]:
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
    )


def _number(kind: Callable[[str], T], noun: str) -> Callable[[str], T]:
    def read(text: str) -> T:
        try:
            return kind(text)
        except ValueError:
            point = text.replace(",", ".", 1)
            hint = f"; with a point: {point}" if "," in text and _is_number(point) else ""
            raise ValueError(f"{text!r} is not a {noun}{hint}") from None

    return read


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def choice_option(*allowed: str) -> PrimitiveConstructorSpec[Any]:
    """An option whose value is one of these words."""

    def read(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"{text!r} is unknown; {suggest(text, allowed)}")
        return text

    return _option("{" + ",".join(allowed) + "}", read)


_WHOLE = _option("N", _number(int, "whole number"))
_COMPILE = replace(choice_option("units", "model", "off"), metavar="[{units,model,off}]")
_WHOLES = replace(
    _WHOLE,
    nargs="*",
    metavar="N...",
    instance_from_str=lambda words: tuple(_number(int, "whole number")(word) for word in words),
    str_from_instance=lambda values: [str(value) for value in values],
)
_NUMBER = _option("X", _number(float, "number"))
# For options whose help text says what happens without them.
NO_DEFAULT_SHOWN = arg(help_behavior_hint="")

Whole = Annotated[int, _WHOLE]
Wholes = Annotated[tuple[int, ...], _WHOLES]
OptionalWhole = Annotated[int | None, _WHOLE, NO_DEFAULT_SHOWN]
OptionalNumber = Annotated[float | None, _NUMBER, NO_DEFAULT_SHOWN]
OptionalText = Annotated[str | None, _option("TEXT", str), NO_DEFAULT_SHOWN]
OptionalName = Annotated[str | None, _option("NAME", str), NO_DEFAULT_SHOWN]
OptionalSplit = Annotated[str | None, _option("SPLIT", str), NO_DEFAULT_SHOWN]
OptionalColumn = Annotated[str | None, _option("COLUMN", str), NO_DEFAULT_SHOWN]
NUMBER_OR_SPLIT = _option("N|SPLIT", str)
OptionalFolder = Annotated[str | None, _option("DIR", expand_home), NO_DEFAULT_SHOWN]
OptionalFile = Annotated[str | None, _option("FILE", expand_home), NO_DEFAULT_SHOWN]
OptionalCsv = Annotated[str | None, _option("[FILE.csv]", expand_home), NO_DEFAULT_SHOWN]
OwnUnit = Annotated[str | None, _option("FILE.py[:NAME]", str), NO_DEFAULT_SHOWN]
Text = Annotated[str, _option("TEXT", str)]
Switch = Annotated[FlagCreatePairsOff[bool], NO_DEFAULT_SHOWN]
NameArgument = Annotated[Positional[str], arg(metavar="NAME")]
RunOrWeights = Annotated[Positional[str], arg(metavar="RUN_OR_WEIGHTS")]
OptionalNames = Annotated[Positional[tuple[str, ...]], arg(metavar="[NAME...]", help_behavior_hint="")]
ImageFiles = Annotated[Positional[tuple[str, ...]], arg(metavar="IMAGE...", help_behavior_hint="")]
CompileChoice = Annotated[Literal["off", "units", "model"], _COMPILE]
GraphChoice = Annotated[Literal["auto", "off", "on"], choice_option("auto", "off", "on")]
Device = Annotated[str, _option("DEVICE", str)]
MemoryFormatChoice = Annotated[
    Literal["auto", "channels_last", "channels_first"],
    choice_option("auto", "channels_last", "channels_first"),
]
KernelsChoice = Annotated[Literal["auto", "plain", "fused"], choice_option("auto", "plain", "fused")]
PrecisionChoice = Annotated[Literal["auto", "fp32", "bf16"], choice_option("auto", "fp32", "bf16")]

BARE_OPTIONS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "--compile": ("model", lambda word: not word.startswith("-")),
    "--csv": ("-", lambda word: word == "-" or word.lower().endswith(".csv")),
}
"""Options whose value may be left out: their value then, and which next words are a value."""


def fill_bare_options(argv: Sequence[str]) -> Iterator[str]:
    """The command line with a value after every bare option. (tyro's optional values take several words.)"""
    ended = False
    for word, following in zip_longest(argv, argv[1:]):
        yield word
        ended = ended or word == "--"
        default, is_its = BARE_OPTIONS.get(word, ("", None))
        if is_its and not ended and (following is None or not is_its(following)):
            yield default


def check_positive(options: Any, *names: str) -> None:
    """Raises `InputError` for the first of these options that is given and below 1."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} is {value}; allowed: a whole number from 1")


MAX_SEEDS = 10_000


def check_seed_count(count: int) -> None:
    """Raises `InputError` for more seeds than anybody runs."""
    if count > MAX_SEEDS:
        raise InputError(f"--seeds is {count}; allowed: a count from 1 to {MAX_SEEDS:,}")
