"""A pool's sweep as a program of its own, whose processes are killed and terminated."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path

import pytest

from kilolayer.sweep import ProcessPool, RunSpec, read_progress, run_all
from test_sweep import content, figures, starts, tiny

pytestmark = pytest.mark.slow
PROGRAM = (sys.executable, "-m", "kilolayer")
OPTIONS = (
    "p2-table-1", "--rows", "original", "dropout", "--seeds", "2", "--data", "digits", "--scale", "smoke",
    "--recipe", "short", "--depths", "110=8", "--iterations", "48", "--subset", "128",
    "--precision", "fp32", "--device", "cpu", "--workers", "2", "--cores", "1",
)  # fmt: skip


def wait_until(reached: Callable[[], bool], seconds: float = 200) -> None:
    """A deadline for what is broken; what is whole goes on at once."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, "not reached in time"
        time.sleep(0.02)


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def workers_of(parent: int) -> list[int]:
    """The pool's processes below `parent`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat.read_text().rpartition(")")[2].split()
            line = (stat.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(words[1]) == parent and b"spawn_main" in line:
            found.append(int(stat.parent.name))
    return found


def runs_in(folder: Path) -> list[Path]:
    return sorted((folder / "runs").glob("*")) if (folder / "runs").exists() else []


def under_way(folder: Path) -> bool:
    """Whether a run has saved something and none has ended."""
    return any(list(run.glob("checkpoints/*.json")) for run in runs_in(folder))


def as_planned(folder: Path) -> list[RunSpec]:
    return [RunSpec(run, None) for run in runs_in(folder)]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "sweep"
    process = start("reproduce", *OPTIONS, "--out", str(folder))
    out, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert "original | seed 0: " in out
    return folder


def same(folder: Path, undisturbed: Path) -> bool:
    ours, theirs = as_planned(folder), as_planned(undisturbed)
    return [one.key for one in ours] == [one.key for one in theirs] and [*map(figures, ours)] == [
        *map(figures, theirs)
    ]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 143)])
def test_a_stopped_sweep_saves_leaves_no_process_and_goes_on(
    number: signal.Signals, status: int, tmp_path: Path, undisturbed: Path
) -> None:
    folder = tmp_path / "sweep"
    process = start("reproduce", *OPTIONS, "--out", str(folder))
    wait_until(lambda: under_way(folder))
    workers = workers_of(process.pid)
    process.send_signal(number)
    _, said = process.communicate(timeout=200)
    assert process.returncode == status, said
    assert said == (
        "kilolayer: stopped, every run's state is saved; to continue:\n"
        f"  kilolayer reproduce --resume {folder}\n"
    )
    assert workers
    assert not any(map(alive, workers))
    done = {run.name: content(run) for run in runs_in(folder) if (run / "result.json").exists()}
    assert len(done) < 4
    again = start("reproduce", "--resume", str(folder), "--workers", "2", "--cores", "1", "--device", "cpu")
    _, said = again.communicate(timeout=200)
    assert again.returncode == 0, said
    assert {name: content(folder / "runs" / name) for name in done} == done
    assert same(folder, undisturbed)


def test_workers_end_by_themselves_when_their_parent_is_killed(tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "sweep"
    process = start("reproduce", *OPTIONS, "--out", str(folder))
    wait_until(lambda: under_way(folder))
    workers = workers_of(process.pid)
    process.kill()
    process.communicate()
    wait_until(lambda: not any(map(alive, workers)))
    assert workers
    again = start("reproduce", "--resume", str(folder), "--workers", "2", "--cores", "1", "--device", "cpu")
    _, said = again.communicate(timeout=200)
    assert again.returncode == 0, said
    assert same(folder, undisturbed)


def test_two_sweeps_of_one_folder_do_every_run_once(tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "sweep"
    both = [start("reproduce", *OPTIONS, "--out", str(folder)) for _ in range(2)]
    for process in both:
        _, said = process.communicate(timeout=230)
        assert process.returncode == 0, said
    assert [starts(one) for one in as_planned(folder)] == [1, 1, 1, 1]
    assert same(folder, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_workers_run_goes_on_in_another(number: signal.Signals, tmp_path: Path) -> None:
    calm, hit = tiny(tmp_path / "calm", iterations=40), tiny(tmp_path / "hit", iterations=40)
    killed: list[int] = []

    def tick() -> None:
        if not killed and read_progress(hit).running:
            killed.extend(child.pid for child in active_children() if child.pid)
            os.kill(killed[0], number)

    assert run_all([calm], ProcessPool(1, devices=("cpu",))) == {"run-0": "done"}
    assert run_all([hit], ProcessPool(1, devices=("cpu",)), tick) == {"run-0": "done"}
    assert killed
    assert starts(hit) == 2
    assert figures(hit) == figures(calm)


def test_a_worker_killed_between_two_runs_is_replaced(tmp_path: Path) -> None:
    planned, pool = [tiny(tmp_path, seed) for seed in range(2)], ProcessPool(1, devices=("cpu",))
    try:
        assert [outcome for _, outcome in pool.execute(planned[:1], lambda: None)] == ["done"]
        (idle,) = pool._children
        os.kill(idle.pid or 0, signal.SIGKILL)
        idle.join()
        assert [outcome for _, outcome in pool.execute(planned[1:], lambda: None)] == ["done"]
    finally:
        pool.close()


def test_a_run_whose_workers_always_die_is_given_up_and_the_others_end(tmp_path: Path) -> None:
    planned = [tiny(tmp_path, seed) for seed in range(2)]
    doomed = DyingPool(1, devices=("cpu",), victim=str(planned[0].path))
    assert run_all(planned, doomed) == {"run-0": "failed", "run-1": "done"}
    result = read_progress(planned[0]).result
    assert result is not None
    assert "died 5 times" in result["reason"]


class DyingPool(ProcessPool):
    """A pool in whose workers one run kills its process, as the kernel does where memory is short."""

    def __init__(self, workers: int, *, devices: tuple[str, ...], victim: str) -> None:
        super().__init__(workers, devices=devices)
        self.victim = victim

    def _submit_to(self, executor, slot, one):  # type: ignore[no-untyped-def]
        if str(one.path) == self.victim:
            return executor.submit(die)
        return super()._submit_to(executor, slot, one)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_bug_in_a_worker_is_raised_here_with_its_own_traceback(tmp_path: Path) -> None:
    pool = ProcessPool(1, devices=("no such device",))
    with pytest.raises(Exception, match="unknown device") as caught:
        run_all([tiny(tmp_path)], pool)
    assert "worker.py" in str(caught.value.__cause__)
    assert not pool._executors
