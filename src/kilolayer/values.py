"""Descriptions as JSON: every frozen value becomes an object that names its type where a choice is open."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, TypeVar, Union

from kilolayer.errors import InputError
from kilolayer.units import branch, shortcut

T = TypeVar("T")


@cache
def _converter() -> Any:
    from cattrs import Converter
    from cattrs.strategies import configure_tagged_union

    from kilolayer.training import schedule

    converter = Converter(forbid_extra_keys=True)
    converter.register_structure_hook(int, _whole)
    for union in (branch.Branch, shortcut.Shortcut, shortcut.Resize, schedule.Schedule):
        # cattrs looks unions up by their typing form.
        configure_tagged_union(Union[union.__args__], converter, tag_name="type")  # noqa: UP007
        configure_tagged_union(union, converter, tag_name="type")
    return converter


def to_json(value: Any, indent: int | None = 2) -> str:
    """`value`, a description or a record of descriptions, as JSON text."""
    return json.dumps(_converter().unstructure(value), indent=indent, ensure_ascii=False)


def from_json(text: str, kind: type[T]) -> T:
    """The value of type `kind` written as `text`; `InputError` says where the text does not fit."""
    from cattrs import transform_error

    try:
        value: T = _converter().structure(json.loads(text), kind)
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error}") from None
    except InputError:
        raise
    except Exception as error:
        told = transform_error(error, format_exception=_told)
        raise InputError(f"not a {kind.__name__}: {'; '.join(told)}") from None
    return value


def _whole(value: Any, _: type) -> int:
    # cattrs would call int(), which cuts 1.7 to 1.
    if not isinstance(value, int):
        raise InputError(f"{value!r} is not a whole number")
    return value


def _told(error: BaseException, kind: type | None) -> str:
    from cattrs.v import format_exception

    return str(error) if isinstance(error, InputError) else format_exception(error, kind)
