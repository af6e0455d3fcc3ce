"""The command line with a known fault: `python planted.py FAULT WORDS…`."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

real_fsync, real_replace = os.fsync, os.replace


def no_fsync() -> None:
    """Nothing is synchronised."""
    os.fsync = os.fdatasync = lambda descriptor: None


def no_folder_fsync() -> None:
    """Files are synchronised, their names are not."""

    def fsync(descriptor: int) -> None:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            real_fsync(descriptor)

    os.fsync = fsync


def in_place() -> None:
    """A file is overwritten where a new one should take its name."""

    def replace(source: Any, target: Any, *, src_dir_fd: Any = None, dst_dir_fd: Any = None) -> None:
        with open(os.open(source, os.O_RDONLY, dir_fd=src_dir_fd), "rb") as file:
            content = file.read()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with open(os.open(target, flags, 0o666, dir_fd=dst_dir_fd), "wb") as file:
            file.write(content)
            file.flush()
            real_fsync(file.fileno())
        os.unlink(source, dir_fd=src_dir_fd)

    os.replace = os.rename = replace


def error_swallowed() -> None:
    """An error of fsync is passed over."""

    def fsync(descriptor: int) -> None:
        with suppress(OSError):
            real_fsync(descriptor)

    os.fsync = fsync


def traceback() -> None:
    """An error of a rename is none that the command line knows."""

    def replace(source: Any, target: Any, **folders: Any) -> None:
        try:
            real_replace(source, target, **folders)
        except OSError as error:
            raise ArithmeticError("a bug") from error

    os.replace = os.rename = replace


def left_behind() -> None:
    """Temporary files stay where an error came."""
    real_unlink = os.unlink

    def unlink(path: Any, **options: Any) -> None:
        if "." not in str(path)[:1] and "/." not in str(path):
            real_unlink(path, **options)

    os.unlink = os.remove = unlink


PLANTED: dict[str, Callable[[], None]] = {
    fault.__name__: fault
    for fault in (no_fsync, no_folder_fsync, in_place, error_swallowed, traceback, left_behind)
}

if __name__ == "__main__":
    PLANTED[sys.argv[1]]()
    from kilolayer.__main__ import main

    sys.exit(main(sys.argv[2:]))
