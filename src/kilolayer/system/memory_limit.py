"""Checks that data or a network fit into memory before they are made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kilolayer.errors import InputError
from kilolayer.system.message_text import gigabytes

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
MEMINFO = Path("/proc/meminfo")
OWN_MEMORY = Path("/proc/self/statm")
CGROUP_FILES = (
    ("", "memory.max", "memory.current"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""Of the second and of the first version: the controller's folder, the limit, and the bytes in use."""
SMALLER_DATA = "choose a smaller --image-size or a --subset"


def available_memory() -> int | None:
    """The bytes that this process may still allocate; None where the system does not say.

    That is the free memory of the machine, or less in a control group or under `ulimit -v`.
    """
    limits = [_available_ram(), *_left_in_cgroups(), _left_in_address_space()]
    return min((max(0, amount) for amount in limits if amount is not None), default=None)


def require_memory(num_bytes: int, content: str, advice: str = SMALLER_DATA) -> None:
    """Raises `InputError` where `num_bytes` exceed half of the available memory.

    content: what needs them, in the plural and with where it is from. advice: what to do.
    """
    available = available_memory()
    if available is not None and num_bytes > available // 2:
        raise InputError(
            f"{content} need {gigabytes(num_bytes)} in memory, more than half of the "
            f"{gigabytes(available)} available; {advice}"
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


def _left_in_cgroups() -> Iterator[int]:
    """What is left in each control group of this process, and in those around it."""
    for controller, limit, used in CGROUP_FILES:
        root = CGROUPS / controller
        group = root / _own_cgroup(controller)
        for folder in (group, *group.parents):
            with suppress(OSError, ValueError):  # no limit there, or "max"
                most = int((folder / limit).read_text("ascii"))
                yield most - int((folder / used).read_text("ascii")) + _cached_files(folder)
            if folder == root:
                break


def _cached_files(folder: Path) -> int:
    """The bytes of files in a group's memory, which the system frees when it needs them."""
    with suppress(OSError, ValueError, KeyError):
        lines = dict(line.split() for line in (folder / "memory.stat").read_text("ascii").splitlines())
        prefix = "total_" if "total_inactive_file" in lines else ""
        return int(lines[f"{prefix}inactive_file"]) + int(lines[f"{prefix}active_file"])
    return 0


def _own_cgroup(controller: str) -> str:
    """The path of this process's control group below the root; "" where it is not known."""
    try:
        lines = [line.split(":", 2) for line in OWN_CGROUPS.read_text("utf-8").splitlines()]
        group = next(path for _, names, path in lines if controller in names.split(","))
    except (OSError, ValueError, StopIteration):
        return ""
    return "" if ".." in group.split("/") else group.strip("/")  # a group outside of this container


def _left_in_address_space() -> int | None:
    try:
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit == resource.RLIM_INFINITY:
            return None
        return limit - int(OWN_MEMORY.read_text("ascii").split()[0]) * resource.getpagesize()
    except (ImportError, AttributeError, OSError, ValueError):
        return None
