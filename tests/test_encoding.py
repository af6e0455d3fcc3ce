"""Text is read and written in UTF-8, whatever the locale: no file is opened without saying so."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "kilolayer"
OPENERS = ("Image", "Run", "os", "tarfile", "webbrowser", "zipfile", "cls")
"""Whose `open` is of another kind."""


def without_encoding(source: str) -> Iterator[int]:
    """Lines on which text is opened, read or written in the locale's encoding."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and _is_text(node) and not _says_encoding(node):
            yield node.lineno


def _is_text(call: ast.Call) -> bool:
    match call.func:
        case ast.Attribute(attr="open", value=ast.Name(id=name)) if name in OPENERS:
            return False
        case ast.Name(id="open") | ast.Attribute(attr="open" | "fdopen"):
            modes = [word.value for word in call.args if isinstance(word, ast.Constant)]
            return not any("b" in str(mode) for mode in modes)
        case ast.Attribute(attr="read_text"):
            return True
        case ast.Attribute(attr="write_text"):
            return True
        case ast.Attribute(attr="run" | "Popen" | "check_output"):
            return any(word.arg in ("text", "universal_newlines") for word in call.keywords)
    return False


def _says_encoding(call: ast.Call) -> bool:
    named = any(word.arg == "encoding" for word in call.keywords)
    return named or any(
        isinstance(word, ast.Constant) and word.value in ("utf-8", "ascii") for word in call.args
    )


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_every_text_has_its_encoding(path: Path) -> None:
    assert not list(without_encoding(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "source",
    ["open('a')", "open('a', 'w')", "p.open()", "p.read_text()", "p.write_text('a')", "s.run(a, text=True)"],
)
def test_the_law_sees_what_breaks_it(source: str) -> None:
    assert list(without_encoding(source)) == [1]


@pytest.mark.parametrize(
    "source", ["open('a', 'rb')", "open('a', encoding='utf-8')", "p.read_text('utf-8')", "os.open('a', 0)"]
)
def test_and_nothing_else(source: str) -> None:
    assert not list(without_encoding(source))
