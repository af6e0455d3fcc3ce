"""An exclusive lock on a folder, also where the file system has no locks, and a look whether it still holds.

the folder      locked by the kernel (flock), where it can lock a folder
.lock           locked by the kernel too; its content names the holder
.lock.holder    only where the file system has no locks: whoever made this file has the lock

Some file systems lock within one machine only (sshfs, NFS mounted with nolock). Then the last process to
lock the folder is the one that the file names, and the others see that by `is_held` before they write.
"""

from __future__ import annotations

import datetime
import errno
import json
import logging
import os
import secrets
import socket
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from kilolayer.errors import InputError, KilolayerError
from kilolayer.system.folder_calls import SAFE_FLAGS, at
from kilolayer.system.json_text import parse_json

LOCK_NAME, HOLDER_NAME = ".lock", ".lock.holder"
_MAX_BYTES = 4096
_SECONDS_TO_WRITE = 2.0
"""How long a process may take from making the holder's file to writing it."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_NO_FOLDER_LOCKS = (*_NO_LOCKS, errno.EBADF, errno.EISDIR)  # NFS locks only what is open for writing
_TAKEN = (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK, errno.EDEADLK)
_NO_PLAIN_FILE = (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EMLINK)
ATTEMPTS = 5

logger = logging.getLogger(__name__)


class FolderInUse(KilolayerError):
    """Another process holds the lock of a folder; the text says which, and what to do."""


class FolderLock:
    """The lock of a folder, held until `release` or until the process ends.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lock = FolderLock.acquire(Path(folder), folder)
    ...     print(lock.is_held())
    ...     lock.release()
    True
    """

    def __init__(self, folder: int | Path, name: str, descriptor: int) -> None:
        self.folder, self.name, self.descriptor = folder, name, descriptor
        self._record = json.dumps(_this_process()).encode()

    @classmethod
    def acquire(cls, folder: int | Path, shown: object) -> FolderLock:
        """Locks a folder, without waiting.

        folder: an open descriptor, which must stay open; or a path where the system has no `dir_fd`.
        shown: the folder's path, for messages.

        Raises `FolderInUse` where another process has the lock, `InputError` where a lock's file is no plain
        file, and `OSError` where it cannot be made.
        """
        for _ in range(ATTEMPTS):
            _lock_folder(folder, shown)
            try:
                lock = cls._acquired_once(folder, shown)
            except BaseException:
                _unlock_folder(folder)
                raise
            if lock.is_held():
                return lock
            lock.release()  # somebody removed its file meanwhile, and may have locked another one
        raise _in_use(shown, None)

    @classmethod
    def _acquired_once(cls, folder: int | Path, shown: object) -> FolderLock:
        lock = cls(folder, LOCK_NAME, _open(folder, LOCK_NAME, os.O_RDWR | os.O_CREAT))
        try:
            has_locks = _lock(lock.descriptor)
            _check_holder(folder, shown)
        except BlockingIOError:
            os.close(lock.descriptor)
            raise _in_use(shown, _record(_content(folder, LOCK_NAME))) from None
        except BaseException:
            os.close(lock.descriptor)
            raise
        if not has_locks:
            os.close(lock.descriptor)
            lock = cls._made_exclusively(folder, shown)
        lock._write()
        return lock

    @classmethod
    def _made_exclusively(cls, folder: int | Path, shown: object) -> FolderLock:
        try:
            descriptor = _open(folder, HOLDER_NAME, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            raise _in_use(shown, None) from None
        logger.warning(
            "the file system of %s has no locks; the file %s marks the folder as in use", shown, HOLDER_NAME
        )
        return cls(folder, HOLDER_NAME, descriptor)

    def _write(self) -> None:
        try:
            os.ftruncate(self.descriptor, 0)
            os.lseek(self.descriptor, 0, os.SEEK_SET)
            os.write(self.descriptor, self._record)
            os.fsync(self.descriptor)  # another machine reads it
        except BaseException:
            self.release()
            raise

    def is_held(self) -> bool:
        """Whether the folder's lock is still this one: neither removed nor taken by another machine."""
        return _content(self.folder, self.name) == self._record

    def release(self) -> None:
        """Gives the lock back: removes the file that is the lock, or empties it where the kernel's is."""
        with suppress(OSError, InputError):
            if self.is_held():
                _remove(self.folder, self.name) if self.name == HOLDER_NAME else os.ftruncate(
                    self.descriptor, 0
                )
        with suppress(OSError):
            os.close(self.descriptor)
        _unlock_folder(self.folder)


def _check_holder(folder: int | Path, shown: object) -> None:
    """Raises `FolderInUse` where a holder's file names a process that may live; removes that of one gone."""
    deadline = time.monotonic() + _SECONDS_TO_WRITE
    while (content := _content(folder, HOLDER_NAME)) is not None:
        holder = _record(content)
        if holder and _has_ended(holder):
            # Two processes may both see this; the slower one removes the faster one's file, which notices.
            _remove(folder, HOLDER_NAME)
            return
        if holder or time.monotonic() > deadline:
            raise _in_use(shown, holder, by_file=True)
        time.sleep(0.05)


def _in_use(shown: object, holder: dict[str, Any] | None, by_file: bool = False) -> FolderInUse:
    fields = {name: _harmless(value) for name, value in (holder or {}).items()}
    who = " ({pid} on {host}, since {since})".format_map(fields) if fields else ""
    advice = "wait for it or choose another --out"
    if by_file:
        advice = f"wait for it, or delete {shown}/{HOLDER_NAME} if that process has ended"
    return FolderInUse(f"{shown} is in use by another process{who}; {advice}")


def _harmless(value: object) -> str:
    """What somebody else wrote, short and without control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(value)[:80])


def _this_process() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "started": _start_time(os.getpid()),
        "token": secrets.token_hex(8),
    }


def _has_ended(holder: dict[str, Any]) -> bool:
    """Whether the process was one of this machine, since its start, and is gone."""
    machine, pid = _machine(), holder["pid"]
    is_ours = machine is not None and holder.get("machine") == machine and isinstance(pid, int)
    return is_ours and _start_time(pid) != holder.get("started")


def _machine() -> str | None:
    """What tells this start of this machine, and its container's process numbers; None where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _start_time(pid: int) -> str | None:
    """When a process of this machine began, in clock ticks; None where there is none, or no /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return text.rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _record(content: bytes | None) -> dict[str, Any] | None:
    """The holder that a lock's file names; None where it names none, or is not written yet."""
    try:
        record = parse_json(content or b"", HOLDER_NAME)
    except InputError:
        return None
    return record if isinstance(record, dict) and {"pid", "host", "since"} <= record.keys() else None


def _content(folder: int | Path, name: str) -> bytes | None:
    """The beginning of a file in the folder; None if it is missing."""
    try:
        descriptor = _open(folder, name, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return os.read(descriptor, _MAX_BYTES)
    finally:
        os.close(descriptor)


def _open(folder: int | Path, name: str, flags: int) -> int:
    """Opens a plain file that only this folder has, following no link and waiting for nobody."""
    try:
        descriptor = os.open(**at(folder, name), flags=flags | SAFE_FLAGS, mode=0o666)
    except OSError as error:
        if error.errno in _NO_PLAIN_FILE:
            raise _not_plain(name) from None
        raise
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode) or state.st_nlink > 1:
        os.close(descriptor)
        raise _not_plain(name)
    return descriptor


def _not_plain(name: str) -> InputError:
    return InputError(
        f"{name} in the run's folder is no plain file of its own (a link, a folder, a device), and this "
        "process would write into it; remove it, or choose another --out"
    )


def _remove(folder: int | Path, name: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(**at(folder, name))


def _lock_folder(folder: int | Path, shown: object) -> None:
    """Locks the folder itself, where that is possible: nobody can delete this lock."""
    if not isinstance(folder, int):
        return
    try:
        _lock(folder, _NO_FOLDER_LOCKS)
    except BlockingIOError:
        raise _in_use(shown, _record(_content(folder, LOCK_NAME))) from None


def _lock(descriptor: int, without: tuple[int, ...] = _NO_LOCKS) -> bool:
    """Locks an open file; False where its file system has no locks. Raises `BlockingIOError` if taken.

    without: the errors by which a file system says that it has none.
    """
    try:
        _lock_exclusively(descriptor)
    except OSError as error:
        if error.errno in _TAKEN:
            raise BlockingIOError(error.errno, error.strerror) from None
        if error.errno not in without:
            raise
        return False
    return True


if sys.platform == "win32":
    import msvcrt

    def _lock_exclusively(descriptor: int) -> None:
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # behind the content, which others read
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

    def _unlock_folder(folder: int | Path) -> None:
        pass

else:
    import fcntl

    def _lock_exclusively(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock_folder(folder: int | Path) -> None:
        if isinstance(folder, int):
            with suppress(OSError):
                fcntl.flock(folder, fcntl.LOCK_UN)
