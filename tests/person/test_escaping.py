"""On a real terminal: text of others is shown and does nothing; our own colours and lines still work."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from terminal import on_terminal

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x1b[31mred\r\x08\x9b5n\x7f\u202egnp.exe\udcff"
ESCAPED = r"\u001b]0;owned\u0007\u001b[2J\u001b[31mred\u000d\u0008\u009b5n\u007f\u202egnp.exe\udcff"

WAYS = {
    "print": "print(HOSTILE)",
    "print_line": "print_line(HOSTILE)",
    "print_line on stderr": "print_line(HOSTILE, stderr=True)",
    "print_data": "print_data(HOSTILE + '\\n')",
    "print_text": "print_text(HOSTILE)",
    "print_text in a style": "print_text(HOSTILE, style='bold')",
    "print_rows": "print_rows({'name': HOSTILE})",
    "print_table": "print_table(Table('', (HOSTILE,), ((HOSTILE,),)))",
    "logging": "logging.getLogger('other').warning('%s', HOSTILE)",
    "warnings": "warnings.warn(HOSTILE)",
    "traceback": "traceback.print_exception(ValueError(HOSTILE))",
    "above a line that is redrawn": """
with ReadingProgress('reading', 2) as bar:
    bar.advance(bar.task_id)
    print(HOSTILE)
    print(HOSTILE, file=sys.stderr)""",
    "the line that is redrawn": "\nwith ReadingProgress(HOSTILE, None) as bar:\n  bar.refresh()",
    "a temporary line": "\nwith status_line() as show:\n  show(HOSTILE); print(HOSTILE)",
    "a table that is redrawn": "\nwith LiveDisplay(RichText(HOSTILE), console=Console()):\n  print(HOSTILE)",
    "an error": "_print_error(HOSTILE, True)",
    "a bug": "raise ValueError(HOSTILE)",
}
"""Statements that show a text, one for each way to the terminal; the last ends the program."""

PROGRAM = f"""
import logging, sys, traceback, warnings
from rich.text import Text as RichText
from kilolayer.__main__ import _print_error
from kilolayer.report.document import Table
from kilolayer.system.printer import print_data, print_line
from kilolayer.system.streams import prepare_streams
from kilolayer.system.terminal import *
from kilolayer.system.terminal import LiveDisplay, ReadingProgress, status_line, Console
HOSTILE = {HOSTILE!r}
prepare_streams()
print_text("ours", style="bold")
"""
SECTIONS = "".join(
    f"print_line({f'== {name}'!r}, stderr=True)\n{statement}\n" for name, statement in WAYS.items()
)
OURS = re.compile(rb"\x1b\[(\?25[lh]|[0-9;]*m|1A|2K)")
"""What our console may send: cursor on and off, colours, a line up, a line erased."""


SHOWN_EXACTLY = ("print_data",)
"""In a pipe, data are not for a person."""


@pytest.fixture(scope="module")
def on_screen() -> bytes:
    return on_terminal(["-c", PROGRAM + SECTIONS], width=200, program=(sys.executable,)).raw


@pytest.fixture(scope="module")
def in_log() -> bytes:
    # Unbuffered: `print` waits in a pipe, and its text would stand in another section.
    words = [sys.executable, "-u", "-c", PROGRAM + SECTIONS]
    return subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False).stdout


def section(said: bytes, name: str) -> bytes:
    _, begin, rest = said.partition(f"== {name}".encode())
    assert begin
    return rest.partition(b"\n== ")[0]


def check_escaped(text: bytes, allowed: bytes) -> None:
    assert not set(text) & (set(range(32)) - set(allowed) | {127})
    decoded = text.decode()
    assert not {"\x9b", "\u202e"} & set(decoded)
    assert "gnp.exe" in decoded


@pytest.mark.parametrize("name", WAYS)
def test_no_text_steers_the_terminal(name: str, on_screen: bytes) -> None:
    check_escaped(OURS.sub(b"", section(on_screen, name)), b"\r\n")
    assert b"\x1b[31m" not in on_screen


@pytest.mark.parametrize(
    "name", [name for name in WAYS if name not in SHOWN_EXACTLY and "the line" not in name]
)
def test_no_text_goes_raw_into_a_log(name: str, in_log: bytes) -> None:
    check_escaped(section(in_log, name), b"\n")


def test_our_own_markup_works(on_screen: bytes, in_log: bytes) -> None:
    assert b"\x1b[1mours\x1b[0m" in on_screen
    assert b"\x1b[2K" in section(on_screen, "above a line that is redrawn")
    assert b"\nours\n" in b"\n" + in_log
