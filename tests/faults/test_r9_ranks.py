"""R9: two processes under torchrun: each is killed at ten moments, the first while it saves too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness import OPTIONS, Lab, outcome

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
WORKER = str(Path(__file__).with_name("worker.py"))
PATIENCE = 200.0
MOMENTS = (4, *(step for step in range(9) if step != 4), 8)
"""Steps at which a rank is harmed; 0 is before it has joined the other one."""

Whole = tuple[str, bytes]


@dataclass(frozen=True)
class Job:
    """How torchrun ended, and how long after the harm."""

    status: int
    err: str
    seconds: float


def torchrun(run: Path, *more: str, **env: str) -> Job:
    """Begins or continues a run with two processes, to its end."""
    goes_on = (run / "config.json").exists()
    chosen = ("--resume", str(run)) if goes_on else (*OPTIONS, "--out", str(run))
    words = [
        *TORCHRUN,
        *more,
        WORKER,
        "train",
        *chosen,
        "--device",
        "cpu",
        "--no-tensorboard",
        "--save-every",
        "0",
    ]
    given = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    given |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"} | env
    done = ended(words, given)
    mark = Path(env["FAULT_ONCE"]) if "FAULT_ONCE" in env else None
    since = time.time() - mark.stat().st_mtime if mark is not None and mark.exists() else 0.0
    return Job(done.returncode, done.stderr, since)


def ended(words: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What hangs is ended with all of its processes."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        words, stdout=pipe, stderr=pipe, text=True, env=env, start_new_session=True
    ) as process:
        try:
            out, err = process.communicate(timeout=PATIENCE)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def seconds_until_back(run: Path, mark: Path) -> float:
    """From the harm until the processes started again have taken the run up."""
    return (run / "environment.json").stat().st_mtime - mark.stat().st_mtime


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    run = tmp_path_factory.mktemp("both") / "run"
    job = torchrun(run)
    assert job.status == 0, job.err
    return outcome(run)


def restarted(run: Path, mark: Path, both: Whole, job: Job) -> str:
    """What is wrong after --max-restarts has brought the run to its end, or ""."""
    if job.status != 0 or not mark.exists():
        return f"status {job.status}: {job.err[-2000:]}"
    return "" if outcome(run) == both else "not identical"


def told(slowest: float) -> str:
    return f"back after {slowest:.1f} s at most"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_is_killed(
    rank: int, both: Whole, tmp_path: Path, chosen: Callable[..., list[int]], count: Any
) -> None:
    tried, bad, slowest = chosen(range(len(MOMENTS))), {}, 0.0
    for moment in tried:
        run, mark = tmp_path / f"{moment}", tmp_path / f"{moment}.mark"
        fault = f"{rank}:{MOMENTS[moment]}:kill"
        job = torchrun(run, "--max-restarts", "2", RANK_FAULT=fault, FAULT_ONCE=str(mark))
        if wrong := restarted(run, mark, both, job):
            bad[moment] = wrong
        else:
            slowest = max(slowest, seconds_until_back(run, mark))
    print(bad)
    note = f"rank {rank} killed; {told(slowest)}"
    count("R9", tried=len(tried), held=len(tried) - len(bad), note=note)


def test_the_first_rank_is_killed_while_it_saves(
    lab: Lab, both: Whole, tmp_path: Path, chosen: Callable[..., list[int]], count: Any
) -> None:
    tried, bad, slowest = chosen([60, 12, 25, 47, 8, 18, 33, 40, 52, 56]), {}, 0.0
    for call in tried:
        run, mark = tmp_path / f"{call}", tmp_path / f"{call}.mark"
        fault = {"FAULT": f"kill:{call}", "FAULT_UNDER": str(run), "LD_PRELOAD": str(lab.library)}
        job = torchrun(run, "--max-restarts", "2", FAULT_ONCE=str(mark), **fault)
        if wrong := restarted(run, mark, both, job):
            bad[call] = wrong
        else:
            slowest = max(slowest, seconds_until_back(run, mark))
    print(bad)
    note = f"rank 0 killed while it saves; {told(slowest)}"
    count("R9", tried=len(tried), held=len(tried) - len(bad), note=note)


SAYS = {"raise": "RuntimeError: a fault of ours", "memory": "kilolayer: out of memory"}


@pytest.mark.parametrize("how", SAYS)
def test_a_rank_that_fails_ends_both(
    how: str, both: Whole, tmp_path: Path, chosen: Callable[..., list[Any]], count: Any
) -> None:
    """Without restarts: torchrun comes back with the reason, and --resume brings the run to the same end."""
    tried, bad, slowest = chosen([(1, 5), (0, 5), (1, 1), (0, 8)]), {}, 0.0
    for rank, step in tried:
        run, mark = tmp_path / f"{rank}-{step}", tmp_path / f"{rank}-{step}.mark"
        job = torchrun(run, RANK_FAULT=f"{rank}:{step}:{how}", FAULT_ONCE=str(mark))
        again = torchrun(run)
        slowest = max(slowest, job.seconds)
        if job.status == 0 or SAYS[how] not in job.err:
            bad[rank, step] = f"status {job.status}: {job.err[-2000:]}"
        elif again.status != 0 or outcome(run) != both:
            bad[rank, step] = f"resumed: status {again.status}: {again.err[-2000:]}"
    print(bad)
    note = f"{how}; ended after {slowest:.1f} s at most"
    count("R9", tried=len(tried), held=len(tried) - len(bad), note=note)


def test_a_rank_that_answers_no_more(both: Whole, tmp_path: Path, count: Any) -> None:
    """The other one waits no longer than the timeout."""
    run, mark = tmp_path / "run", tmp_path / "mark"
    job = torchrun(run, RANK_FAULT="1:5:halt", FAULT_ONCE=str(mark), KILOLAYER_TIMEOUT="5")
    again = torchrun(run)
    print(job)
    held = (
        job.status != 0
        and "another rank exited or timed out" in job.err
        and again.status == 0
        and outcome(run) == both
    )
    count("R9", tried=1, held=int(held), note=f"a timeout of 5 s; ended after {job.seconds:.1f} s")
