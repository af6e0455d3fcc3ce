"""Writing so that a file is either the old one or the new one, whatever stops the machine."""

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

    The folder is made where it is missing. Raises `StorageError` naming the path where the system
    refuses, as on a full disk.
    """
    try:
        make_folder(path.parent)
        _replace(path, content)
    except OSError as error:
        raise storage_error(f"cannot write {path} ({len(content):,} bytes)", error, path.parent) from error


def check_writable(path: Path) -> None:
    """Raises `StorageError` where it can be seen without writing that `write` would be refused `path`."""
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    for wrong, number in (
        (path.is_dir(), errno.EISDIR),
        (not existing.is_dir(), errno.ENOTDIR),
        (not os.access(existing, os.W_OK | os.X_OK), errno.EACCES),
    ):
        if wrong:
            raise storage_error(f"cannot write {path}", OSError(number, os.strerror(number)))


def append_file(path: Path, content: bytes) -> None:
    """Adds `content` to the end of `path` durably, though a crash may leave only its beginning there."""
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
    """Shortens `path`, where it is there, to its first `length` bytes."""
    try:
        if path.exists():
            os.truncate(path, length)
    except OSError as error:
        raise storage_error(f"cannot write {path}", error, path.parent) from error


def storage_error(attempt: str, error: OSError, folder: Path | None = None) -> StorageError:
    """`what` could not be done, the system's reason, and how much room `folder` has, on one line."""
    return StorageError(f"{attempt}: {error.strerror or error}{_free_space(error, folder) if folder else ''}")


def _free_space(error: OSError, folder: Path) -> str:
    if error.errno not in _OUT_OF_SPACE:
        return ""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return f"; {shutil.disk_usage(existing).free:,} bytes are free there"


def make_folder(path: Path) -> None:
    """Makes `path` and what is missing above it, so that they last."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def remove_temporary_files(folder: Path) -> None:
    """Removes the temporary files in `folder` that a process killed while writing left there."""
    for path in folder.iterdir():
        if _TEMPORARY_NAME.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _replace(path: Path, content: bytes) -> None:
    with _temporary_file(path) as file:
        file.write(content)


@contextmanager
def file_writer(path: Path) -> Iterator[BinaryIO]:
    """As `write`, for content written part by part; `path` stays as it was where anything is raised."""
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
    """Makes renames and removals in `folder` last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
