"""What a folder holds. `Path.glob` passes over a folder that cannot be read, as if nothing were in it."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NoReturn


def matching_paths(folder: Path, pattern: str) -> list[Path]:
    """The paths in `folder` whose names match the shell pattern, sorted; none where there is no such folder.

    Raises `OSError` where the folder cannot be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "d20-s0").write_text("")
    ...     [path.name for path in matching_paths(Path(folder), "d20-*")]
    ['d20-s0']
    """
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(folder / name for name in names if fnmatchcase(name, pattern))


def files_below(folder: Path, name: str) -> list[Path]:
    """The files called `name` in `folder` and below it, sorted; links to folders are not followed.

    Raises `OSError` where one of the folders cannot be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "config.json").write_text("")
    ...     len(files_below(Path(folder), "config.json"))
    1
    """
    walked = os.walk(folder, onerror=_raise)
    return sorted(Path(path) / name for path, _, names in walked if name in names)


def _raise(error: OSError) -> NoReturn:
    raise error
