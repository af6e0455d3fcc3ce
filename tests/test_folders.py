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
    assert next(folders.writable_folders("native")) == around / root / "kilolayer/native"
    assert not list((around / "work").iterdir())


def test_a_cache_that_takes_nothing_leads_to_a_folder_of_this_user_s_alone(around, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(around / "cache"))
    (around / "cache/kilolayer").write_text("a file")
    for _ in range(2):
        (path,) = folders.writable_folders("native")
        assert path == around / f"tmp/kilolayer-{os.getuid()}/native"
        assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [one.getMessage() for one in caplog.records] == [
        f"no cache folder is writable here; compiled kernels are kept in {path.parent}"
    ]


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
    assert not list(folders.writable_folders("native"))
    assert not list((around / "home").iterdir())


def test_without_a_folder_for_temporary_files_there_is_none(around, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(around / "gone"))
    assert not list(folders.writable_folders("native"))
    folders.redirect_cache("triton")
    assert "TRITON_CACHE_DIR" not in os.environ


@pytest.mark.parametrize("package", folders.CACHE_VARIABLES)
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
