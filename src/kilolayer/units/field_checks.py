"""Checks of a description's fields. Errors name the class, the field, its value and the allowed values."""

from __future__ import annotations

import math
from typing import TypeGuard, TypeVar

from kilolayer.errors import InputError
from kilolayer.system.fp32 import FP32_RANGE, fits_fp32
from kilolayer.system.memory_limit import require_memory

T = TypeVar("T")
MAX_COUNT = 10**9
LAYER_BYTES = 8_000
"""The bytes that a layer's module takes beside its weights."""


def check_field(owner: str, name: str, value: object, holds: bool, allowed: str) -> None:
    """Raise an `InputError` unless `holds`."""
    if not holds:
        shown = f"a number of {value.bit_length()} bits" if is_huge(value) else repr(value)
        raise InputError(f"{owner}.{name} is {shown}; allowed: {allowed}")


def is_huge(value: object) -> TypeGuard[int]:
    """Whether Python refuses to write `value` in digits."""
    return isinstance(value, int) and value.bit_length() > 10_000


def is_count(value: object) -> bool:
    """Whether `value` is a whole number from 1. True and False are not numbers here."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_count(owner: str, **values: object) -> None:
    """Every value must be a whole number from 1, and no more than any machine can hold."""
    for name, value in values.items():
        check_field(owner, name, value, is_count(value), "a whole number from 1")
        check_field(owner, name, value, isinstance(value, int) and value <= MAX_COUNT, f"up to {MAX_COUNT:,}")


def check_fits(subject: str, parameters: int, layers: int) -> None:
    """Raise `InputError` where so many parameters, in so many layers, would fill the memory once built."""
    require_memory(
        4 * parameters + LAYER_BYTES * layers,
        f"{subject}: its {parameters:,} parameters in {layers:,} layers",
        "choose a smaller network",
    )


def check_number(owner: str, **values: float) -> None:
    """Every value must be a finite number that float32 can hold."""
    for name, value in values.items():
        check_field(owner, name, value, _is_number(value), "a finite number")
        check_field(owner, name, value, fits_fp32(value), f"{FP32_RANGE}, or its negative")


def check_probability(owner: str, **values: float) -> None:
    """Every value must be in [0, 1). Dropout divides by 1 − p, so 1 is not allowed."""
    for name, value in values.items():
        holds = _is_number(value) and 0 <= value < 1
        check_field(owner, name, value, holds, "0 up to but not including 1")


def check_choice(owner: str, name: str, value: object, *allowed: str) -> None:
    """The value must be one of `allowed`."""
    check_field(owner, name, value, value in allowed, ", ".join(map(repr, allowed)))


def built_in_kinds(base: type[T]) -> list[type[T]]:
    """The subclasses of `base` in this package, in the order of their definitions."""
    below = [kind for child in base.__subclasses__() for kind in (child, *built_in_kinds(child))]
    return [kind for kind in dict.fromkeys(below) if kind.__module__.startswith("kilolayer.")]
