"""The cache of native code: what is loaded from it, and what is made anew.

A file is believed only where this user or root alone can change it (a guard against people), and where the
SHA-256 at its end fits its name and its content (a guard against damage: whoever can write the content can
write the hash). It is read once, and the bytes that were checked are the bytes that are used.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from kilolayer.system import durable, folders

logger = logging.getLogger(__name__)

T = TypeVar("T")

CACHE_FOLDER = "native"
"""The folder of the cache that holds the libraries."""
MAX_BYTES = 256 * 2**20
LOCK_SECONDS = 600
BUILD_PREFIX = "build-"
"""What a build writes before it is finished. Only the holder of the folder's lock has any."""
SEAL = b"\nsha256 "
"""It stands between the content and its hash; a loader of libraries ignores what is behind them."""


class NativeUnavailable(Exception):
    """There is no native code here; the message is the reason. PyTorch's layers compute instead."""


def load_cached(name: str, parse: Callable[[bytes], T], make: Callable[[Path], bytes]) -> T:
    """What `parse` makes of the cached file `name`, or of the content that `make` returns for it.

    parse: raises `OSError` or `ValueError` for content that cannot be used; the file is then made anew.
    make: called with a folder for temporary files, in one process at a time.

    Raises `NativeUnavailable` where no folder can take the file, or where what was made cannot be used.
    """
    for folder in folders.cache_folders(CACHE_FOLDER):
        with suppress(OSError, ValueError):
            return parse(_read(folder / name))
    reasons = []
    for locate in (folders.writable_cache_folder, folders.private_temporary_folder):
        try:
            folder = folders.make_trusted_folder(locate() / CACHE_FOLDER)
            # When many processes start at once, one compiles and the others wait for it.
            with FileLock(_lock_file(folder), timeout=LOCK_SECONDS):
                loaded = _load_or_make(folder, name, parse, make)
        except OSError as error:  # a timeout of the lock is one too
            reasons.append(folders.reason(error))
        except NotImplementedError:
            reasons.append(f"{folder}: its file system has no locks")
        else:
            if reasons:
                warn(f"{'; '.join(reasons)}; compiled kernels are kept in {folder}")
            return loaded
    text = f"no folder for compiled kernels can be used ({'; '.join(reasons)})"
    warn(f"{text}; PyTorch's own layers compute instead. Name a folder of your own: XDG_CACHE_HOME=DIR")
    raise NativeUnavailable(text)


def _lock_file(folder: Path) -> Path:
    """The lock's path; what somebody planted there while they could write to the folder is removed.

    To lock a link would create or change the file that it leads to.
    """
    path = folder / ".lock"
    with suppress(FileNotFoundError):
        state = path.lstat()
        if not stat.S_ISREG(state.st_mode) or state.st_nlink != 1:
            path.unlink()
    return path


def _load_or_make(folder: Path, name: str, parse: Callable[[bytes], T], make: Callable[[Path], bytes]) -> T:
    """Called by the holder of the folder's lock."""
    _remove_killed_builds(folder)
    with suppress(OSError, ValueError):
        return parse(_read(folder / name))
    with tempfile.TemporaryDirectory(prefix=BUILD_PREFIX, dir=folder, ignore_cleanup_errors=True) as build:
        os.chmod(build, 0o700)  # whatever the umask is
        content = make(Path(build))
    try:
        loaded = parse(content)
    except (OSError, ValueError) as error:
        raise NativeUnavailable(f"{name} was compiled but cannot be loaded ({error})") from None
    _write(folder / name, content)
    return loaded


def _remove_killed_builds(folder: Path) -> None:
    """Removes what builds left that were killed: a living one would hold the lock."""
    for path in folder.glob(f"{BUILD_PREFIX}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    """The content of the cached file. Raises `OSError` or `ValueError` where it cannot be believed."""
    content, seal, written = folders.read_trusted_file(path, MAX_BYTES).rpartition(SEAL)
    if not seal or written != _digest(path.name, content):
        raise ValueError(f"{path} is damaged")
    return content


def _write(path: Path, content: bytes) -> None:
    """Replaces the file durably: a library cut by a power failure is noticed, and compiled again."""
    temporary = path.with_name(f"{BUILD_PREFIX}{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            os.fchmod(file.fileno(), os.fstat(file.fileno()).st_mode & 0o755 | 0o600)  # whatever the umask is
            file.write(content + SEAL + _digest(path.name, content))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    durable.sync_folder(path.parent)


def _digest(name: str, content: bytes) -> bytes:
    """The name belongs to it: a library renamed by hand is another's."""
    return hashlib.sha256(os.fsencode(name) + b"\0" + content).hexdigest().encode()


@cache
def warn(text: str) -> None:
    """Logs `text` once, though there are several libraries."""
    logger.warning(text)
