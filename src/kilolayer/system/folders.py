"""Default folders: the home folder, the cache, and a private temporary one if neither can be used.

A container under a bare user id has neither $HOME nor a line in passwd; on a batch node the home folder can
be missing or read-only. A cache may be lost at any time, so none of this is a reason to fail.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kilolayer.errors import InputError

logger = logging.getLogger(__name__)

CACHE_VARIABLES = {"matplotlib": "MPLCONFIGDIR", "triton": "TRITON_CACHE_DIR"}
"""Packages with a cache in the home folder, and the environment variable that moves it."""


POSIX = hasattr(os, "getuid")


def home_folder() -> Path | None:
    """The user's home folder; None if it is unknown or missing."""
    path = os.environ.get("HOME") or _home_from_passwd()
    return Path(path) if os.path.isabs(path) and os.path.isdir(path) else None


def _home_from_passwd() -> str:
    try:
        import pwd
    except ImportError:  # Windows
        return os.path.expanduser("~")
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return ""


def expand_home(path: str) -> str:
    """`path` with the home folder in place of a leading ~, which shells leave in --out=~/run.

    Raises `InputError` where the home folder is unknown: nobody means a folder called "~".
    """
    if path != "~" and not path.startswith("~/"):
        return os.path.expanduser(path)  # ~somebody, or a name that begins so
    folder = home_folder()
    if folder is None:
        home_state = f"$HOME is {os.environ['HOME']!r}" if os.environ.get("HOME") else "$HOME is not set"
        raise InputError(f"{path!r}: there is no home folder here ({home_state}); give the whole path")
    return f"{folder}{path[1:]}"


def cache_folder() -> Path | None:
    """The cache folder, which may not exist yet: kilolayer/ in $XDG_CACHE_HOME or in ~/.cache."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification forbids a relative path: it would be another folder in every working folder.
    return Path(configured) / "kilolayer" if os.path.isabs(configured) else home_cache_folder()


def home_cache_folder() -> Path | None:
    """The cache in the home folder, where earlier releases kept data in spite of $XDG_CACHE_HOME."""
    folder = home_folder()
    return folder / ".cache" / "kilolayer" if folder else None


def writable_cache_folder() -> Path:
    """The cache folder, created if it is missing. Raises `OSError` where it cannot be written."""
    path = cache_folder()
    if path is None:
        raise FileNotFoundError(errno.ENOENT, "there is no home folder")
    return _require_writable(path)


def writable_folders(name: str) -> Iterator[Path]:
    """The folders called `name` that can be written: in the cache, then in `private_temporary_folder()`."""
    for folder in (writable_cache_folder, private_temporary_folder):
        try:
            path = _require_writable(folder() / name)
        except OSError:
            continue
        yield path


def _require_writable(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    return path


def private_temporary_folder() -> Path:
    """A folder in $TMPDIR or /tmp that only this user can read or write, the same for all their processes.

    Raises `OSError` where it cannot be created, or where somebody else owns a folder of that name.
    """
    path = Path(tempfile.gettempdir()) / f"kilolayer-{os.getuid() if POSIX else os.getlogin()}"
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
        logger.warning("no cache folder is writable here; compiled kernels are kept in %s", path)
    state = path.lstat()
    if not stat.S_ISDIR(state.st_mode) or (POSIX and not _is_private(state)):
        raise PermissionError(errno.EPERM, "is not this user's private folder", str(path))
    return path


def _is_private(state: os.stat_result) -> bool:
    return state.st_uid == os.geteuid() and not state.st_mode & 0o077


def redirect_cache(package: str) -> None:
    """Moves a package's cache to `private_temporary_folder()` if there is no writable home folder.

    package: a key of `CACHE_VARIABLES`.
    """
    folder = home_folder()
    if CACHE_VARIABLES[package] in os.environ or (folder and os.access(folder, os.W_OK | os.X_OK)):
        return
    with suppress(OSError):
        os.environ[CACHE_VARIABLES[package]] = str(private_temporary_folder() / package)
