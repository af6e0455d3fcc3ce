"""The real command line in a process of its own that harm can be done to.

PyTorch takes seconds to import, so most commands run in a fork of a server that has imported it already
(multiprocessing's own); from there on they are `kilolayer.__main__.main`, its exit status, its two outputs
and its files. A few tests in every file start the interpreter anew instead.
"""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

PROGRAM = (sys.executable, "-m", "kilolayer")
LONG = 240.0
"""Seconds: a deadline for what hangs; what is whole goes on at once."""

OPTIONS = (
    "--model", "preact_resnet8_cifar", "--shortcut", "dropout:0.2", "--subset", "96", "--validation", "40",
    "--iterations", "8", "--batch-size", "32", "--threads", "1", "--precision", "fp32",
)  # fmt: skip
"""Three epochs of 3, 3 and 2 steps, with dropout: chance in the order, the crops and the masks."""

PRELOADED = [
    "pytest",
    "torch",
    "torch._dynamo",
    "kilolayer.cli.command_line",
    "kilolayer.report.training_summary",
    "kilolayer.cli.assemble",
    "kilolayer.report.training_progress",
    "kilolayer.weights",
    "kilolayer.training.trainer",
    "kilolayer.runs",
    "kilolayer.sweep",
]


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status (negative: the signal that killed it) and what it said."""

    status: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """The last line on standard error."""
        return self.err.rstrip().rpartition("\n")[2]


def command(words: tuple[str, ...], out: str, err: str, env: dict[str, str]) -> None:
    """In the forked child: the command line, as `python -m kilolayer` would run it."""
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)))
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)  # type: ignore[type-var]
    os.environ.update(env)
    sys.argv = ["kilolayer", *words]
    import seeded

    seeded.prepare(env)
    from kilolayer.__main__ import main

    sys.exit(main(words))


@dataclass
class Started:
    """A command under way."""

    process: BaseProcess
    out: Path
    err: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def cpu_seconds(self) -> float:
        """CPU time that it has used; it moves on as the work does, however busy the machine is."""
        return self.clock(self.pid)

    @staticmethod
    def clock(pid: int) -> float:
        """Any process's CPU seconds."""
        return time.clock_gettime((~pid << 3) | 2)

    def at(self, seconds: float, number: int) -> bool:
        """Sends signal `number` after so much CPU time; False where the command ended before."""
        deadline = time.monotonic() + LONG
        while self.process.is_alive():
            try:
                if self.cpu_seconds() >= seconds and (number == signal.SIGKILL or caught(self.pid)):
                    os.kill(self.pid, number)
                    return True
            except OSError:
                return False
            assert time.monotonic() < deadline, "it hangs"
            time.sleep(0.0005)
        return False

    def end(self) -> Ended:
        self.process.join(LONG)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            raise AssertionError(f"it hung: {self.err.read_text()}")
        status = self.process.exitcode
        assert status is not None
        self.process.close()
        # Killed very early it has opened neither.
        said = [path.read_text() if path.exists() else "" for path in (self.out, self.err)]
        return Ended(status, *said)


class Lab:
    """Starts commands in forks of a server that `library` is loaded into."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.folder, self.library = folder, library
        self.numbers = iter(range(10**9))
        self.context = get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED)

    @property
    def program(self) -> tuple[str, ...]:
        """The command line in an interpreter of its own."""
        return PROGRAM

    def start(self, *words: str, **env: str) -> Started:
        number = next(self.numbers)
        out, err = self.folder / f"{number}.out", self.folder / f"{number}.err"
        process = self.context.Process(target=command, args=(words, str(out), str(err), env))
        with preloaded(self.library):
            process.start()
        return Started(process, out, err)

    def run(self, *words: str, **env: str) -> Ended:
        return self.start(*words, **env).end()

    def anew(self, *words: str, **env: str) -> Ended:
        """The same in an interpreter of its own."""
        given = os.environ | {"LD_PRELOAD": str(self.library)} | env
        done = subprocess.run([*PROGRAM, *words], capture_output=True, text=True, env=given, timeout=LONG)
        return Ended(done.returncode, done.stdout, done.stderr)

    def start_run(self, folder: Path, *more: str, **env: str) -> Started:
        """What a person does, also after a crash: --resume, or the same command where nothing was begun."""
        words = (
            "--save-every",
            "0",
            "--device",
            "cpu",
            *(() if "--tensorboard" in more else ("--no-tensorboard",)),
        )
        if (folder / "config.json").exists():
            return self.start("train", "--resume", str(folder), *words, *more, **env)
        return self.start("train", *OPTIONS, *words, "--out", str(folder), *more, **env)

    def bring_back(self, folder: Path, *more: str, **env: str) -> Ended:
        """The same, to its end."""
        return self.start_run(folder, *more, **env).end()


@contextmanager
def preloaded(library: Path) -> Iterator[None]:
    """What is started here has the library; the forkserver is started with the first command."""
    os.environ["LD_PRELOAD"] = str(library)
    try:
        yield
    finally:
        del os.environ["LD_PRELOAD"]


def compiled(folder: Path) -> Path:
    """faults.c as a library. Raises OSError or CalledProcessError where there is no C compiler."""
    library = folder / "faults.so"
    source = Path(__file__).with_name("faults.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


def outcome(folder: Path) -> tuple[str, bytes]:
    """What "identical" compares: the SHA-256 of the weights, and metrics.jsonl byte for byte."""
    weights = (folder / "weights.safetensors").read_bytes()
    return hashlib.sha256(weights).hexdigest(), (folder / "metrics.jsonl").read_bytes()


def saved_iteration(folder: Path) -> int:
    """The step that the run would go on from; 0 where it would begin anew."""
    from kilolayer.errors import KilolayerError
    from kilolayer.runs import Run

    try:
        checkpoint = Run(folder).latest_checkpoint() if folder.exists() else None
    except KilolayerError:  # nothing that it would go on from
        return 0
    return int(checkpoint.counters["iteration"]) if checkpoint else 0


def caught(pid: int) -> bool:
    """Whether the process has handlers for signals yet: until then there is nothing of ours in it."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(mask >> (signal.SIGTERM - 1) & 1)


def wait_until(reached: Callable[[], bool], seconds: float = LONG) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, "not reached in time"
        time.sleep(0.005)


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
