"""The one way to a terminal or a log: text is escaped, so that no file's content can steer the terminal.

`prepare_streams` puts an `EscapingStream` before standard output and standard error, so that what other
libraries print, warnings, logs and tracebacks pass it too. Only the markup of `system.terminal`, which adds
colours and moves the cursor, goes around it. No other file prints; `tests/test_printer.py` holds that.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterable
from typing import IO, Any, TextIO, cast

_CONTROL = "\x00-\x08\x0b-\x1f\x7f-\x9f"
_REORDERING = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_LINE_BREAKS = "\u2028\u2029"
_SURROGATES = "\ud800-\udfff"
_ACTIVE = re.compile(f"[{_CONTROL}{_REORDERING}{_LINE_BREAKS}{_SURROGATES}]")
_WITHIN_LINE = re.compile(f"[\t\n{_CONTROL}{_REORDERING}{_LINE_BREAKS}{_SURROGATES}]")
UNENCODABLE = "backslashreplace"
r"""A file name that is not valid text is written as \udcff, which JSON reads back."""


def escape(text: str) -> str:
    r"""The text with its active characters as \u001b: only line breaks and tabs stay.

    Active are control characters, those that reorder what stands around them, and halves of characters,
    which stand for bytes that are no text. JSON that is escaped says the same.

    >>> print(escape("cat\x1b[2J \u202egnp.exe"))
    cat\u001b[2J \u202egnp.exe
    """
    return _ACTIVE.sub(_as_number, text)


def escape_line(text: str) -> str:
    r"""The text with all its active characters escaped, line breaks and tabs as well.

    >>> print(escape_line("two\nlines"))
    two\u000alines
    """
    return _WITHIN_LINE.sub(_as_number, text)


def _as_number(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


class EscapingStream:
    """A text stream that escapes what is written to `unescaped`, the stream behind it."""

    def __init__(self, unescaped: IO[str]) -> None:
        self.unescaped = unescaped

    def write(self, text: str) -> int:
        self.unescaped.write(escape(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unescaped, name)


def escape_streams() -> None:
    """Puts an `EscapingStream` before standard output and standard error, if there is none."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, EscapingStream):
            setattr(sys, name, EscapingStream(stream))


def unescaped(stream: IO[str]) -> IO[str]:
    """The stream behind an `EscapingStream`, for markup of our own and for data."""
    return stream.unescaped if isinstance(stream, EscapingStream) else stream


def print_line(text: str = "", *, stderr: bool = False) -> None:
    """Prints one line, whatever the text holds.

    >>> print_line("loss 0.3")
    loss 0.3
    """
    stream = sys.stderr if stderr else sys.stdout
    stream.write(f"{escape_line(text)}\n")
    stream.flush()


def print_json(value: object, indent: int | None = 2) -> None:
    """Prints a value as JSON in UTF-8, of which a terminal and a program read the same.

    >>> print_json({"path": "a\x9bb"}, indent=None)
    {"path": "a\\u009bb"}
    """
    print_json_text(json.dumps(value, indent=indent, ensure_ascii=False))


def print_json_text(text: str) -> None:
    """Prints JSON text as `print_json`."""
    print_data(f"{escape(text)}\n")


def print_data(text: str) -> None:
    """Prints text for a program: exactly so into a pipe or a file, escaped on a terminal."""
    stream = data_output()
    stream.write(text)
    stream.flush()


def data_output() -> TextIO:
    """Standard output for data: escaped on a terminal; otherwise exact, in UTF-8 whatever the locale."""
    stream = unescaped(sys.stdout)
    if stream.isatty():
        return cast(TextIO, EscapingStream(stream))
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding="utf-8", errors=UNENCODABLE)
    return cast(TextIO, stream)
