"""Checks that a data set fits into memory before it is read."""

from __future__ import annotations

import os
from pathlib import Path

from kilolayer.errors import InputError
from kilolayer.system.message_text import gigabytes

CGROUP = Path("/sys/fs/cgroup/memory.max")
MEMINFO = Path("/proc/meminfo")


def available_memory() -> int | None:
    """The bytes that this process may still allocate; None where the system does not say."""
    limits = [amount for amount in (_available_ram(), _cgroup_limit()) if amount is not None]
    return min(limits, default=None)


def require_memory(num_bytes: int, content: str) -> None:
    """Raises `InputError` where `needed` bytes exceed half of the available memory."""
    available = available_memory()
    if available is not None and num_bytes > available // 2:
        raise InputError(
            f"data: {content} need {gigabytes(num_bytes)} in memory, more than half of the "
            f"{gigabytes(available)} available; choose a smaller --image-size or a --subset"
        )


def _available_ram() -> int | None:
    # MemAvailable counts the page cache as free, which sysconf's SC_AVPHYS_PAGES does not
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text("ascii").splitlines() if ":" in line)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return _total_ram()


def _total_ram() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _cgroup_limit() -> int | None:
    try:
        return int(CGROUP.read_text("ascii"))
    except (OSError, ValueError):  # no control group, or "max"
        return None
