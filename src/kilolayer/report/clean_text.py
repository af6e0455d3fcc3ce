"""Strings from runs and from strangers, without the characters that no format can show.

Such characters are control characters, lone surrogates (forbidden in XML and UTF-8) and marks that reverse
the direction of the following text. Escaping is the task of each format.
"""

import re

_UNSHOWABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufeff\ufffe\uffff]"
)
REPLACEMENT = "\ufffd"


def replace_unprintable(text: str) -> str:
    """The text with \\n as its newline, and with � for every unprintable character."""
    return _UNSHOWABLE.sub(REPLACEMENT, text.replace("\r\n", "\n").replace("\r", "\n"))


def one_line(text: str) -> str:
    """The text on one line, without unprintable characters."""
    return " ".join(replace_unprintable(text).split())


def shorten_line(text: str, limit: int) -> str:
    """The text on one line, cut to `limit` characters with an ellipsis."""
    line = one_line(text)
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"
