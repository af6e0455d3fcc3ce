"""Nothing that a file holds steers a terminal, and no other file of the source prints."""

from __future__ import annotations

import ast
import io
import json
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kilolayer
from kilolayer.system import printer
from kilolayer.system.printer import EscapingStream, escape, escape_line, escape_streams

SOURCE = Path(kilolayer.__file__).parent
any_text = st.text(st.characters() | st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp"]))
STREAMS = {f"{module}{name}" for module in ("", "sys.") for name in ("stdout", "stderr")} | {
    "sys.__stdout__",
    "sys.__stderr__",
}


def is_active(letter: str) -> bool:
    """Whether a terminal does more with a character than to show it, by Unicode's own tables."""
    reorders = unicodedata.bidirectional(letter) in (
        *("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"),
    )
    return unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or reorders


def test_every_active_character_is_escaped_and_no_other_is_changed_but_marks_of_direction() -> None:
    letters = list(map(chr, range(sys.maxunicode + 1)))
    escaped = {letter for letter in letters if escape_line(letter) != letter}
    assert escaped == {letter for letter in letters if is_active(letter)} | {"\u061c", "\u200e", "\u200f"}
    assert escaped - {letter for letter in letters if escape(letter) != letter} == {"\n", "\t"}


@given(any_text)
def test_escaped_json_says_the_same(text: str) -> None:
    assert json.loads(escape(json.dumps([text, {text: 1}], ensure_ascii=False))) == [text, {text: 1}]


@given(any_text)
def test_escaping_twice_is_escaping_once(text: str) -> None:
    assert escape(escape(text)) == escape(text)
    assert len(escape_line(text).splitlines()) <= 1


def test_whatever_is_printed_passes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    escape_streams()
    escape_streams()
    print("by a library\x1b[2J", "\udcff")
    sys.stderr.writelines(["a log\x9b31m\n"])
    printer.print_line("two\nlines", stderr=True)
    said = capsys.readouterr()
    assert said.out == "by a library\\u001b[2J \\udcff\n"
    assert said.err == "a log\\u009b31m\ntwo\\u000alines\n"


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_data_in_a_pipe_are_exact(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", EscapingStream(io.TextIOWrapper(pipe, encoding, errors="replace")))
    printer.print_data("a\x1bb,×,\udcff\r\n")
    printer.print_json(["\x9b", "×"], indent=None)
    assert pipe.getvalue() == b'a\x1bb,\xc3\x97,\\udcff\r\n["\\u009b", "\xc3\x97"]\n'


def printing_calls(source: str) -> list[int]:
    """The lines of `source` that print past the printer: print(…), or a write to a standard stream."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [call.lineno for call in calls if _prints(call.func)]


def _prints(function: ast.expr) -> bool:
    match function:
        case ast.Name("print"):
            return True
        case ast.Attribute(stream, "write" | "writelines"):
            stream = stream.value if isinstance(stream, ast.Attribute) and stream.attr == "buffer" else stream
            return ast.unparse(stream) in STREAMS
    return False


def test_no_file_prints_beside_the_printer() -> None:
    calls = {path.name: printing_calls(path.read_text(encoding="utf-8")) for path in SOURCE.rglob("*.py")}
    assert [name for name, lines in calls.items() if lines] == []


@pytest.mark.parametrize(
    "line", ["print(1)", "sys.stdout.write('a')", "sys.stderr.buffer.write(b'')", "stdout.writelines([])"]
)
def test_a_file_that_prints_would_be_named(line: str) -> None:
    assert printing_calls(f"import sys\n{line}\n") == [2]
