"""The lock of a folder: one process at a time, with the kernel's locks, without them, and across machines."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kilolayer.errors import InputError
from kilolayer.system import folder_lock
from kilolayer.system.folder_lock import FolderInUse, FolderLock

NO_LOCKS = [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL]
HOLDER = {"pid": 1, "host": "node7", "since": "2026-01-01", "machine": "another", "started": "5"}
HERE = {"machine": folder_lock._machine()}


@pytest.fixture(params=["kernel", *NO_LOCKS])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file system with locks, or one that answers with an error."""
    if request.param != "kernel":
        without_locks(monkeypatch, request.param)
    return str(request.param)


def without_locks(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(folder_lock, "_lock_exclusively", refuse)


@pytest.fixture(params=["descriptor", "path"])
def folder(request: pytest.FixtureRequest, tmp_path: Path):
    if request.param == "path":
        yield tmp_path
        return
    descriptor = os.open(tmp_path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def acquire(folder: int | Path) -> FolderLock:
    return FolderLock.acquire(folder, "runs/a")


def test_one_at_a_time(system: str, folder: int | Path) -> None:
    lock = acquire(folder)
    assert lock.is_held()
    with pytest.raises(FolderInUse, match=rf"^runs/a is in use by another process \({os.getpid()} on "):
        acquire(folder)
    assert lock.is_held()
    lock.release()
    again = acquire(folder)
    assert not lock.is_held()
    assert again.is_held()
    again.release()


def test_no_descriptor_is_left(system: str, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        lock = acquire(tmp_path)
        with pytest.raises(FolderInUse):
            acquire(tmp_path)
        lock.release()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("how", ["removed", "replaced", "emptied"])
def test_a_lock_whose_file_is_gone_is_not_held(how: str, system: str, tmp_path: Path) -> None:
    lock = acquire(tmp_path)
    file = tmp_path / lock.name
    if how == "emptied":
        file.write_bytes(b"")
    else:
        file.unlink()
    if how == "replaced":
        other = acquire(tmp_path)
        assert other.is_held()
    assert not lock.is_held()
    lock.release()
    if how == "replaced":
        assert other.is_held()


def test_a_machine_whose_locks_others_do_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both lock; the later one has the folder, and the earlier one learns it before it writes."""
    monkeypatch.setattr(folder_lock, "_lock_exclusively", lambda descriptor: None)
    first, second = acquire(tmp_path), acquire(tmp_path)
    assert not first.is_held()
    assert second.is_held()


def test_a_process_with_locks_sees_one_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        without_locks(patch, errno.ENOLCK)
        lock = acquire(tmp_path)
    with pytest.raises(FolderInUse, match=r"delete runs/a/\.lock\.holder if that process has ended"):
        acquire(tmp_path)
    lock.release()
    acquire(tmp_path).release()


def test_what_a_killed_process_left_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import sys, os, pathlib, kilolayer.system.folder_lock as f\n"
        "def refuse(descriptor): raise OSError(37, 'no locks')\n"
        "f._lock_exclusively = refuse\n"
        "f.FolderLock.acquire(pathlib.Path(sys.argv[1]), 'x'); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True)
    assert (done.returncode, (tmp_path / ".lock.holder").exists()) == (-9, True)
    without_locks(monkeypatch, errno.ENOLCK)
    lock = acquire(tmp_path)
    assert lock.is_held()


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"machine": None},
        {
            "machine": folder_lock._machine(),
            "pid": os.getpid(),
            "started": folder_lock._start_time(os.getpid()),
        },
        {"pid": "1\x1b[31m", "machine": folder_lock._machine()},
    ],
    ids=["another machine's", "unknown", "alive", "odd"],
)
def test_a_holder_that_may_live_is_named(changed: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / ".lock.holder").write_text(json.dumps(HOLDER | changed))
    with pytest.raises(FolderInUse, match="on node7, since 2026-01-01") as refusal:
        acquire(tmp_path)
    assert str(refusal.value).isprintable()
    assert json.loads((tmp_path / ".lock.holder").read_text()) == HOLDER | changed


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', "[" * 4000])
def test_a_holder_that_names_nobody(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be about to be written, so a moment passes; then it is refused, since nobody can tell."""
    monkeypatch.setattr(folder_lock, "_SECONDS_TO_WRITE", 0.0)
    (tmp_path / ".lock.holder").write_text(content)
    with pytest.raises(FolderInUse, match="in use by another process; wait for it, or delete"):
        acquire(tmp_path)


@pytest.mark.parametrize("name", [".lock", ".lock.holder"])
@pytest.mark.parametrize("kind", ["link", "hard link", "folder", "FIFO", "device"])
def test_nothing_but_a_plain_file_of_the_folder_is_taken(kind: str, name: str, tmp_path: Path) -> None:
    """A stranger's folder: writing a lock must not empty a file of yours."""
    folder, precious = tmp_path / "run", tmp_path / "precious"
    folder.mkdir()
    precious.write_text("mine")
    {
        "link": lambda: (folder / name).symlink_to(precious),
        "hard link": lambda: os.link(precious, folder / name),
        "folder": lambda: (folder / name).mkdir(),
        "FIFO": lambda: os.mkfifo(folder / name),
        "device": lambda: (folder / name).symlink_to("/dev/zero"),
    }[kind]()
    with pytest.raises(InputError, match=rf"^{name} in the run's folder is no plain file of its own"):
        acquire(folder)
    assert precious.read_text() == "mine"


def test_a_lock_whose_file_was_deleted_still_keeps_others_out(folder: int | Path, tmp_path: Path) -> None:
    """The folder itself is locked too, where it is opened."""
    lock = acquire(folder)
    (tmp_path / ".lock").unlink()
    second = os.open(tmp_path, os.O_RDONLY)
    if isinstance(folder, int):
        with pytest.raises(FolderInUse):
            acquire(second)
        lock.release()
        acquire(second).release()
    os.close(second)
