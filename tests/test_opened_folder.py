"""An opened folder stays the same folder; nothing in it leads elsewhere, hangs, or is read without end."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from kilolayer.errors import InputError, StorageError
from kilolayer.system import opened_folder
from kilolayer.system.folder_lock import FolderInUse
from kilolayer.system.opened_folder import FolderLost, open_folder
from tiny_runs import files_in

LIMIT = 100


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))  # its name may have a hundred bytes only


KINDS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a link to a file": ("a link", lambda path: path.symlink_to(path.parents[1] / "precious")),
    "a link to itself": ("a link", lambda path: path.symlink_to(path.name)),
    "a dangling link": ("a link", lambda path: path.symlink_to(path.parents[1] / "missing")),
    "a link to a device": ("a link", lambda path: path.symlink_to("/dev/zero")),
    "a named pipe": ("a named pipe", os.mkfifo),
    "a folder": ("a folder", Path.mkdir),
    "a socket": ("a socket", make_socket),
}


@pytest.mark.parametrize("kind", KINDS)
def test_only_plain_files_are_read_and_replaced(kind: str, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"mine")
    (tmp_path / "folder").mkdir()
    words, make = KINDS[kind]
    make(tmp_path / "folder" / "name")
    with open_folder(tmp_path / "folder") as folder:
        for use in (lambda: folder.read("name", LIMIT), lambda: folder.write("name", b""),
                    lambda: folder.has_file("name")):  # fmt: skip
            with pytest.raises(InputError, match=rf"folder/name is {words}; only a plain file may be there"):
                use()
    assert files_in(tmp_path) == {"precious": b"mine"} | (
        {"folder/name": b"mine"} if kind == "a link to a file" else {}
    )


def test_a_hard_link_keeps_what_it_has_under_its_other_name(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"mine")
    (tmp_path / "folder").mkdir()
    os.link(tmp_path / "precious", tmp_path / "folder" / "name")
    with open_folder(tmp_path / "folder") as folder:
        folder.write("name", b"ours")
    assert files_in(tmp_path) == {"precious": b"mine", "folder/name": b"ours"}


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1, 2**40])
def test_no_more_is_read_than_the_limit(size: int, tmp_path: Path) -> None:
    path = tmp_path / "name"
    path.touch()
    os.truncate(path, size)  # sparse: it takes no room
    with open_folder(tmp_path) as folder:
        if size <= LIMIT:
            assert folder.read("name", LIMIT) == bytes(size)
        else:
            with pytest.raises(InputError, match=r"name has more bytes .* at most 100 are read"):
                folder.read("name", LIMIT)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a file without a size")
def test_a_file_without_a_size_is_read_to_the_limit_only() -> None:
    with open_folder("/proc/self") as folder:
        assert folder.read("cmdline", 10**6)
        with pytest.raises(InputError, match="more bytes"):
            folder.read("status", LIMIT)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE, errno.ENXIO])
def test_what_cannot_be_read_is_not_missing(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "name").write_bytes(b"good")

    def refuse(*args: object, **options: object) -> int:
        raise OSError(number, os.strerror(number))

    with open_folder(tmp_path) as folder:
        assert folder.read("missing", LIMIT) is None
        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(StorageError, match=rf"cannot read {tmp_path}/name: {os.strerror(number)}"):
            folder.read("name", LIMIT)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EROFS, errno.ESTALE])
def test_a_folder_that_cannot_be_checked_is_not_called_lost(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> int:
        raise OSError(number, os.strerror(number))

    with open_folder(tmp_path) as folder:
        folder.lock()
        with monkeypatch.context() as patch:
            patch.setattr(os, "read", refuse)  # of the lock
            with pytest.raises(StorageError, match=rf"cannot check .*: {os.strerror(number)}") as caught:
                folder.write("name", b"new")
    assert not isinstance(caught.value, FolderLost)
    assert "name" not in files_in(tmp_path)


@pytest.mark.parametrize("deep", [False, True])
def test_below_a_folder_no_link_is_followed_and_above_it_is(deep: bool, tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "run").mkdir(parents=True)
    sweep = tmp_path / "sweep"
    (tmp_path / "real").mkdir()
    sweep.symlink_to(tmp_path / "real")
    (sweep / "runs").symlink_to(tmp_path / "elsewhere")
    path = sweep / "runs" / "run" if deep else sweep / "runs"
    with pytest.raises(InputError, match="runs is a link; only a folder may be there"):
        open_folder(path, below=sweep, create=True)
    with open_folder(sweep / "other" / "run", below=sweep, create=True) as folder:
        folder.write("name", b"")
        folder.check()
    assert files_in(tmp_path / "real") == {"other/run/name": b""}


def moved(path: Path) -> None:
    path.rename(path.with_name("moved"))


def replaced_by_a_link(path: Path) -> None:
    moved(path)
    path.with_name("other").mkdir()
    path.symlink_to(path.with_name("other"))


def replaced(path: Path) -> None:
    moved(path)
    path.mkdir()


def removed(path: Path) -> None:
    for each in path.iterdir():
        each.unlink()
    path.rmdir()


def unlocked(path: Path) -> None:
    (path / ".lock").unlink()


LOSSES: dict[Callable[[Path], None], str] = {
    moved: "is no longer there: the folder is now .*/moved",
    replaced: "is another folder than it was .* is now .*/moved",
    replaced_by_a_link: "is another folder than it was",
    removed: "is no longer there: the folder was removed",
    unlocked: "is no longer locked by this process: its .lock was removed or replaced",
}


@pytest.mark.parametrize("lose", LOSSES)
def test_a_folder_that_was_lost_is_not_written_to(lose: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "run"
    with open_folder(path, create=True) as folder:
        folder.lock()
        folder.write("name", b"first")
        lose(path)
        before = files_in(tmp_path)
        uses: list[Callable[[], object]] = [
            lambda: folder.write("name", b"second"),
            lambda: folder.remove("name"),
            lambda: folder.set_aside("name"),
            lambda: folder.subfolder("below", create=True),
        ]
        for use in uses:
            with pytest.raises(FolderLost, match=f"^{path} {LOSSES[lose]}"):
                use()
        assert files_in(tmp_path) == before


def test_a_second_lock_is_refused_also_where_the_lock_was_deleted(tmp_path: Path) -> None:
    with open_folder(tmp_path) as first, open_folder(tmp_path) as second:
        first.lock()
        for _ in range(2):
            with pytest.raises(FolderInUse, match="in use by another process"):
                second.lock()
            (tmp_path / ".lock").unlink(missing_ok=True)


def test_what_is_set_aside_never_replaces_anything(tmp_path: Path) -> None:
    with open_folder(tmp_path) as folder:
        aside = []
        for content in (b"1", b"2", b"3"):
            folder.write("name", content)
            aside.append(folder.set_aside("name"))
    assert aside == ["name.set-aside", "name.set-aside-2", "name.set-aside-3"]
    assert files_in(tmp_path) == dict(zip(aside, (b"1", b"2", b"3"), strict=True))


def test_without_descriptors_of_folders_the_path_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows."""
    monkeypatch.setattr(opened_folder, "_HAS_DIR_FD", False)
    with open_folder(tmp_path / "run", create=True) as folder:
        folder.lock()
        folder.write("name", b"1")
        with folder.subfolder("below", create=True) as below:
            below.write("name", b"2")
            assert below.names() == ["name"]
            assert below.set_aside("name") == "name.set-aside"
        assert folder.read("name", LIMIT) == b"1"
        folder.remove("name")
        moved(tmp_path / "run")
        with pytest.raises(FolderLost, match="was moved or removed"):
            folder.write("name", b"")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_synchronise_folders_serves(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synchronise = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        synchronise(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    with open_folder(tmp_path) as folder:
        folder.write("name", b"1")
    assert files_in(tmp_path) == {"name": b"1"}
