"""How the data's errors show paths and amounts: always on one line, whatever a file is called."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def quote(thing: object) -> str:
    """The text in quotes, with line breaks, control characters and broken encodings escaped."""
    return repr(str(thing))


def is_text(name: str) -> bool:
    """Whether this can be written and shown: no control characters, no broken encodings."""
    return not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name)


def quantity(count: int, noun: str) -> str:
    """As `1 image`, `2 images`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def listing(things: Sequence[str], limit: int = 10) -> str:
    """The first of these, and how many more there are."""
    rest = len(things) - limit
    return ", ".join(things[:limit]) + (f" and {rest:,} more" if rest > 0 else "")


def truncate(text: str, limit: int) -> str:
    """The text on one line, cut where it is too long."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def error_text(error: BaseException, limit: int = 120) -> str:
    """What an exception says, on one line and not too long."""
    return truncate(str(error), limit) or type(error).__name__


def gigabytes(amount: int) -> str:
    return f"{amount / 1e9:.1f} GB"


def error_line(error: BaseException) -> str:
    """An error of foreign code in one line: its kind and the first line of its message.

    >>> error_line(ValueError("no\\nmore"))
    'ValueError: no'
    """
    return f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(": ")
