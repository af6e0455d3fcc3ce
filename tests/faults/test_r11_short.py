"""R11: too little memory, workers killed, no shared memory: exit status 2 with advice, and nothing left.

Training has no data workers and uses no shared memory: images lie in memory and are augmented a batch at a
time. Sweeps have workers; test_r8_sweep.py and ../test_sweep_pool.py kill them and their parent.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from harness import OPTIONS, Lab, Started, outcome, saved_iteration, wait_until
from test_r9_ranks import both as both
from test_r9_ranks import torchrun
from test_r17_stopping import pictures

TRAIN = ("train", *OPTIONS, "--no-tensorboard", "--device", "cpu")


def processes() -> int:
    return sum(path.name.isdigit() for path in Path("/proc").iterdir())


def test_memory_that_is_too_small(
    lab: Lab, tmp_path: Path, chosen: Callable[..., list[int]], count: Any
) -> None:
    """The address space may grow by so many megabytes; the batch needs some hundred."""
    tried, bad = chosen(range(20, 120, 20)), {}
    for megabytes in tried:
        run = tmp_path / str(megabytes)
        words = ("--model", "preact_resnet110_cifar", "--subset", "1024", "--batch-size", "1024")
        ended = lab.run(*TRAIN, *words, "--out", str(run), LIMIT_AS=str(megabytes * 2**20))
        advice = "out of memory" in ended.err and "--batch-size" in ended.err
        config = run / "config.json"
        batch = json.loads(config.read_text())["recipe"]["batch_size"] if config.exists() else 1024
        left = list(tmp_path.rglob(".*.*.????????"))
        if ended.status != 2 or not advice or ended.err.count("\n") != 1 or batch != 1024 or left:
            bad[megabytes] = f"status {ended.status}: {ended.said}"
    print(bad)
    count("R11", tried=len(tried), held=len(tried) - len(bad), note="RLIMIT_AS")


def test_memory_that_ends_in_the_middle(
    lab: Lab, whole: Any, tmp_path: Path, chosen: Callable[..., list[Any]], count: Any
) -> None:
    """From a stage on nothing is left but a little: a step, an evaluation, a save, the final figures."""
    stages, megabytes = ("save", "step", "evaluation", "end"), (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
    tried, bad = chosen([*product(stages, megabytes)]), {}
    for stage, amount in tried:
        run = tmp_path / f"{stage}-{amount}"
        ended = lab.bring_back(run, SHORT=f"{stage}:{int(amount * 2**20)}")
        told = ended.status == 0 or (ended.status == 2 and "kilolayer: out of memory" in ended.err)
        kept = saved_iteration(run) >= (0 if stage == "end" else 1)
        if not told or "Traceback" in ended.err or not kept:
            bad[stage, amount] = f"status {ended.status}: {ended.said}"
        elif lab.bring_back(run).status != 0 or outcome(run) != whole:
            bad[stage, amount] = "not identical"
    print(bad)
    count("R11", tried=len(tried), held=len(tried) - len(bad), note="RLIMIT_AS from a stage on")


# Control groups: the system kills for memory

V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


class Group:
    """A control group with room for one page: what is moved there is killed when it takes its next ones."""

    def __init__(self) -> None:
        self.path = (V1 if V1.is_dir() else V2) / f"kilolayer-tests-{os.getpid()}"
        self.path.mkdir()
        limit = self.path / ("memory.limit_in_bytes" if V1.is_dir() else "memory.max")
        limit.write_text(str(resource.getpagesize()))
        with suppress(OSError):
            (self.path / "memory.swap.max").write_text("0")

    def take(self, pid: int) -> bool:
        try:
            (self.path / "cgroup.procs").write_text(str(pid))
        except ProcessLookupError:
            return False
        return True


@pytest.fixture
def group() -> Iterator[Group]:
    try:
        made = Group()
    except OSError as error:
        pytest.skip(f"cannot make a control group with a memory limit: {error}")
    yield made
    wait_until(lambda: not (made.path / "cgroup.procs").read_text())
    made.path.rmdir()


MARKS = ("checkpoints/*.json", "config.json", "metrics.jsonl", "weights.safetensors")


def test_a_run_is_killed_for_its_memory(
    group: Group, lab: Lab, whole: Any, tmp_path: Path, chosen: Callable[..., list[Any]], count: Any
) -> None:
    tried, bad = chosen(MARKS), {}
    for mark in tried:
        run = tmp_path / mark.partition("/")[0]
        started: Started = lab.start_run(run)
        wait_until(
            lambda run=run, mark=mark, started=started: any(run.glob(mark)) or not started.process.is_alive()
        )
        group.take(started.pid)
        ended = started.end()
        # The last file may be there when all is done.
        if ended.status != -9 and not (ended.status == 0 and mark == MARKS[-1]):
            bad[mark] = f"status {ended.status}: {ended.said}"
        elif lab.bring_back(run).status != 0 or outcome(run) != whole or list(run.rglob(".*.????????")):
            bad[mark] = "not identical"
    print(bad)
    count("R11", tried=len(tried), held=len(tried) - len(bad), note="killed by a control group")


SWEEP = """
import logging, sys
from pathlib import Path
from multiprocessing import active_children
from kilolayer.sweep import ProcessPool, run_all
sys.path.insert(0, sys.argv[3])
from sweeps import tiny_runs

taken = []
def tick():
    for child in active_children():
        if not taken:
            Path(sys.argv[2]).write_text(str(child.pid))
            taken.append(child)

logging.basicConfig()
print(run_all(tiny_runs(Path(sys.argv[1]), 2), ProcessPool(1), tick))
"""


def test_a_worker_of_a_sweep_is_killed_for_its_memory(group: Group, tmp_path: Path, count: Any) -> None:
    """The sweep says so in a line, and ends as if nothing had happened."""
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    words = [sys.executable, "-c", SWEEP, tmp_path / "sweep", group.path / "cgroup.procs", benchmarks]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=400)
    print(done.stdout, done.stderr)
    said = "ended: the system killed it for its memory; fewer --workers need less; the run goes on"
    held = done.stdout.count("'done'") == 2 and said in done.stderr and "Traceback" not in done.stderr
    count("R11", tried=1, held=int(held), note="a worker killed by a control group")


def test_the_reading_of_pictures_is_killed_for_its_memory(group: Group, tmp_path: Path, count: Any) -> None:
    data, cache = pictures(tmp_path / "data", 200), tmp_path / "cache"
    words = [sys.executable, "-m", "kilolayer", "check-data", str(data)]
    env = os.environ | {"XDG_CACHE_HOME": str(cache)}
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, env=env) as process:
        wait_until(lambda: cache.exists() or process.poll() is not None)
        group.take(process.pid)
        status = process.wait(200)
    again = subprocess.run(words, capture_output=True, text=True, env=env, timeout=200)
    print(status, again.stdout, again.stderr)
    count("R11", tried=1, held=int(status in (-9, 0) and again.returncode == 0), note="check-data killed")


def halted_rank(run: Path, rank: int) -> int | None:
    """The process of this rank of the run, once it is halted."""
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            is_rank = f"\0RANK={rank}\0".encode() in (path / "environ").read_bytes()
            is_run = os.fsencode(run) in (path / "cmdline").read_bytes()
            if is_rank and is_run and "State:\tT" in (path / "status").read_text():
                return int(path.name)
    return None


@pytest.mark.usefixtures("takes_long")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_is_killed_for_its_memory(
    rank: int, group: Group, both: Any, tmp_path: Path, count: Any
) -> None:
    """Both end, and the cause is told; --resume goes on to the same end."""
    run, fault = tmp_path / "run", f"{rank}:5:halt"
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(torchrun, run, RANK_FAULT=fault, FAULT_ONCE=str(tmp_path / "once"))
        wait_until(lambda: waiting.done() or halted_rank(run, rank) is not None)
        pid = halted_rank(run, rank)
        taken = pid is not None and group.take(pid)
        if pid is not None:
            os.kill(pid, signal.SIGCONT)
        job = waiting.result()
    again = torchrun(run)
    print(job, again)
    held = taken and job.status != 0 and again.status == 0 and outcome(run) == both
    # The other one says why, unless torchrun, which names the signal, is faster and ends it.
    held = held and ("ran out of memory" in job.err or "exitcode: -9" in job.err)
    count("R11", tried=1, held=int(held), note=f"rank {rank} killed by a control group")


# What else a machine may have too little of


def test_few_threads_processes_and_files(lab: Lab, whole: Any, tmp_path: Path, count: Any) -> None:
    """Where a limit is too low, a line says which; the run goes on when there is more."""
    limits = [(resource.RLIMIT_NOFILE, number) for number in (5, 8, 12, 24)]
    bad = {}
    for kind, number in limits:
        run = tmp_path / f"{kind}-{number}"
        words = [sys.executable, "-m", "kilolayer", *TRAIN, "--save-every", "0", "--out", str(run)]
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=300,
            preexec_fn=lambda kind=kind, number=number: resource.setrlimit(kind, (number, number)),
        )  # fmt: skip
        if done.returncode not in (0, 2) or "Traceback" in done.stderr:
            bad[kind, number] = f"status {done.returncode}: {done.stderr[-400:]}"
        elif lab.bring_back(run).status != 0 or outcome(run) != whole:
            bad[kind, number] = "not identical"
    print(bad)
    count("R11", tried=len(limits), held=len(limits) - len(bad), note="RLIMIT_NOFILE")


def test_memory_that_ends_while_a_run_goes_on(lab: Lab, whole: Any, tmp_path: Path, count: Any) -> None:
    """The allocator's own words, raised at a step: with a real limit native code may crash first."""
    run, harm = tmp_path / "run", {"RANK": "0", "RANK_FAULT": "0:6:memory"}
    assert lab.bring_back(run, SIGNAL_AT_STEP="4:15").status == 143
    ended = lab.bring_back(run, FAULT_ONCE=str(tmp_path / "once"), **harm)
    print(ended)
    held = ended.status == 2 and "out of memory" in ended.err and saved_iteration(run) >= 4
    assert lab.bring_back(run).status == 0
    count("R11", tried=1, held=int(held and outcome(run) == whole), note="in a run that goes on")


def test_a_batch_larger_than_the_data(lab: Lab, tmp_path: Path, count: Any) -> None:
    ended = lab.run(*TRAIN, "--batch-size", "97", "--out", str(tmp_path / "run"))
    said = "kilolayer: batch size 97 is larger than the training set of 96 images; take at most 96\n"
    held = (ended.status, ended.err) == (2, said) and not (tmp_path / "run").exists()
    count("R11", tried=1, held=int(held), note="a batch larger than the data")


def test_shared_memory_that_is_full(lab: Lab, tmp_path: Path, count: Any) -> None:
    """Workers need semaphores, which lie in /dev/shm."""
    before = processes()
    words = ("--depths", "8", "--iterations", "8", "--out", str(tmp_path / "demo"))
    ended = lab.run("demo", *words, FAULT_NO_SEMAPHORES="1")
    held = ended.status == 2 and "shared memory" in ended.err and "Traceback" not in ended.err
    trained = lab.run(*TRAIN, "--out", str(tmp_path / "run"), FAULT_NO_SEMAPHORES="1")
    print(ended, trained, before, processes())
    count("R11", tried=2, held=int(held) + int(trained.status == 0), note="no room in /dev/shm")
