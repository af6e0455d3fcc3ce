"""A file is the old one or the new one, and nothing else is left, whatever the system refuses."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kilolayer.errors import StorageError
from kilolayer.system import durable
from kilolayer.system.opened_folder import open_folder
from tiny_runs import files_in


@pytest.mark.parametrize("content", [b"", b"new", bytes(3_000_000)], ids=len)
@pytest.mark.parametrize("older", [None, b"older"])
def test_what_is_written_is_there_alone(content: bytes, older: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "deeper" / "file"
    if older is not None:
        path.parent.mkdir(parents=True)
        path.write_bytes(older)
    durable.write_file(path, content)
    assert files_in(tmp_path) == {"deep/deeper/file": content}


def test_a_file_may_be_read_as_the_umask_says(tmp_path: Path) -> None:
    durable.write_file(tmp_path / "ours", b"")
    (tmp_path / "plain").write_bytes(b"")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "plain").stat().st_mode
    )


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_where_the_system_refuses_the_older_file_is_whole(
    call: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    durable.write_file(path, b"older")

    def refuse(*args: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number))

    opened = os.open

    def refuse_new(path: Any, flags: int, *args: Any, **options: Any) -> int:
        return opened(path, flags, *args, **options) if not flags & os.O_CREAT else refuse()  # type: ignore[func-returns-value]

    monkeypatch.setattr(os, call, refuse_new if call == "open" else refuse)
    with pytest.raises(StorageError) as refused:
        durable.write_file(path, b"newer")
    monkeypatch.undo()
    assert str(refused.value).startswith(f"cannot write {path} (5 bytes): {os.strerror(number)}")
    assert ("bytes are free there" in str(refused.value)) == (number != errno.EIO)
    assert files_in(tmp_path) == {"file": b"older"}


@pytest.mark.parametrize(
    ("place", "number"),
    [("folder", errno.EISDIR), ("file/new", errno.ENOTDIR), ("file/deep/new", errno.ENOTDIR)],
)
def test_a_place_where_nothing_can_be_written_is_seen_before(place: str, number: int, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    before = files_in(tmp_path)
    with pytest.raises(StorageError) as refused:
        durable.check_writable(tmp_path / place)
    assert str(refused.value) == f"cannot write {tmp_path / place}: {os.strerror(number)}"
    for good in ("file", "folder/new", "folder/deep/new"):
        durable.check_writable(tmp_path / good)
    assert files_in(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_ours_is_seen_before(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match=os.strerror(errno.EACCES)):
        durable.check_writable(tmp_path / "file")


def test_a_ctrl_c_while_writing_leaves_the_older_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    durable.write_file(path, b"older")

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        durable.write_file(path, b"newer")
    assert files_in(tmp_path) == {"file": b"older"}


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
def test_a_file_larger_than_allowed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    program = f"""
import resource, pathlib
from kilolayer.errors import StorageError
from kilolayer.system import durable
from kilolayer.system.opened_folder import open_folder
path = pathlib.Path({str(path)!r})
durable.write_file(path, b"older")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    durable.write_file(path, bytes(2000))
except StorageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    said = f"cannot write {path} (2,000 bytes): {os.strerror(errno.EFBIG)}; "
    assert done.stdout.startswith(said), done.stderr
    assert files_in(tmp_path) == {"file": b"older"}


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"^cannot write .*file/below/name \(1 bytes\): .*directory"):
        durable.write_file(tmp_path / "file" / "below" / "name", b"x")


class Calls:
    """The durable calls in their order, with what each was made on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        fsync, replace = os.fsync, os.replace

        def on_fsync(descriptor: int) -> None:
            self.made.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name.split('.')[0]}")
            fsync(descriptor)

        def on_replace(source: str, target: str, **folders: int) -> None:
            self.made.append(f"replace {target}")
            replace(source, target, **folders)

        monkeypatch.setattr(os, "fsync", on_fsync)
        monkeypatch.setattr(os, "replace", on_replace)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads the names of open files from /proc")
def test_the_order_that_survives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First the content, then the name, then the folder that holds the name; new folders in theirs."""
    base = tmp_path / "base"
    base.mkdir()
    calls = Calls(monkeypatch)
    durable.write_file(base / "new" / "file", b"content")
    # The temporary's name begins with a point, so what stands before the first one is nothing.
    assert calls.made == ["fsync base", "fsync ", "replace file", "fsync new"]


def test_only_what_a_killed_write_left_is_cleared_away(tmp_path: Path) -> None:
    kept = [".lock", ".hidden.txt", "file.0123abcd", ".file.0123abc", ".file.0123ABCD"]
    for name in [*kept, ".file.0123abcd", ".a.json.00000000"]:
        (tmp_path / name).write_bytes(b"")
    with open_folder(tmp_path) as folder:
        folder.remove_temporary_files()
    assert sorted(files_in(tmp_path)) == sorted(kept)
