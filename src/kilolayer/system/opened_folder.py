"""An opened folder: a descriptor from which everything in it is reached. No link in it is followed.

A folder that somebody gave away can hold links, pipes, devices and endless files, and it can be moved,
removed or replaced while a run is under way. From the descriptor no name can lead elsewhere, only plain files
are read, and not more of them than a limit.

A write is durable and never in place: after a crash at any moment a file is either the old one or the new
one, and what else a hard link calls by another name stays as it was.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from kilolayer.errors import InputError, StorageError
from kilolayer.system.folder_calls import SAFE_FLAGS, at
from kilolayer.system.folder_lock import FolderLock

_TEMPORARY_NAME = re.compile(r"\..+\.[0-9a-f]{8}")
_OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_FOLDER_FSYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_HAS_DIR_FD = os.open in os.supports_dir_fd
"""Windows has no descriptors of folders; everything goes by path there."""
SET_ASIDE = ".set-aside"
_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class FolderLost(StorageError):
    """An opened folder is no longer what its path names, or another process has taken its lock."""


class OpenedFolder:
    """A folder that stays the same one, whatever happens to its path; see `open_folder`.

    path: the folder's path, for messages, and to see whether it still names this folder.
    """

    def __init__(self, path: Path, descriptor: int | None, parent: OpenedFolder | None = None) -> None:
        self.path, self._descriptor, self._parent = path, descriptor, parent
        self._lock: FolderLock | None = None
        self._identity = _identity(os.stat(path) if descriptor is None else os.fstat(descriptor))

    def __enter__(self) -> OpenedFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the lock back, if there is one, and closes the folder."""
        if self._lock is not None:
            self._lock.release()
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._lock = self._descriptor = None

    def lock(self) -> None:
        """Locks the folder until it is closed. Raises `FolderInUse` where another process has the lock."""
        with self._storage_errors("cannot lock"):
            self._lock = FolderLock.acquire(self._reference, self.path)
        self.check()

    def check(self) -> None:
        """Raises `FolderLost` where the path names another folder by now, or the lock is lost.

        Raises `StorageError` where the system does not tell: then the folder may well be there.
        """
        if self._parent is not None:
            self._parent.check()
            return
        with self._storage_errors("cannot check the folder"):
            reason = self._lost_reason()
        if reason:
            raise FolderLost(f"{self.path} {reason}")

    def _lost_reason(self) -> str:
        try:
            if _identity(os.stat(self.path)) != self._identity:
                return f"is another folder than it was when it was opened; that one {self._whereabouts()}"
            if self._lock is not None and not self._lock.is_held():
                return "is no longer locked by this process: its .lock was removed or replaced"
        except FileNotFoundError:
            return f"is no longer there: the folder {self._whereabouts()}"
        return ""

    def _whereabouts(self) -> str:
        """What became of the folder, as far as the system says."""
        with suppress(OSError):
            current = os.readlink(f"/proc/self/fd/{self._descriptor}")
            return "was removed" if current.endswith(" (deleted)") else f"is now {current}"
        return "was moved or removed"

    # Reading

    def names(self) -> list[str]:
        """The names in the folder, sorted."""
        with self._storage_errors("cannot read the folder"):
            return sorted(os.listdir(self._reference))

    def read(self, name: str, limit: int) -> bytes | None:
        """The content of a file; None where there is none.

        Raises `InputError` where the name is not a plain file's or the file has more than `limit` bytes, and
        `StorageError` where it cannot be read: then nobody knows whether it is good.
        """
        with self._storage_errors("cannot read", name):
            try:
                descriptor = self._open(name, os.O_RDONLY)
            except FileNotFoundError:
                return None
            with open(descriptor, "rb") as file:
                size = os.fstat(descriptor).st_size
                # Some files grow while they are read, or have no size.
                content = file.read(limit + 1) if size <= limit else b""
        if size > limit or len(content) > limit:
            raise InputError(
                f"{self.path / name} has more bytes than such a file can have: at most {limit:,} are read"
            )
        return content

    def has_file(self, name: str) -> bool:
        """Whether a plain file has this name. Raises `InputError` where something else has."""
        kind = self._kind(name)
        if kind not in (None, stat.S_IFREG):
            raise self._not_plain(name, kind)
        return kind is not None

    def has_folder(self, name: str) -> bool:
        """Whether a folder has this name. Raises `InputError` where something else has."""
        kind = self._kind(name)
        if kind not in (None, stat.S_IFDIR):
            raise InputError(
                f"{self.path / name} is {_KINDS.get(kind, 'a file')}; only a folder may be there"
            )
        return kind is not None

    def subfolder(self, name: str, *, create: bool = False) -> OpenedFolder:
        """A folder in this one. Raises `InputError` where the name is a link's or a file's.

        create: make it if it is missing; otherwise raises `FileNotFoundError`.
        """
        with self._storage_errors("cannot open the folder", name, passed=FileNotFoundError):
            if not self.has_folder(name) and create:
                self.check()
                with suppress(FileExistsError):
                    os.mkdir(**self._at(name))
                self.sync()
            descriptor = None
            if self._descriptor is not None:
                descriptor = os.open(**self._at(name), flags=os.O_RDONLY | os.O_DIRECTORY | SAFE_FLAGS)
            return OpenedFolder(self.path / name, descriptor, self)

    # Writing

    def write(self, name: str, content: bytes) -> None:
        """Replaces a file by `content` durably: temporary file, fsync, rename, fsync of the folder.

        Raises `StorageError` where the system refuses, as on a full disk; `InputError` where the name is that
        of something else than a plain file.
        """
        with self._writer(name, f" ({len(content):,} bytes)") as file:
            file.write(content)

    def writer(self, name: str) -> Any:
        """As `write`, for content written in parts; if the block raises, the file stays as it was."""
        return self._writer(name, "")

    @contextmanager
    def _writer(self, name: str, size: str) -> Iterator[BinaryIO]:
        temporary = f".{name}.{secrets.token_hex(4)}"
        with self._storage_errors("cannot write", name, size):
            self.check()
            self.has_file(name)
            try:
                with self.create(temporary) as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                self.check()
                self._rename(temporary, name)
            except BaseException:
                with suppress(OSError):
                    os.unlink(**self._at(temporary))
                raise
            self.sync()

    def create(self, name: str) -> BinaryIO:
        """A new file to write to, which nobody else has made. Raises `OSError`."""
        return open(self._open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb")

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        with self._storage_errors("cannot remove", name):
            self.check()
            with suppress(FileNotFoundError):
                os.unlink(**self._at(name))

    def set_aside(self, name: str) -> str:
        """Gives a file a name that no program reads, and returns that name."""
        names = self.names()
        candidates = (f"{name}{SET_ASIDE}{f'-{n}' if n > 1 else ''}" for n in range(1, len(names) + 2))
        target = next(candidate for candidate in candidates if candidate not in names)
        with self._storage_errors("cannot rename", name):
            self.check()
            self._rename(name, target)
            self.sync()
        return target

    def remove_temporary_files(self) -> None:
        """Removes the temporary files that a process killed while writing left."""
        for name in self.names():
            if _TEMPORARY_NAME.fullmatch(name):
                self.remove(name)

    def sync(self) -> None:
        """Makes renames and removals in the folder durable, where its file system can."""
        if self._descriptor is None:
            return
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            if error.errno not in _NO_FOLDER_FSYNC:
                raise

    # System calls

    @property
    def _reference(self) -> int | Path:
        """What the system calls know the folder by."""
        return self.path if self._descriptor is None else self._descriptor

    def _at(self, name: str) -> dict[str, Any]:
        return at(self._reference, name)

    def _open(self, name: str, flags: int) -> int:
        try:
            descriptor = os.open(**self._at(name), flags=flags | SAFE_FLAGS, mode=0o666)
        except OSError:
            # A link is ELOOP, a socket or a device without a driver ENXIO.
            self.has_file(name)
            raise
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
        if kind != stat.S_IFREG:
            os.close(descriptor)
            raise self._not_plain(name, kind)
        return descriptor

    def _kind(self, name: str) -> int | None:
        with self._storage_errors("cannot read", name):
            try:
                return stat.S_IFMT(os.stat(**self._at(name), follow_symlinks=False).st_mode)
            except FileNotFoundError:
                return None

    def _not_plain(self, name: str, kind: int) -> InputError:
        return InputError(
            f"{self.path / name} is {_KINDS.get(kind, 'no file')}; only a plain file may be there"
        )

    def _rename(self, name: str, target: str) -> None:
        if self._descriptor is None:
            os.replace(self.path / name, self.path / target)
        else:
            os.replace(name, target, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)

    @contextmanager
    def _storage_errors(
        self, attempt: str, name: str = "", size: str = "", passed: type[OSError] | tuple[()] = ()
    ) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, passed):
                raise
            raise storage_error(f"{attempt} {self.path / name}{size}", error, self.path) from error


def open_folder(path: str | Path, *, below: str | Path | None = None, create: bool = False) -> OpenedFolder:
    """Opens a folder, which closes itself at the end of a `with`. The path may be a link's.

    below: a folder above `path`; no link is followed below it.
    create: make the folder and its missing parents.

    Raises `InputError` where a name below `below` is not a folder's, and `OSError` where the system refuses.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as path, open_folder(path) as folder:
    ...     folder.write("figures.json", b"[]")
    ...     folder.names(), folder.read("figures.json", limit=100), folder.read("missing", limit=100)
    (['figures.json'], b'[]', None)
    """
    path = Path(path)
    if below is not None and path != Path(below):
        with open_folder(path.parent, below=below, create=create) as parent:
            folder = parent.subfolder(path.name, create=create)
            folder._parent = None  # it is closed; from here on the path tells
            return folder
    if create:
        make_folder(path)
    flags = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
    return OpenedFolder(path, os.open(path, flags) if _HAS_DIR_FD else None)


def make_folder(path: Path) -> None:
    """Creates `path` and its missing parents durably. Raises `OSError`."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        with open_folder(folder.parent) as parent:
            parent.sync()


def storage_error(attempt: str, error: OSError, folder: Path | None = None) -> StorageError:
    """An error with the attempt, the system's reason and, on a full disk, the free space at `folder`."""
    return StorageError(f"{attempt}: {error.strerror or error}{_free_space(error, folder) if folder else ''}")


def _free_space(error: OSError, folder: Path) -> str:
    if error.errno not in _OUT_OF_SPACE:
        return ""
    with suppress(OSError):
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        return f"; {shutil.disk_usage(existing).free:,} bytes are free there"
    return ""


def _identity(state: os.stat_result) -> tuple[int, int]:
    return state.st_dev, state.st_ino
