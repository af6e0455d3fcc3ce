"""Strings from runs and from strangers, made fit to be shown.

Escaping belongs to each format; what no format can show belongs here: control characters and lone
surrogates (XML and UTF-8 forbid them) and the marks that reverse the direction of all text after them.
"""

import re

_UNSHOWABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufeff\ufffe\uffff]"
)
REPLACEMENT = "\ufffd"


def replace_unprintable(text: str) -> str:
    """The text with one newline convention and � for every character that cannot be shown."""
    return _UNSHOWABLE.sub(REPLACEMENT, text.replace("\r\n", "\n").replace("\r", "\n"))


def one_line(text: str) -> str:
    """The cleaned text on one line."""
    return " ".join(replace_unprintable(text).split())


def shorten_line(text: str, limit: int) -> str:
    """The text on one line in at most so many characters, its cut marked by an ellipsis."""
    line = one_line(text)
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"
