"""How the system's calls take a name in a folder, so that no name leads elsewhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

SAFE_FLAGS = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
"""For opening a file that somebody else may have made: no link is followed, and no pipe is waited for."""


def at(folder: int | Path, name: str) -> dict[str, Any]:
    """The arguments of a system call for the file `name` in a folder.

    folder: its descriptor; its path where the system has no descriptors of folders, as Windows.

    >>> at(3, "result.json")
    {'path': 'result.json', 'dir_fd': 3}
    """
    return {"path": name, "dir_fd": folder} if isinstance(folder, int) else {"path": folder / name}
