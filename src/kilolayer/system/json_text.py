"""JSON that others may have written, read exactly: plain values, or one line that says where it is none.

This is the only file that parses JSON; `tests/test_json_text.py` holds that. What is refused here would
otherwise be read in silence as something else: a field that occurs twice, a number that a computer rounds to
infinity, text that is not UTF-8. A UTF-8 byte order mark, which some editors write, is passed over.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, TypeAlias

from kilolayer.errors import InputError

JsonValue: TypeAlias = bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"] | None
FieldPath: TypeAlias = tuple[str | int, ...]

MAX_BYTES = 16 * 2**20
"""The largest file of ours has 40 kB. Text of this size takes some 600 MB as values at worst."""
MAX_DEPTH = 64
"""The deepest of our files has 15 levels."""
MAX_WHOLE = 2**64
"""Counters, seeds and byte counts are below it."""
_MAX_SHOWN = 40

_WORD = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}:,]|[^\s\[\]{}:,"]+', re.DOTALL)


class JsonError(InputError):
    """Text that is no JSON, or JSON that cannot be read exactly."""


class _InexactValue(ValueError):
    pass


def parse_json(
    content: bytes | str,
    source: str = "",
    *,
    line: int = 1,
    allow_nan: bool = False,
    max_bytes: int = MAX_BYTES,
) -> JsonValue:
    """The value that `content` holds. Raises `JsonError`, one line that names `source`, line and field.

    line: the line of `source` at which `content` begins.
    allow_nan: take NaN and Infinity, as Python writes figures that are not finite.

    >>> parse_json(b'{"epoch": 3}', "timing.jsonl")
    {'epoch': 3}
    >>> parse_json('{"epoch": 3, "epoch": 4}', "timing.jsonl", line=2)
    Traceback (most recent call last):
    kilolayer.system.json_text.JsonError: timing.jsonl, line 2: epoch occurs twice; allowed: once
    """
    if len(content) > max_bytes:
        size = f"{len(content):,} bytes; allowed: at most {max_bytes:,} bytes of JSON"
        raise JsonError(at_line(source, line, size))
    text = _decode(content, source, line).removeprefix("\ufeff")
    if not text.strip():
        raise JsonError(at_line(source, line, "not JSON: it is empty"))
    if _is_too_deep(text):
        raise JsonError(at_line(source, line, f"nested too deeply; allowed: at most {MAX_DEPTH} levels"))
    try:
        value: JsonValue = json.loads(
            text,
            object_pairs_hook=_object,
            parse_float=_finite,
            parse_int=_whole,
            parse_constant=float if allow_nan else _constant,
        )
        if "\\ud" in text.lower() or not content.isascii():
            json.dumps(value, ensure_ascii=False).encode(errors="surrogateescape")
    except json.JSONDecodeError as error:
        raise JsonError(at_line(source, line + error.lineno - 1, f"not JSON: {error.msg}")) from None
    except (_InexactValue, UnicodeEncodeError):
        raise _inexact(text, source, line, allow_nan) from None
    return value


def split_lines(content: bytes) -> list[bytes]:
    """The complete lines of a file of JSON lines: a crash may have cut the last one short.

    >>> split_lines(b'{"epoch": 1}\\n{"epo')
    [b'{"epoch": 1}']
    """
    return content.split(b"\n")[:-1]


def at_line(source: str, line: int, reason: str) -> str:
    """A reason with its file and line in front; `source` may be empty where a caller names the file.

    >>> at_line("plan.json", 2, "count is null")
    'plan.json, line 2: count is null'
    """
    return f"{source}, line {line}: {reason}" if source else f"line {line}: {reason}"


def field_text(path: FieldPath) -> str:
    """The path of a field as a message shows it.

    >>> field_text(("rate", "drops", 0))
    'rate.drops[0]'
    """
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return "".join(steps).removeprefix(".")


def line_of_field(content: bytes | str, path: FieldPath) -> int:
    """The line, from 1, in which the value at `path` begins, or the innermost object or array around it.

    >>> line_of_field('{"a": 1,\\n"b": [2,\\n3]}', ("b", 1))
    3
    """
    text = content.decode(errors="replace") if isinstance(content, bytes) else content
    starts = {at: start for at, start, _ in _values(text)}
    nearest = next((path[:size] for size in range(len(path), -1, -1) if path[:size] in starts), None)
    return 1 if nearest is None else _line_at(text, starts[nearest])


def value_text(value: object) -> str:
    """A value as a message shows it, cut where it is long.

    >>> value_text({"a": 1}), value_text("x" * 50)
    ('an object', "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…'")
    """
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return repr(value) if len(value) <= _MAX_SHOWN else repr(f"{value[:_MAX_SHOWN]}…")
        case dict():
            return "an object"
        case list():
            return "a list"
    return str(value)


def _decode(content: bytes | str, source: str, line: int) -> str:
    if isinstance(content, str):
        return content
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        at = line + content.count(b"\n", 0, error.start)
        bad = content[error.start]
        raise JsonError(at_line(source, at, f"not JSON: byte 0x{bad:02x} is not UTF-8")) from None


def _is_too_deep(text: str) -> bool:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    depth = 0
    for match in _WORD.finditer(text):
        depth += (match[0] in ("[", "{")) - (match[0] in ("]", "}"))
        if depth > MAX_DEPTH:
            return True
    return False


def _object(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise _InexactValue
    return fields


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _InexactValue
    return value


def _whole(text: str) -> int:
    # int() would take minutes for a million digits, and refuses more than 4,300.
    if len(text) > len(str(-MAX_WHOLE)) or abs(value := int(text)) > MAX_WHOLE:
        raise _InexactValue
    return value


def _constant(text: str) -> float:
    raise _InexactValue


def _inexact(text: str, source: str, line: int, allow_nan: bool) -> JsonError:
    """The error that names the first value which cannot be read exactly."""
    paths: set[FieldPath] = set()
    for path, start, word in _values(text):
        if reason := "occurs twice; allowed: once" if path in paths else _inexact_reason(word, allow_nan):
            field = field_text(path) or "the value"
            return JsonError(at_line(source, line + _line_at(text, start) - 1, f"{field} {reason}"))
        paths.add(path)
    return JsonError(at_line(source, line, "a value cannot be read exactly"))


def _inexact_reason(word: str, allow_nan: bool) -> str:
    digits = word.removeprefix("-")
    if digits in ("NaN", "Infinity"):
        return "" if allow_nan else f"is {word}; allowed: a finite number"
    if word[0] == '"':
        try:
            json.loads(word).encode(errors="surrogateescape")
        except UnicodeEncodeError:
            return "holds half a character; allowed: text"
    if not digits[:1].isdecimal():
        return ""
    try:
        (_whole if digits.isdecimal() else _finite)(word)
    except _InexactValue:
        return f"is {word[:_MAX_SHOWN]}, which is too large for a number"
    return ""


def _values(text: str) -> Iterator[tuple[FieldPath, int, str]]:
    """Path, offset and text of every value in valid JSON; the text of an object or array is its bracket."""
    path: list[Any] = []  # for each open object its key, None before the key; for each open array its index
    for match in _WORD.finditer(text):
        word = match[0]
        if word in ("]", "}"):
            path.pop()
        elif word == ",":
            path[-1] = path[-1] + 1 if isinstance(path[-1], int) else None
        elif word == ":":
            continue
        elif path and path[-1] is None:
            path[-1] = json.loads(word)
        else:
            yield tuple(path), match.start(), word
            if word in ("[", "{"):
                path.append(0 if word == "[" else None)


def _line_at(text: str, offset: int) -> int:
    return text.count("\n", 0, offset) + 1
