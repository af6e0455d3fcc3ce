"""The ways to say how much memory training may take."""

from __future__ import annotations

import re

from kilolayer.errors import InputError, suggest

MEMORY_CHOICES = ("fastest", "balanced", "smallest")
_UNITS = {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse_memory(text: str) -> int | None:
    """The bytes that `text` says; None for the three named choices. Raises `InputError` for anything else.

    >>> parse_memory("2GB"), parse_memory("1.5 GiB"), parse_memory("balanced")
    (2000000000, 1610612736, None)
    """
    if text in MEMORY_CHOICES:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(|[kMG]i?B|KiB)", text) if isinstance(text, str) else None
    if match is None or match[2] not in _UNITS:
        sizes = "bytes in kB, MB, GB, KiB, MiB or GiB, such as 800MB or 1.5GiB"
        raise InputError(f"activation_memory is {text!r}; {suggest(str(text), MEMORY_CHOICES)}, or {sizes}")
    return int(float(match[1]) * _UNITS[match[2]])


def format_bytes(size: int) -> str:
    """Bytes as people read them.

    >>> format_bytes(840_000_000), format_bytes(2_290_000_000)
    ('840 MB', '2.29 GB')
    """
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
