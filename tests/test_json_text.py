"""JSON of others is read exactly or refused in one line that names file, line and field."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kilolayer
from kilolayer.errors import InputError
from kilolayer.runs.records import SnapshotPlan, read_record, read_result
from kilolayer.system.json_text import MAX_BYTES, MAX_DEPTH, line_of_field, parse_json
from kilolayer.units import Unit
from kilolayer.values import from_json

SOURCE = Path(kilolayer.__file__).parent

REFUSED = {
    b"": "line 1: not JSON: it is empty",
    b" \n ": "line 1: not JSON: it is empty",
    b"{": "line 1: not JSON: Expecting property name",
    b'{"a": 1,\n "b": }': "line 2: not JSON: Expecting value",
    b"{} {}": "line 1: not JSON: Extra data",
    b'{"a":\n "\xff"}': "line 2: not JSON: byte 0xff is not UTF-8",
    '{"a": 1}'.encode("utf-16"): "line 1: not JSON: byte 0xff is not UTF-8",
    b'{"a": 1,\n "a": 2}': "line 2: a occurs twice; allowed: once",
    b'{"a": [1, {"b": 1,\n\n "b": 2}]}': "line 3: a[1].b occurs twice; allowed: once",
    b'[{"b": 1e999}]': "line 1: [0].b is 1e999, which is too large for a number",
    b'{"a": -1e999}': "line 1: a is -1e999, which is too large",
    b'{"a":\n1' + b"0" * 400 + b"}": "line 2: a is 1000000000",
    b'{"a": 1' + b"0" * 10_000 + b"}": "line 1: a is 1000000000",
    b'{"a": NaN}': "line 1: a is NaN; allowed: a finite number",
    b'{"NaN": "NaN", "a": -Infinity}': "line 1: a is -Infinity; allowed: a finite number",
    b"[" * 100_000: "line 1: nested too deeply; allowed: at most 64 levels",
    b'{"a":' * 65 + b"1" + b"}" * 65: "line 1: nested too deeply",
    b"1" * (MAX_BYTES + 1): "line 1: 16,777,217 bytes; allowed: at most 16,777,216",
    b'{"a": "\n"}': "line 1: not JSON: Invalid control character",
    b'{"a": 1,\n "b": ["\\ud800"]}': "line 2: b[0] holds half a character; allowed: text",
    b'{"\\uDC00": 1}': "line 1: a value cannot be read exactly",
}


@pytest.mark.parametrize(("content", "message"), REFUSED.items(), ids=REFUSED.values())
def test_what_is_no_exact_value_is_refused_by_line_and_field(content: bytes, message: str) -> None:
    with pytest.raises(InputError) as refusal:
        parse_json(content, "r/file.json")
    assert str(refusal.value).startswith(f"r/file.json, {message}")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b'\xef\xbb\xbf{"a": "\\udcff"}', {"a": "\udcff"}),
        (b'{"a": "[[[[{{{{", "b": "\\"["}', {"a": "[[[[{{{{", "b": '"['}),
        (b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, None),
        (b'["' + b"[" * 1000 + b'"]', ["[" * 1000]),
        (b"18446744073709551616", 2**64),
        (b"1e308", 1e308),
    ],
)
def test_what_is_unusual_and_exact_is_read(content: bytes, value: object) -> None:
    assert value is None or parse_json(content) == value
    parse_json(content)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=3), values, max_size=3),
    max_leaves=10,
)


@given(plain, st.sampled_from([None, 1]))
def test_what_we_write_is_read_as_it_was(value: object, indent: int | None) -> None:
    text = json.dumps(value, indent=indent)  # hypothesis draws no halves of characters
    assert json.dumps(parse_json(text, allow_nan=True), indent=indent) == text


@given(plain)
def test_the_line_of_every_field_is_that_of_its_value(value: object) -> None:
    text = json.dumps({"first": [value], "last": 1}, indent=1)
    assert line_of_field(text, ("first", 0)) == 3
    assert line_of_field(text, ("last",)) == text.count("\n")


def test_not_a_number_is_a_figure_where_python_writes_it() -> None:
    rows = parse_json("[NaN, Infinity]", allow_nan=True)
    assert isinstance(rows, list)
    assert str(rows) == "[nan, inf]"
    ended = read_result(b'{"status": "done", "test_error": 9.5, "test_loss": null}', "r")
    assert math.isnan(ended["test_loss"])


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        (
            '{"branch": {"type": "Bottleneck", "widen": true}}',
            "branch.widen is true; allowed: a whole number",
        ),
        ('{"branch": {"type": "Bottleneck", "widen": 4.0}}', "branch.widen is 4.0; allowed: a whole number"),
        ('{"branch": {"type": "Basic", "dropout": "0.5"}}', "branch.dropout is '0.5'; allowed: a number"),
        ('{"h": {"type": "ExclusiveGate", "per_channel": "no"}}', "h: no field 'per_channel'"),
        ('{"arrangement": {"before": "BN"}}', "arrangement.before is 'BN'; allowed: a list"),
        ('{"h": {"type": ["Zero"]}}', "h has the type a list; allowed: the name of a kind"),
        ('{"h": "Zero"}', "h is 'Zero'; allowed: an object"),
        ("[]", "the value is a list; allowed: an object"),
        ("null", "the value is null; allowed: an object"),
    ],
)
def test_no_value_is_taken_for_one_of_another_type(text: str, refusal: str) -> None:
    with pytest.raises(InputError) as error:
        from_json(text, Unit)
    assert str(error.value).startswith(f"not a Unit: {refusal}")


def test_fields_of_a_newer_release_are_kept() -> None:
    assert read_record(b'{"count": 2, "every": [1]}', SnapshotPlan, "plan.json") == {"count": 2, "every": [1]}


def json_calls(source: str) -> list[int]:
    """The lines of `source` that parse JSON themselves: json.load, json.loads, JSONDecoder."""
    names = ("load", "loads", "JSONDecoder")
    nodes = list(ast.walk(ast.parse(source)))
    attributes = [
        node
        for node in nodes
        if isinstance(node, ast.Attribute)
        and node.attr in names
        and ast.unparse(node.value).startswith("json")
    ]
    imports = [
        node
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        and node.module == "json"
        and any(alias.name in names for alias in node.names)
    ]
    return [node.lineno for node in (*attributes, *imports)]


def test_only_the_reader_parses_json() -> None:
    calls = {path.name: json_calls(path.read_text(encoding="utf-8")) for path in SOURCE.rglob("*.py")}
    assert [name for name, lines in calls.items() if lines] == ["json_text.py"]


@pytest.mark.parametrize("line", ["json.load(f)", "json_text.loads(t)", "from json import loads"])
def test_a_file_that_parses_json_would_be_named(line: str) -> None:
    assert json_calls(f"import json\n{line}\n") == [2]
