"""Descriptions as JSON: a frozen value becomes an object, with its type where there is a choice of types.

Files outlive the code's words for things. `RENAMED_FIELDS` and `UPGRADES` say how a description that an
older release wrote is read; `to_json` writes today's names only.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, is_typeddict

from kilolayer.data.config import SELECTOR_FLAGS, Data
from kilolayer.data.registry import DATASETS
from kilolayer.errors import InputError, suggest
from kilolayer.system.json_text import (
    MAX_WHOLE,
    FieldPath,
    JsonValue,
    at_line,
    field_text,
    line_of_field,
    parse_json,
    value_text,
)
from kilolayer.training import optimizer, schedule
from kilolayer.units import arrangement, branch, extensions, shortcut

T = TypeVar("T")
Fields = dict[str, Any]

_AT_CHANGE = {"at_change": "at_downsample"}
RENAMED_FIELDS: dict[str, dict[str, str]] = {
    "Dropout": _AT_CHANGE,
    "ExclusiveGate": _AT_CHANGE,
    "Experiment": {"memory": "activation_memory"},
    "Recipe": {"averaged": "ema", "growth": "progressive_depth", "resolution": "progressive_resize"},
    "Scaled": _AT_CHANGE,
    "ShortcutGate": _AT_CHANGE,
    "Unit": {"resize": "downsample"},
}
"""For each class, the fields that older releases called otherwise: old name, new name."""


def _move_momentum_to_optimizer(recipe: Fields) -> Fields:
    """Releases that had SGD only kept its momentum among the recipe's fields."""
    sgd = {name: recipe[name] for name in ("momentum", "nesterov") if name in recipe}
    if not sgd or "optimizer" in recipe:
        return recipe
    rest = {name: value for name, value in recipe.items() if name not in sgd}
    return rest | {"optimizer": {"type": "SGD"} | sgd}


def _end_schedule_with_run(recipe: Fields) -> Fields:
    """A schedule could reach beyond the last step: changes that never came are left out."""
    match recipe:
        case {"iterations": int(end), "rate": {"type": "Steps", "drops": list()} as steps}:
            return recipe | {"rate": _drops_until(end, steps)}
        case {
            "iterations": int(end),
            "rate": {"until": int(until), "then": {"drops": list()} as steps} as rate,
        }:
            return recipe | {"rate": rate | {"until": min(until, end), "then": _drops_until(end, steps)}}
    return recipe


def _drops_until(end: int, steps: Fields) -> Fields:
    def is_late(drop: Any) -> bool:
        return isinstance(drop, list) and isinstance(next(iter(drop), None), int) and drop[0] > end

    return steps | {"drops": [drop for drop in steps["drops"] if not is_late(drop)]}


def _replace_grad_checkpointing(experiment: Fields) -> Fields:
    """`grad_checkpointing` was a Boolean. True becomes `balanced`, which gives the same results."""
    if "grad_checkpointing" not in experiment:
        return experiment
    rest = {name: value for name, value in experiment.items() if name != "grad_checkpointing"}
    return rest | {"activation_memory": "balanced"} if experiment["grad_checkpointing"] is True else rest


def _name_compile_mode(experiment: Fields) -> Fields:
    """`compile` was a Boolean."""
    mode = experiment.get("compile")
    return experiment | {"compile": "model" if mode else "off"} if isinstance(mode, bool) else experiment


def _name_memory_format(value: Fields) -> Fields:
    """`channels_last` was a Boolean."""
    if not isinstance(value.get("channels_last"), bool) or "memory_format" in value:
        return value
    rest = {name: item for name, item in value.items() if name != "channels_last"}
    return rest | {"memory_format": "channels_last" if value["channels_last"] else "channels_first"}


def _add_appearance(data: Fields) -> Fields:
    """Pictures were read as they are stored, without orientation, and no field said so."""
    is_older = "appearance" not in data and data.get("source") not in DATASETS
    return data | {"appearance": "stored"} if is_older else data


UPGRADES: dict[str, tuple[Callable[[Fields], Fields], ...]] = {
    "Data": (_add_appearance,),
    "Experiment": (_replace_grad_checkpointing, _name_compile_mode, _name_memory_format),
    "Recipe": (_move_momentum_to_optimizer, _end_schedule_with_run),
    "Request": (_name_memory_format,),
}
"""For each class, what else has changed: functions of the fields as an older release wrote them."""


def upgrade(kind: type, value: Fields) -> Fields:
    """The fields of a value of the dataclass `kind`, under the names that they have now; nothing is lost.

    >>> from kilolayer.units import Unit
    >>> upgrade(Unit, {"resize": {"type": "Projection"}})
    {'downsample': {'type': 'Projection'}}
    """
    current = {field.name for field in fields(kind)}
    for base in kind.__mro__:  # a kind of your own has the fields of the one that it extends
        names = RENAMED_FIELDS.get(base.__name__, {})
        outdated = {old: new for old, new in names.items() if old not in current}
        for old, new in outdated.items():
            if old in value and new in value:
                raise InputError(f"{old} and {new} are one field, and both are given; leave out {old}")
        value = {outdated.get(name, name): item for name, item in value.items()}
        for step in UPGRADES.get(base.__name__, ()):
            value = step(value)
    return value


def to_json(value: Any, indent: int | None = 2) -> str:
    """`value`, a description or a record of descriptions, as JSON text.

    >>> from kilolayer.training import Steps
    >>> to_json(Steps(0.1, ((400, 0.01),)), indent=None)
    '{"start": 0.1, "drops": [[400, 0.01]]}'
    """
    return json.dumps(_converter().unstructure(value), indent=indent, ensure_ascii=False)


def to_json_value(value: Any) -> Any:
    """`value` as JSON's own objects, lists, texts and numbers.

    >>> to_json_value(schedule.Steps(0.1, ((400, 0.01),)))
    {'start': 0.1, 'drops': [[400, 0.01]]}
    """
    return parse_json(to_json(value, indent=None), allow_nan=True, max_bytes=sys.maxsize)


def from_json(text: bytes | str, kind: type[T], subject: str = "this") -> T:
    """The value of type `kind` that `text` describes, also where an older release wrote it.

    subject: the run or file that the error names where a unit file is missing.

    Raises `InputError`, which says where the text does not fit, and `UnitFileError`, whose text begins with
    `subject`, where kinds in it need a unit file.

    >>> from kilolayer.training import Steps
    >>> from_json('{"start": 0.1, "drops": [[400, 0.01]]}', Steps)
    Steps(start=0.1, drops=((400, 0.01),))
    """
    try:
        return structure(parse_json(text), kind, subject)
    except FieldErrors as error:
        article = "an" if kind.__name__[0] in "AEIO" else "a"  # "a Unit"
        refusal = f"not {article} {kind.__name__}: {error}"
        at = line_of_field(text, error.fields[0][0])
        raise InputError(at_line("", at, refusal) if at > 1 else refusal) from None


class FieldErrors(InputError):
    """Fields of a JSON value that do not fit its type, in one line.

    fields: for each field its path, and what is wrong with it and allowed in its place.
    """

    def __init__(self, fields: Sequence[tuple[FieldPath, str]]) -> None:
        self.fields = tuple(fields)
        super().__init__("; ".join(reason for _, reason in self.fields))


def structure(value: JsonValue, kind: type[T], subject: str = "this") -> T:
    """The value of type `kind` that a JSON value describes.

    Raises `FieldErrors`, which names each field that does not fit, and `UnitFileError` as `from_json`.

    >>> structure({"start": 0.1}, schedule.Steps)
    Steps(start=0.1, drops=())
    """
    try:
        described: T = _converter().structure(value, kind)
    except Exception as error:
        if unit_errors := _unit_file_errors(error):
            first = unit_errors[0]
            needed = extensions.UnitFileError(first.name, first.origin, first.changed)
            needed.args = (extensions.refusal(subject, unit_errors),)
            raise needed from None
        raise FieldErrors(list(_field_errors(error, kind))) from None
    return described


class _WrongValue(InputError):
    """A value of another type: the text goes on after the field's name."""


def _field_errors(error: BaseException, kind: Any, path: FieldPath = ()) -> Iterator[tuple[FieldPath, str]]:
    """The path and the refusal of each wrong field in `error`, which cattrs nests as the value is nested."""
    from cattrs.errors import (
        AttributeValidationNote,
        BaseValidationError,
        ClassValidationError,
        IterableValidationError,
    )

    if isinstance(error, ClassValidationError | IterableValidationError):
        noted, others = error.group_exceptions()
        for child, note in noted:
            step = note.name if isinstance(note, AttributeValidationNote) else note.index
            yield from _field_errors(child, note.type, (*path, step))
        for child in others:
            yield from _field_errors(child, error.cl, path)
    elif isinstance(error, BaseValidationError):
        for child in error.exceptions:
            yield from _field_errors(child, kind, path)
    else:
        field, reason = field_text(path), _reason(error, kind)
        if isinstance(error, _WrongValue):
            yield path, f"{field or 'the value'} {reason}"
        else:
            yield path, f"{field}: {reason}" if field else reason


def _unit_file_errors(error: BaseException) -> list[extensions.UnitFileError]:
    """Every complaint about a unit file in `error`, which cattrs nests as the description is nested."""
    if isinstance(error, BaseExceptionGroup):
        return [unit_error for child in error.exceptions for unit_error in _unit_file_errors(child)]
    return [error] if isinstance(error, extensions.UnitFileError) else []


@cache
def _converter() -> Any:
    from cattrs import Converter
    from cattrs.gen import make_dict_unstructure_fn, override
    from cattrs.strategies import configure_tagged_union

    converter = Converter(forbid_extra_keys=True)
    converter.register_structure_hook_factory(is_dataclass, lambda kind: _reader(converter, kind))
    converter.register_structure_hook_factory(is_typeddict, lambda kind: _record_reader(converter, kind))
    converter.register_structure_hook_factory(lambda kind: _form(kind) is Annotated, _bounded_reader)
    converter.register_structure_hook_func(lambda kind: _form(kind) is Literal, _read_literal)
    _check_containers(converter)
    for plain in (bool, int, str):
        converter.register_structure_hook(plain, _read_plain)
    converter.register_structure_hook(float, lambda value, kind: float(_read_plain(value, kind)))
    for base in (branch.Branch, shortcut.Shortcut, shortcut.Downsample, arrangement.Activation):
        _register_kinds(converter, base)

    def read_layer(value: Any, _: type) -> Any:
        if isinstance(value, dict):
            return converter.structure(value, arrangement.Activation)
        if not isinstance(value, str) or value not in (arrangement.BN, arrangement.RELU):
            raise _WrongValue(f"is {value_text(value)}; allowed: {arrangement.ALLOWED_LAYERS}")
        return value

    converter.register_structure_hook(arrangement.Layer, read_layer)
    for union in (schedule.Schedule, optimizer.Optimizer):
        # cattrs looks unions up by their typing form.
        configure_tagged_union(Union[union.__args__], converter, tag_name="type")  # noqa: UP007
        configure_tagged_union(union, converter, tag_name="type")
    # Runs are named by a digest of their description: a selector that is not used is not written.
    unwritten: Any = {name: override(omit_if_default=True) for name in SELECTOR_FLAGS}
    converter.register_unstructure_hook(Data, make_dict_unstructure_fn(Data, converter, **unwritten))
    return converter


def _reader(converter: Any, kind: type) -> Callable[[Any, Any], Any]:
    """A function that reads values of the dataclass `kind`, older ones too."""
    from cattrs.gen import make_dict_structure_fn

    read: Any = make_dict_structure_fn(kind, converter, _cattrs_forbid_extra_keys=True)
    return lambda value, _: read(upgrade(kind, _checked(value, dict)), kind)


def _register_kinds(converter: Any, base: type) -> None:
    """A value of a kind of `base`, the package's or one of your own, carries the kind's name in `type`."""
    from cattrs.gen import make_dict_unstructure_fn

    reader: Any = cache(lambda kind: _reader(converter, kind))
    writer: Any = cache(lambda kind: make_dict_unstructure_fn(kind, converter))

    def structure(value: Any, _: type) -> Any:
        own_fields = dict(_checked(value, dict))
        name, origin = own_fields.pop("type", None), own_fields.pop("file", None)
        if not isinstance(name, str):
            raise _WrongValue(f"has the type {value_text(name)}; allowed: the name of a kind")
        return reader(extensions.kind_of(base, name, origin))(own_fields, None)

    def unstructure(value: Any) -> Fields:
        origin = extensions.origin_of(type(value))
        file = {"file": _file_fields(origin)} if origin else {}
        own_fields: Fields = writer(type(value))(value)
        return own_fields | {"type": type(value).__name__} | file

    converter.register_structure_hook(base, structure)
    converter.register_unstructure_hook(base, unstructure)


def _file_fields(origin: extensions.Origin) -> Fields:
    loads = [{"name": file.name, "sha256": file.sha256} for file in origin.loads]
    return {"name": origin.name, "sha256": origin.sha256} | ({"loads": loads} if loads else {})


def _record_reader(converter: Any, kind: type) -> Callable[[Any, Any], Any]:
    """A reader of a `TypedDict`: it keeps fields that it does not know, as a newer release's."""
    from cattrs.gen.typeddicts import make_dict_structure_fn

    read: Any = make_dict_structure_fn(kind, converter, _cattrs_forbid_extra_keys=False)
    return lambda value, _: read(_checked(value, dict), kind)


def _form(kind: Any) -> Any:
    """What `kind` is a form of, such as list for list[int]."""
    return get_origin(kind)


def _check_containers(converter: Any) -> None:
    """Has lists read from lists alone: cattrs takes a text for the list of its letters."""
    within = set[Any]()

    def factory(kind: Any) -> Callable[[Any, Any], Any]:
        within.add(kind)
        try:
            read = converter.get_structure_hook(kind, cache_result=False)
        finally:
            within.discard(kind)
        plain = dict if get_origin(kind) is dict else list
        return lambda value, _: read(_checked(value, plain), kind)

    converter.register_structure_hook_factory(
        lambda kind: _form(kind) in (tuple, list, dict) and kind not in within, factory
    )


@dataclass(frozen=True)
class Bounds:
    """In `Annotated[float, Bounds(0, 100)]`: the least and the greatest value of a number of a record."""

    least: float = -math.inf
    most: float = math.inf
    allow_nan: bool = False


def _bounded_reader(kind: Any) -> Callable[[Any, Any], Any]:
    plain, bounds = get_args(kind)
    least = f" from {bounds.least:g}" if bounds.least > -math.inf else ""
    allowed = f"{_WORDS[plain]}{least}{f' to {bounds.most:g}' if bounds.most < MAX_WHOLE else ''}"

    def read(value: Any, _: Any) -> Any:
        if bounds.allow_nan and (value is None or value != value):
            return math.nan
        if not _is_plain(value, plain, bounds.allow_nan) or not bounds.least <= value <= bounds.most:
            raise _WrongValue(f"is {value_text(value)}; allowed: {allowed}")
        return value

    return read


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "an object"}
_WORDS[list] = _WORDS[tuple] = "a list"


def _is_plain(value: Any, kind: type, allow_infinite: bool = False) -> bool:
    """Whether a value needs no conversion: cattrs would cut 1.7 to 1, and take any text for true."""
    if kind is float:
        return type(value) in (int, float) and (allow_infinite or math.isfinite(value))
    return type(value) is kind


def _read_plain(value: Any, kind: Any) -> Any:
    if not _is_plain(value, kind):
        raise _WrongValue(f"is {value_text(value)}; allowed: {_WORDS[kind]}")
    return value


def _read_literal(value: Any, kind: Any) -> Any:
    if not any(type(value) is type(word) and value == word for word in get_args(kind)):
        allowed = ", ".join(map(repr, get_args(kind)))
        raise _WrongValue(f"is {value_text(value)}; allowed: {allowed}")
    return value


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise _WrongValue(f"is {value_text(value)}; allowed: {_WORDS[kind]}")
    return value


def _reason(error: BaseException, kind: Any) -> str:
    """What is wrong with a value that should be a `kind`, and what is allowed in its place."""
    from cattrs.errors import ForbiddenExtraKeysError
    from cattrs.v import format_exception

    match error:
        case InputError():
            return str(error)
        case ForbiddenExtraKeysError():
            names = [field.name for field in fields(error.cl)]
            return "; ".join(
                f"no field {name!r}, {suggest(name, names)}" for name in sorted(error.extra_fields)
            )
        case KeyError(args=(str(name),)) if get_origin(kind) in (Union, UnionType) and not name.islower():
            return f"no type {name!r}, {suggest(name, [member.__name__ for member in get_args(kind)])}"
        case RecursionError():
            return "nested too deeply"
        case AttributeError() | TypeError() | LookupError() if not isinstance(error, KeyError):
            return f"a value of another kind, expected {getattr(kind, '__name__', 'an object')}"
    return format_exception(error, kind)
