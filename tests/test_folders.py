"""Where the home folder and the caches lie, in environments of every kind; none makes a folder called "~"."""

from __future__ import annotations

import os
import pwd
import tempfile
from pathlib import Path

import pytest

from kilolayer.data import Data, load
from kilolayer.data.pictures import inspection_cache
from kilolayer.errors import InputError
from kilolayer.system import folders

SET_HERE = ("HOME", "XDG_CACHE_HOME", *folders.CACHE_VARIABLES.values())


@pytest.fixture
def around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a home/ and a cache/ and a tmp/ in it, no line in passwd, and no variable set."""
    for name in ("home", "cache", "tmp", "work"):
        (tmp_path / name).mkdir()
    for name in SET_HERE:
        monkeypatch.setenv(name, "")  # so that what a test sets itself is taken back, too
        monkeypatch.delenv(name)

    def unknown(user: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {user}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


NO_HOME: dict[str, dict[str, str]] = {
    "unset": {},
    "empty": {"HOME": ""},
    "not there": {"HOME": "/proc/nonexistent"},
    "a file": {"HOME": "/etc/passwd"},
    "relative": {"HOME": "home"},
    "a tilde": {"HOME": "~"},
}


@pytest.mark.parametrize("environment", NO_HOME.values(), ids=list(NO_HOME))
def test_without_a_home_nothing_is_guessed(environment, around, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (folders.home_folder(), folders.cache_folder()) == (None, None)
    with pytest.raises(InputError, match=r"'~/runs': there is no home folder here .*give the whole path"):
        folders.expand_home("~/runs")
    with pytest.raises(InputError, match="there is no home folder here; name the folder: --data-folder DIR"):
        load(Data("cifar10", download=True))
    inspection_cache.store({b"key": "said"})
    assert not list((around / "work").iterdir())


def test_the_line_in_passwd_serves_where_home_is_not_set(around, monkeypatch):
    entry = pwd.struct_passwd(("me", "x", 1, 1, "", str(around / "home"), ""))
    monkeypatch.setattr(pwd, "getpwuid", lambda user: entry)
    assert folders.home_folder() == around / "home"


CACHES: dict[str, tuple[dict[str, str], str]] = {
    "by the home folder": ({"HOME": "{}/home"}, "home/.cache"),
    "absolute": ({"HOME": "{}/home", "XDG_CACHE_HOME": "{}/cache"}, "cache"),
    "not there yet": ({"XDG_CACHE_HOME": "{}/new/cache"}, "new/cache"),
    "relative": ({"HOME": "{}/home", "XDG_CACHE_HOME": "cache"}, "home/.cache"),
    "a tilde": ({"HOME": "{}/home", "XDG_CACHE_HOME": "~/.cache"}, "home/.cache"),
    "empty": ({"HOME": "{}/home", "XDG_CACHE_HOME": ""}, "home/.cache"),
}


@pytest.mark.parametrize(("environment", "root"), CACHES.values(), ids=list(CACHES))
def test_where_the_cache_lies(environment, root, around, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(around))
    assert folders.writable_cache_folder() == folders.cache_folder() == around / root / "kilolayer"
    assert next(folders.cache_folders("native")) == around / root / "kilolayer/native"
    assert not list((around / "work").iterdir())


def test_a_folder_of_this_user_s_alone_among_temporary_files(around):
    for _ in range(2):
        path = folders.private_temporary_folder()
        assert path == around / f"tmp/kilolayer-{os.getuid()}"
        assert path.stat().st_mode & 0o777 == 0o700
    assert list(folders.cache_folders("native")) == [path / "native"]


def planted(kind: str, path: Path, elsewhere: Path) -> None:
    if kind == "link":
        path.symlink_to(elsewhere)
    elif kind == "file":
        path.write_text("")
    else:
        path.mkdir()
        path.chmod(0o777)


@pytest.mark.parametrize("kind", ["link", "file", "open to all"])
def test_a_temporary_folder_that_somebody_planted_is_not_used(kind, around):
    planted(kind, around / f"tmp/kilolayer-{os.getuid()}", around / "home")
    with pytest.raises(PermissionError, match="not this user's private folder"):
        folders.private_temporary_folder()
    assert not list((around / "home").iterdir())


def test_without_a_folder_for_temporary_files_there_is_none(around, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(around / "gone"))
    with pytest.raises(FileNotFoundError):
        folders.private_temporary_folder()
    folders.redirect_cache("triton")
    assert "TRITON_CACHE_DIR" not in os.environ


@pytest.mark.parametrize("package", [name for name, folder in folders.DEFAULT_FOLDERS.items() if folder])
def test_other_packages_keep_their_caches_at_home_where_there_is_one(package, around, monkeypatch):
    variable = folders.CACHE_VARIABLES[package]
    monkeypatch.setenv("HOME", str(around / "home"))
    folders.redirect_cache(package)
    assert variable not in os.environ
    monkeypatch.setenv("HOME", "/proc/nonexistent")
    monkeypatch.setenv(variable, "as asked")
    folders.redirect_cache(package)
    assert os.environ[variable] == "as asked"
    monkeypatch.delenv(variable)
    folders.redirect_cache(package)
    assert os.environ[variable] == str(around / f"tmp/kilolayer-{os.getuid()}/{package}")


def test_a_tilde_that_the_shell_left_is_the_home_folder(around, monkeypatch):
    monkeypatch.setenv("HOME", str(around / "home"))
    assert folders.expand_home("~/runs/a") == f"{around}/home/runs/a"
    assert folders.expand_home("~") == f"{around}/home"
    for path in ("runs", "/runs", "a/~", "~nobody-of-this-name", ""):
        assert folders.expand_home(path) == path


def test_data_in_the_cache_of_an_earlier_release_are_still_there(around, monkeypatch):
    """Which looked in ~/.cache, whatever $XDG_CACHE_HOME said."""
    monkeypatch.setenv("HOME", str(around / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(around / "cache"))
    (around / "home/.cache/kilolayer/cifar-10-batches-bin").mkdir(parents=True)
    (around / "home/.cache/kilolayer/cifar-10-batches-bin/data_batch_1.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"home/.cache/kilolayer/cifar-10-batches-bin"):
        load(Data("cifar10"))


def opened(path: Path, mode: int, user: int = 0, group: int = 0) -> None:
    path.chmod(mode)
    if (user, group) != (0, 0):
        os.chown(path, user, group)


needs_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give")
DISTRUSTED = {
    "writable by all": (0o777, 0, 0),
    "writable by a group": (0o775, 0, 1234),
    "another user's": (0o755, 1234, 0),
    "sticky": (0o1777, 0, 0),
}


@needs_root
@pytest.mark.parametrize("level", ["cache", "cache/kilolayer"])
@pytest.mark.parametrize(("mode", "user", "group"), DISTRUSTED.values(), ids=list(DISTRUSTED))
def test_a_cache_that_others_can_change_is_not_used(mode, user, group, level, around, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(around / "cache"))
    inspection_cache._warn.cache_clear()
    folders.writable_cache_folder()
    opened(around / level, mode, user, group)
    if level == "cache" and mode == 0o1777:  # a sticky folder above it is like /tmp
        assert folders.writable_cache_folder() == around / "cache/kilolayer"
        return
    with pytest.raises(folders.DistrustedError, match=r"belongs to another user \(id 1234\)|chmod go-w"):
        folders.writable_cache_folder()
    monkeypatch.setattr(inspection_cache, "cache_path", folders.writable_cache_folder)
    inspection_cache.store({b"key": "said"})
    assert f"what is seen in pictures is not remembered: {around / level}: " in caplog.text
    assert folders.private_temporary_folder().exists()


@needs_root
def test_a_group_of_one_s_own_may_write(around, monkeypatch):
    """As umask 002 makes folders on Debian; root's group is root."""
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(around / "cache"))
    (around / "cache").chmod(0o775)
    assert folders.writable_cache_folder() == around / "cache/kilolayer"


@pytest.mark.parametrize("umask", [0, 0o777])
def test_folders_are_usable_and_closed_whatever_the_umask_is(umask, around, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(around / "new/cache"))
    before = os.umask(umask)
    try:
        paths = [folders.writable_cache_folder(), folders.private_temporary_folder()]
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in paths] == [0o755 if umask == 0 else 0o700, 0o700]


def test_torch_compile_takes_no_code_from_a_folder_that_anybody_can_make(around, monkeypatch):
    monkeypatch.setenv("HOME", str(around / "home"))
    folders.redirect_cache("inductor")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(around / f"tmp/kilolayer-{os.getuid()}/inductor")


NOBODY = 65534
NAMESPACES: dict[str, tuple[list[range], int, bool, bool]] = {
    "none, root's": ([range(2**32)], 0, True, True),
    "none, nobody's": ([range(2**32)], NOBODY, False, False),
    "a container of root's": ([range(65536)], NOBODY, False, False),
    "a container without rights": ([range(1000, 1001)], NOBODY, True, False),
    "a container without rights, root's": ([range(1000, 1001)], 0, True, False),
    "nobody is mapped": ([], NOBODY, True, False),
}


@pytest.mark.parametrize(("users", "owner", "above", "itself"), NAMESPACES.values(), ids=list(NAMESPACES))
def test_in_a_user_namespace_nobody_is_trusted_above_alone(users, owner, above, itself, monkeypatch):
    monkeypatch.setattr(folders, "_mapped_users", lambda: users)
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY if users == [] else 1000)
    state = os.stat_result((0o40755, 1, 1, 1, owner, 0, 0, 0, 0, 0))
    for may_be_sticky, passes in ((True, above), (False, itself)):
        try:
            folders._check_trusted(state, Path("/x"), may_be_sticky=may_be_sticky)
        except folders.DistrustedError:
            assert not passes
        else:
            assert passes
