"""A run's folder: begun once, held by one process, and refused in one line without a trace."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kilolayer.errors import InputError, StorageError
from kilolayer.runs import Run
from kilolayer.runs.folder import RunInUse
from tiny_runs import Poll, files_in, tiny, train


def held(path: Path) -> Iterator[Path]:
    with Run.open_or_create(path, tiny()):
        yield path


@pytest.mark.parametrize("deep", [False, True])
def test_a_run_is_created_in_a_new_or_an_empty_folder(deep: bool, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" if deep else tmp_path
    run = Run.create(path, tiny())
    assert run.experiment() == tiny()
    assert (run.result(), run.latest_checkpoint(), run.metrics(), run.environments()) == (None, None, [], [])
    assert [Path(name).name for name in files_in(tmp_path)] == [".lock", "config.json"]
    assert Run.open(path) == run


def other_files(path: Path) -> None:
    (path / "notes.txt").write_text("mine")


def another_run(path: Path) -> None:
    Run.create(path, tiny(seed=1))


@pytest.mark.parametrize(("fill", "words"), [(other_files, "other files"), (another_run, "another")])
@pytest.mark.parametrize("way", [Run.create, lambda path, experiment: next(held(path))])
def test_a_folder_that_holds_something_is_refused_and_stays_as_it_is(
    fill: Callable[[Path], None], words: str, way: Callable[..., object], tmp_path: Path
) -> None:
    fill(tmp_path)
    before = files_in(tmp_path)
    with pytest.raises(InputError, match="choose another --out") as refused:
        way(tmp_path, tiny())
    assert words in str(refused.value)
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("way", [Run.create, lambda path, experiment: next(held(path))])
def test_a_file_in_the_way(way: Callable[..., object], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises((InputError, StorageError), match=str(path)):
            way(path, tiny())
    assert files_in(tmp_path) == {"file": b"mine"}


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="Permission denied"):
            Run.create(tmp_path / "run", tiny())
    finally:
        tmp_path.chmod(0o700)


def test_of_two_that_begin_at_once_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both found the folder empty; the second must not put its own experiment in the first one's place."""
    first = Run.create(tmp_path / "run", tiny())
    seen = iter([[]])
    names = Run._names
    monkeypatch.setattr(Run, "_names", lambda run: next(seen, None) or names(run))
    with pytest.raises(InputError, match="holds another run"):
        Run.create(tmp_path / "run", tiny(seed=1))
    assert first.experiment() == tiny()


def test_a_claim_goes_on_where_a_start_was_killed(tmp_path: Path) -> None:
    for name in (".lock", ".config.json.0123abcd"):
        (tmp_path / name).write_text("")
    (tmp_path / "checkpoints").mkdir()
    with Run.open_or_create(tmp_path, tiny()) as run:
        assert run.experiment() == tiny()
    with Run.open_or_create(tmp_path, tiny()) as again:
        assert again.experiment() == tiny()


def test_no_run_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a run's folder: it has no config\.json"):
        Run.open(tmp_path)
    with pytest.raises(InputError, match=r"missing: no such file or folder"):
        Run.open(tmp_path / "missing")


HOLDER = """
import sys
from kilolayer.runs import Run
with Run(__import__("pathlib").Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a run in `tmp_path`."""
    Run.create(tmp_path, tiny())
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_run_that_another_process_holds(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    before = files_in(tmp_path)
    with pytest.raises(RunInUse, match="in use by another process"):
        train(tmp_path, tiny())
    assert files_in(tmp_path) == before
    holder.kill()  # as SIGKILL: nothing was tidied up
    holder.wait()
    with Run(tmp_path).lock():
        pass


def test_a_lock_holds_in_this_process_too_and_ends_with_its_block(tmp_path: Path) -> None:
    run = Run.create(tmp_path, tiny())
    with run.lock():
        with pytest.raises(RunInUse), run.lock():
            pass
        with pytest.raises(RunInUse), Run.open_or_create(tmp_path, tiny()):
            pass
    with pytest.raises(RuntimeError), run.lock():
        raise RuntimeError
    with run.lock():
        pass


def test_a_torn_last_line_of_figures_is_left_out(tmp_path: Path) -> None:
    run = Run.create(tmp_path, tiny())
    rows = [{"epoch": epoch, "iteration": 3 * epoch} for epoch in (1, 2)]
    for row in rows:
        run.append_metrics(row, {"epoch": row["epoch"]})
    path = run.file("metrics.jsonl")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert run.metrics() == rows[: whole[:length].count(b"\n")]


@pytest.mark.parametrize("line", [b"", b'{"epoch": 1', b"\0\0\0\0", b"\xff\xfe", b"7", b"[]", b"{} {}"])
def test_a_damaged_line_of_figures_is_named(line: bytes, tmp_path: Path) -> None:
    run = Run.create(tmp_path, tiny())
    run.file("metrics.jsonl").write_bytes(
        b'{"epoch": 1, "iteration": 3}\n' + line + b'\n{"epoch": 3, "iteration": 9}\n'
    )
    with pytest.raises(InputError, match=r"^[^\n]*metrics\.jsonl, line 2: [^\n]+$"):
        run.metrics()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"null"])
def test_a_damaged_result_is_named(content: bytes, tmp_path: Path) -> None:
    run = Run.create(tmp_path, tiny())
    run.file("result.json").write_bytes(content)
    with pytest.raises(InputError, match=r"^[^\n]*result\.json, line 1: [^\n]+$"):
        run.result()


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe\xff", b'{"seed": 1}', b"[1]"])
def test_a_damaged_experiment_is_named(content: bytes, tmp_path: Path) -> None:
    run = Run.create(tmp_path, tiny())
    run.file("config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json") as refused:
        run.experiment()
    assert "\n" not in str(refused.value)


def test_a_full_disk_is_an_input_error_and_the_run_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "run", tiny(), Poll(5))
    good = files_in(tmp_path / "run/checkpoints")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    run = Run(tmp_path / "run")
    checkpoint = run.latest_checkpoint()
    assert checkpoint is not None
    monkeypatch.setattr(os, "fsync", full)
    counters = checkpoint.counters | {"iteration": 5}
    writes: list[Callable[[], None]] = [
        lambda: run.append_metrics({"epoch": 9}, {"epoch": 9}),
        lambda: run.save(checkpoint.tensors, counters),
        lambda: run.write_json("result.json", {}),
    ]
    for write in writes:
        with pytest.raises(StorageError, match="No space left on device") as refused:
            write()
        assert str(run.path) in str(refused.value)
    monkeypatch.undo()
    assert files_in(run.path / "checkpoints") == good
    assert run.result() is None
    assert train(run.path, tiny()).is_finished


def test_every_run_has_an_experiment_of_its_own(tmp_path: Path) -> None:
    first = Run.create(tmp_path / "a", tiny())
    second = Run.create(tmp_path / "b", replace(tiny(), seed=7))
    assert (first.experiment().seed, second.experiment().seed) == (0, 7)
