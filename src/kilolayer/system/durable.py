"""Durable writes to a path: after a crash at any moment, a file is either the old one or the new one."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from kilolayer.system.opened_folder import OpenedFolder, make_folder, open_folder, storage_error

__all__ = ["check_writable", "file_writer", "make_folder", "storage_error", "sync_folder", "write_file"]


def write_file(path: Path, content: bytes) -> None:
    """Replaces `path` by `content` durably: temporary file, fsync, rename, fsync of the folder.

    Creates the folder if it is missing. Raises `StorageError`, which names the path, where the system
    refuses, as on a full disk; `InputError` where the path is that of a link, a pipe or a device.
    """
    with _folder_of(path, f" ({len(content):,} bytes)") as folder:
        folder.write(path.name, content)


@contextmanager
def file_writer(path: Path) -> Iterator[BinaryIO]:
    """As `write_file`, for content written in parts; if the block raises, `path` stays as it was."""
    with _folder_of(path) as folder, folder.writer(path.name) as file:
        yield file


def _folder_of(path: Path, size: str = "") -> OpenedFolder:
    try:
        return open_folder(path.parent, create=True)
    except OSError as error:
        raise storage_error(f"cannot write {path}{size}", error, path.parent) from error


def check_writable(path: Path) -> None:
    """Raises an error where `write_file` would certainly be refused `path`; writes nothing."""
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    for wrong, number in (
        (path.is_dir(), errno.EISDIR),
        (not existing.is_dir(), errno.ENOTDIR),
        (not os.access(existing, os.W_OK | os.X_OK), errno.EACCES),
    ):
        if wrong:
            raise storage_error(f"cannot write {path}", OSError(number, os.strerror(number)))
    if path.parent.exists():
        with open_folder(path.parent) as folder:
            folder.has_file(path.name)


def sync_folder(path: Path) -> None:
    """Makes renames and removals in a folder durable. Raises `OSError`."""
    with open_folder(path) as folder:
        folder.sync()
