"""Durable writes: after a crash at any moment, a file is either the old one or the new one."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from kilolayer.errors import StorageError

_TEMPORARY_NAME = re.compile(r"\..+\.[0-9a-f]{8}")
_OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_file(path: Path, content: bytes) -> None:
    """Replaces `path` by `content` durably: temporary file, fsync, rename, fsync of the folder.

    Creates the folder if it is missing. Raises `StorageError`, which names the path, where the system
    refuses, as on a full disk.
    """
    try:
        make_folder(path.parent)
        _replace(path, content)
    except OSError as error:
        raise storage_error(f"cannot write {path} ({len(content):,} bytes)", error, path.parent) from error


def check_writable(path: Path) -> None:
    """Raises `StorageError` where `write_file` would certainly be refused `path`; writes nothing."""
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    for wrong, number in (
        (path.is_dir(), errno.EISDIR),
        (not existing.is_dir(), errno.ENOTDIR),
        (not os.access(existing, os.W_OK | os.X_OK), errno.EACCES),
    ):
        if wrong:
            raise storage_error(f"cannot write {path}", OSError(number, os.strerror(number)))


def append_file(path: Path, content: bytes) -> None:
    """Appends `content` to `path` durably; a crash may leave only its beginning there."""
    new = not path.exists()
    try:
        with path.open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync_folder(path.parent)
    except OSError as error:
        raise storage_error(f"cannot write {path}", error, path.parent) from error


def truncate_file(path: Path, length: int) -> None:
    """Cuts `path`, if it exists, to its first `length` bytes."""
    try:
        if path.exists():
            os.truncate(path, length)
    except OSError as error:
        raise storage_error(f"cannot write {path}", error, path.parent) from error


def storage_error(attempt: str, error: OSError, folder: Path | None = None) -> StorageError:
    """An error with the attempt, the system's reason and, on a full disk, the free space at `folder`."""
    return StorageError(f"{attempt}: {error.strerror or error}{_free_space(error, folder) if folder else ''}")


def _free_space(error: OSError, folder: Path) -> str:
    if error.errno not in _OUT_OF_SPACE:
        return ""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return f"; {shutil.disk_usage(existing).free:,} bytes are free there"


def make_folder(path: Path) -> None:
    """Creates `path` and its missing parents durably."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def remove_temporary_files(folder: Path) -> None:
    """Removes the temporary files that a process killed while writing left in `folder`."""
    for path in folder.iterdir():
        if _TEMPORARY_NAME.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _replace(path: Path, content: bytes) -> None:
    with _temporary_file(path) as file:
        file.write(content)


@contextmanager
def file_writer(path: Path) -> Iterator[BinaryIO]:
    """As `write_file`, for content written in parts; if the block raises, `path` stays as it was."""
    try:
        make_folder(path.parent)
        with _temporary_file(path) as file:
            yield file
    except OSError as error:
        raise storage_error(f"cannot write {path}", error, path.parent) from error


@contextmanager
def _temporary_file(path: Path) -> Iterator[BinaryIO]:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames and removals in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
