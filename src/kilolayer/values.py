"""Descriptions as JSON: every frozen value becomes an object that names its type where a choice is open."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from difflib import get_close_matches
from functools import cache
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from kilolayer.data.config import BUILT_IN_NAMES, SELECTOR_FLAGS, Data
from kilolayer.errors import InputError
from kilolayer.units import arrangement, branch, extensions, shortcut

T = TypeVar("T")


@cache
def _converter() -> Any:
    from cattrs import Converter
    from cattrs.gen import make_dict_unstructure_fn, override
    from cattrs.strategies import configure_tagged_union

    from kilolayer.training import Experiment, Recipe, optimizer, schedule

    converter = Converter(forbid_extra_keys=True)
    converter.register_structure_hook(int, _whole)
    for base in (branch.Branch, shortcut.Shortcut, shortcut.Downsample, arrangement.Activation):
        _register_kinds(converter, base)

    def layer(value: Any, _: type) -> Any:
        if isinstance(value, dict):
            return converter.structure(value, arrangement.Activation)
        if value not in (arrangement.BN, arrangement.RELU):
            raise InputError(f"{value!r}; allowed: 'BN', 'ReLU'")
        return value

    converter.register_structure_hook(arrangement.Layer, layer)
    for union in (schedule.Schedule, optimizer.Optimizer):
        # cattrs looks unions up by their typing form.
        configure_tagged_union(Union[union.__args__], converter, tag_name="type")  # noqa: UP007
        configure_tagged_union(union, converter, tag_name="type")
    # Runs are named by a digest of their description: what is not chosen is not written.
    unwritten: Any = {name: override(omit_if_default=True) for name in SELECTOR_FLAGS}
    converter.register_unstructure_hook(Data, make_dict_unstructure_fn(Data, converter, **unwritten))
    # Data and recipes first: an experiment's reader takes theirs.
    _read_older(converter, Data, _with_appearance)
    _read_older(converter, Recipe, lambda recipe: _within_its_length(_with_optimizer(recipe)))
    _read_older(converter, Experiment, _with_memory_and_compiler)
    return converter


def _register_kinds(converter: Any, base: type) -> None:
    """Values of a kind of `base`, the package's or one of your own, carry the kind's name in `type`."""
    from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn

    reader: Any = cache(lambda kind: make_dict_structure_fn(kind, converter, _cattrs_forbid_extra_keys=True))
    writer: Any = cache(lambda kind: make_dict_unstructure_fn(kind, converter))

    def structure(value: Any, _: type) -> Any:
        fields = dict(value)
        name, origin = fields.pop("type"), fields.pop("file", None)
        return reader(extensions.kind_of(base, name, origin))(fields, None)

    def unstructure(value: Any) -> dict[str, Any]:
        origin = extensions.origin_of(type(value))
        file = {"file": {"name": origin.name, "sha256": origin.sha256}} if origin else {}
        written: dict[str, Any] = writer(type(value))(value)
        return written | {"type": type(value).__name__} | file

    converter.register_structure_hook(base, structure)
    converter.register_unstructure_hook(base, unstructure)


def _read_older(converter: Any, kind: type, renewed: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Values of type `kind` as older releases wrote them are read as `renewed` writes them."""
    from cattrs.gen import make_dict_structure_fn

    read: Any = make_dict_structure_fn(kind, converter)

    def structure(value: Any, _: type) -> Any:
        return read(renewed(value) if isinstance(value, dict) else value, kind)

    converter.register_structure_hook(kind, structure)


def _with_optimizer(recipe: dict[str, Any]) -> dict[str, Any]:
    """Of releases that knew no optimiser but SGD, and had its momentum among the recipe's fields."""
    older = {name: recipe[name] for name in ("momentum", "nesterov") if name in recipe}
    if not older or "optimizer" in recipe:
        return recipe
    rest = {name: value for name, value in recipe.items() if name not in older}
    sgd: dict[str, Any] = {"type": "SGD"}
    return rest | {"optimizer": sgd | older}


def _within_its_length(recipe: dict[str, Any]) -> dict[str, Any]:
    """Of releases in which a schedule could reach beyond the last step: what never came is left out."""
    match recipe:
        case {"iterations": int(end), "rate": {"type": "Steps", "drops": list()} as steps}:
            return recipe | {"rate": _until(end, steps)}
        case {
            "iterations": int(end),
            "rate": {"until": int(until), "then": {"drops": list()} as steps} as rate,
        }:
            return recipe | {"rate": rate | {"until": min(until, end), "then": _until(end, steps)}}
    return recipe


def _until(end: int, steps: dict[str, Any]) -> dict[str, Any]:
    def late(drop: Any) -> bool:
        return isinstance(drop, list) and isinstance(next(iter(drop), None), int) and drop[0] > end

    return steps | {"drops": [drop for drop in steps["drops"] if not late(drop)]}


def _with_memory_and_compiler(experiment: dict[str, Any]) -> dict[str, Any]:
    """Of releases that knew no more than `grad_checkpointing`, which changed no bit either, and `compile` as
    yes or no."""
    value = experiment
    if "grad_checkpointing" in value:
        twice = value["grad_checkpointing"] is True
        rest = {key: each for key, each in value.items() if key != "grad_checkpointing"}
        value = rest | {"memory": "balanced"} if twice else rest
    if isinstance(value.get("compile"), bool):
        value = value | {"compile": "model" if value["compile"] else "off"}
    return value


def _with_appearance(data: dict[str, Any]) -> dict[str, Any]:
    """Of releases that read pictures as they are stored, without orientation, and had no word for it."""
    older = "appearance" not in data and data.get("source") not in BUILT_IN_NAMES
    return data | {"appearance": "stored"} if older else data


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


def _told(error: BaseException, kind: Any) -> str:
    """What is wrong with a value that should be a `kind`, and what is allowed in its place."""
    from cattrs.errors import ForbiddenExtraKeysError
    from cattrs.v import format_exception

    match error:
        case InputError():
            return str(error)
        case ForbiddenExtraKeysError():
            known = [field.name for field in fields(error.cl)]
            return "; ".join(
                f"no field {name!r}, {_nearest(name, known)}" for name in sorted(error.extra_fields)
            )
        case KeyError(args=(str(name),)) if get_origin(kind) in (Union, UnionType) and not name.islower():
            return f"no type {name!r}, {_nearest(name, [one.__name__ for one in get_args(kind)])}"
        case RecursionError():
            return "nested too deeply"
        case AttributeError() | TypeError() | LookupError() if not isinstance(error, KeyError):
            return f"a value of another kind, expected {getattr(kind, '__name__', 'an object')}"
    if get_origin(kind) is Literal:
        return f"allowed: {', '.join(map(repr, get_args(kind)))}"
    return format_exception(error, kind)


def _nearest(word: str, known: Sequence[str]) -> str:
    near = get_close_matches(word, known, n=1)
    return f"nearest: {near[0]}" if near else f"allowed: {', '.join(known)}"
