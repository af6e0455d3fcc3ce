"""The words for how much memory training may take."""

from __future__ import annotations

import re

from kilolayer.errors import InputError, nearest

CHOICES = ("fastest", "balanced", "smallest")
_UNITS = {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def budget(memory: str) -> int | None:
    """The bytes that "2GB", "800 MiB" or "900000000" say; None for the three named choices.

    Raises `InputError` for anything else.
    """
    if memory in CHOICES:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(|[kMG]i?B|KiB)", memory) if isinstance(memory, str) else None
    if found is None or found[2] not in _UNITS:
        sizes = "bytes as 800MB, 2GB, 1.5GiB"
        raise InputError(f"memory is {memory!r}; {nearest(str(memory), CHOICES)}, or {sizes}")
    return int(float(found[1]) * _UNITS[found[2]])


def in_words(size: int) -> str:
    """Bytes as people read them: 840 MB, 2.29 GB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
