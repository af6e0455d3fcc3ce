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
from functools import cache
from pathlib import Path

from kilolayer.errors import InputError
from kilolayer.system.folder_calls import SAFE_FLAGS

logger = logging.getLogger(__name__)

CACHE_VARIABLES = {
    "matplotlib": "MPLCONFIGDIR",
    "triton": "TRITON_CACHE_DIR",
    "inductor": "TORCHINDUCTOR_CACHE_DIR",
}
"""Packages with a cache from which they load code or settings, and the environment variable that moves it."""
DEFAULT_FOLDERS = {"matplotlib": ".config/matplotlib", "triton": ".triton/cache", "inductor": ""}
"""Where they keep it in the home folder; torch.compile's is in the folder of temporary files."""

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


def cache_folders(name: str) -> Iterator[Path]:
    """The folders called `name` that may hold cached files; none of them need exist or be usable."""
    if (path := cache_folder()) is not None:
        yield path / name
    with suppress(OSError):
        yield _private_temporary_path() / name


def writable_cache_folder() -> Path:
    """The cache folder, created if it is missing.

    Raises `OSError` where it cannot be written, `DistrustedError` where others can write to it.
    """
    path = cache_folder()
    if path is None:
        raise FileNotFoundError(errno.ENOENT, "there is no home folder")
    return make_trusted_folder(path)


def private_temporary_folder() -> Path:
    """A folder in $TMPDIR or /tmp that only this user can read or write, the same for all their processes.

    Raises `OSError` where it cannot be created, or where somebody else owns a folder of that name.
    """
    path = _private_temporary_path()
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
        path.chmod(0o700)  # whatever the umask is
    state = path.lstat()
    if not stat.S_ISDIR(state.st_mode) or (POSIX and not _is_private(state)):
        raise DistrustedError(errno.EPERM, "is not this user's private folder", str(path))
    return make_trusted_folder(path)


def _private_temporary_path() -> Path:
    if tempfile.gettempdir() == os.getcwd() and not os.environ.get("TMPDIR"):
        # Python's last resort: somebody's data or source, and another folder in every command.
        raise FileNotFoundError(errno.ENOENT, "there is no folder for temporary files")
    return Path(tempfile.gettempdir()) / f"kilolayer-{os.getuid() if POSIX else os.getlogin()}"


def _is_private(state: os.stat_result) -> bool:
    return state.st_uid == os.geteuid() and not state.st_mode & 0o077


def make_trusted_folder(path: Path) -> Path:
    """The folder without links in its path, created if it is missing, with `require_trusted` fulfilled.

    Raises `OSError` where it cannot be written.
    """
    path = Path(os.path.realpath(path))
    require_trusted(path)
    for part in reversed((path, *path.parents)):
        if not part.exists():
            with suppress(FileExistsError):
                part.mkdir(mode=0o755)
                part.chmod(part.stat().st_mode | 0o700)  # whatever the umask is
    require_trusted(path)
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    return path


class DistrustedError(PermissionError):
    """Somebody else can change this file or folder, so nothing is loaded from it."""


def require_trusted(path: Path) -> None:
    """Raises `DistrustedError` unless this user and root alone can change `path` and the folders above it.

    `path` must be absolute and without links; what is missing cannot be distrusted. Folders above it may be
    sticky, as /tmp is: nobody can replace what others have in them. A folder that passed cannot be changed by
    others while the next is looked at. Does nothing on Windows.
    """
    for part in reversed((path, *path.parents)):
        try:
            _check_trusted(part.lstat(), part, may_be_sticky=part != path)
        except FileNotFoundError:
            return


def read_trusted_file(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file that `require_trusted` would take, opened once and without a link.

    Raises `OSError`.
    """
    folder = Path(os.path.realpath(path.parent))
    require_trusted(folder)
    descriptor = os.open(folder / path.name, os.O_RDONLY | SAFE_FLAGS)
    with open(descriptor, "rb") as file:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode) or state.st_size > max_bytes:
            raise DistrustedError(errno.EPERM, "is no file of ours", str(path))
        _check_trusted(state, path)
        return file.read(max_bytes)


def _check_trusted(state: os.stat_result, path: Path, *, may_be_sticky: bool = False) -> None:
    if not POSIX:
        return
    is_known = _is_known_user(state.st_uid)
    is_above = may_be_sticky and not is_known and not _is_known_user(0)
    if not is_above and not (is_known and state.st_uid in (os.geteuid(), 0)):
        raise DistrustedError(errno.EPERM, f"belongs to another user (id {state.st_uid})", str(path))
    if stat.S_ISLNK(state.st_mode):
        raise DistrustedError(errno.EPERM, "is a link", str(path))
    if state.st_mode & stat.S_ISVTX and stat.S_ISDIR(state.st_mode) and may_be_sticky:
        return
    others = state.st_mode & stat.S_IWOTH
    group = state.st_mode & stat.S_IWGRP and not (_is_private_group(state) and not _has_acl(path))
    if others or group:
        raise DistrustedError(errno.EPERM, f"others can write to it: chmod go-w {path}", str(path))


def _is_known_user(user: int) -> bool:
    """Whether this id is one user's alone: in a user namespace everybody who is not mapped shows as nobody.

    Where root is not mapped, as in a container without rights, / itself is nobody's; folders above may be.
    """
    return any(user in users for users in _mapped_users())


@cache
def _mapped_users() -> list[range]:
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            rows = [line.split() for line in file]
        return [range(int(first), int(first) + int(count)) for first, _, count in rows]
    except (OSError, ValueError):  # another system than Linux, or no /proc
        return [range(2**32)]


def _is_private_group(state: os.stat_result) -> bool:
    """Whether the owner alone is in the group, as Debian makes a group for each user: umask 002 is safe then.

    The group must have the user's name and be the user's first.
    """
    try:
        import grp
        import pwd

        user, group = pwd.getpwuid(state.st_uid), grp.getgrgid(state.st_gid)
    except (ImportError, KeyError):
        return False
    return user.pw_gid == group.gr_gid and user.pw_name == group.gr_name and {*group.gr_mem} <= {user.pw_name}


def _has_acl(path: Path) -> bool:
    """Whether an access control list may name others: their rights show as the group's."""
    try:
        return "system.posix_acl_access" in os.listxattr(path)
    except (OSError, AttributeError):  # a file system without; another system than Linux
        return False


def reason(error: OSError) -> str:
    """The system's error with its path in front, without its number."""
    text, name = error.strerror or str(error), error.filename2 or error.filename
    return f"{os.fsdecode(name)}: {text}" if name else text


def redirect_cache(package: str) -> None:
    """Moves a package's cache to `private_temporary_folder()` where its own could be another user's.

    It loads code from there. So it is moved if there is no home folder that can be written and trusted; and
    always if its default is a folder in /tmp that anybody could have made.

    package: a key of `CACHE_VARIABLES`.
    """
    if CACHE_VARIABLES[package] in os.environ:
        return
    with suppress(OSError):
        if DEFAULT_FOLDERS[package] and (folder := home_folder()):
            path = Path(os.path.realpath(folder / DEFAULT_FOLDERS[package]))
            require_trusted(path)
            existing = next(part for part in (path, *path.parents) if part.exists())
            if os.access(existing, os.W_OK | os.X_OK):
                return
    with suppress(OSError):
        os.environ[CACHE_VARIABLES[package]] = str(private_temporary_folder() / package)
