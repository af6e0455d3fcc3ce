"""Runs a command under strace, and reads back which calls it made, or where a fault came."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

CALLS = (
    "open", "openat", "creat", "read", "pread64", "write", "pwrite64", "close", "fsync", "fdatasync",
    "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat", "ftruncate",
    "truncate", "flock", "getdents64", "stat", "lstat", "fstat", "newfstatat", "statx",
)  # fmt: skip
ERRORS = ("EIO", "ENOSPC", "EDQUOT", "EROFS", "EACCES", "EINTR", "EINVAL", "ESTALE")
KILL = "SIGKILL"
FAULTS = (*ERRORS, KILL)
TIMEOUT = 240.0
"""Seconds; a deadline for what hangs."""

_LINE = re.compile(r"(\d+\.\d+) (\w+)\((.*)")
_DESCRIPTOR = re.compile(r"(?:AT_FDCWD|\d+)<([^>]*)>")
_NUMBERED = re.compile(r"\d+<([^>]*)>")
_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"')
_RANDOM = re.compile(r"(?<=\.)[0-9a-f]{8}(?=$|[./])|(?<=/tmp)[a-z0-9_]{8}\b")


@dataclass(frozen=True)
class Point:
    """The `ordinal`-th call of the kind `call` in the tracee number `tracee`, on `path`.

    path: relative to the case, with `?` for random parts; "a -> b" for a renaming.
    nth: the number among all calls of this kind on this path.
    names: the words and descriptors by which strace can select the calls on this path; empty where the path
        is random.
    among: the ordinal among those alone, which no import and no other thread can shift.
    """

    tracee: int
    call: str
    ordinal: int
    path: str
    failed: bool = False
    nth: int = 0
    names: frozenset[str] = frozenset()
    among: int = 0

    @property
    def when(self) -> int:
        """The ordinal to inject at."""
        return self.among if self.names else self.ordinal


@dataclass(frozen=True)
class Ended:
    """How a command ended, and the calls that it made on the files of its case.

    status: the exit status; negative, the signal that ended it. reached: where the fault came.
    """

    status: int
    out: str
    err: str
    points: tuple[Point, ...] = ()
    reached: tuple[Point, ...] = ()
    alive: tuple[int, ...] = ()


@dataclass(frozen=True)
class Case:
    """The folder in which a command runs: its working folder, home folder and temporary folder are in it."""

    path: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, command: Sequence[str], fault: str = "", point: Point | None = None) -> Ended:
        """Runs `command` under strace, with `fault` at `point` if one is given."""
        traces = self.path.with_name(f"{self.path.name}.traces")
        shutil.rmtree(traces, ignore_errors=True)
        traces.mkdir()
        kinds = ",".join(f"?{name}" for name in CALLS) if point is None else point.call
        options = ["-ff", "-ttt", "-y", "-s", "0", "-e", "signal=none", "-e", f"trace={kinds}"]
        if fault != KILL:
            # Only these calls stop the process then. A signal is not delivered at such a stop.
            options.append("--seccomp-bpf")
        if point is not None:
            harm = f"signal={KILL}" if fault == KILL else f"error={fault}"
            options += ["-e", f"inject={point.call}:{harm}:when={point.when}"]
            options += [word for name in sorted(point.names) for word in ("-P", name)]
        ended = self.plainly(["strace", *options, "-o", str(traces / "t"), *command])
        tracees = [_calls(trace, self.path) for trace in _in_order(traces)]
        if point is None:
            points = _numbered([p for n, calls in enumerate(tracees) for p in _points(n, calls, self.path)])
            return Ended(ended.status, ended.out, ended.err, tuple(points), alive=ended.alive)
        reached = [one for n, calls in enumerate(tracees) for one in _reached(n, calls, fault, point)]
        return Ended(ended.status, ended.out, ended.err, reached=tuple(reached), alive=ended.alive)

    def plainly(self, command: Sequence[str]) -> Ended:
        """Runs `command` without a trace of it."""
        mark = f"{os.getpid()}-{os.urandom(4).hex()}"
        process = subprocess.Popen(
            command,
            cwd=self.path,
            env={**self.environment, "INJECTION_CASE": mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            _end(_marked(mark))
            out, err = process.communicate()
            return Ended(-int(signal.SIGALRM), out, f"{err}\nit hung for {TIMEOUT:.0f} s")
        alive = _marked(mark)
        _end(alive)
        return Ended(process.returncode, out, err, alive=tuple(alive))


@dataclass(frozen=True)
class _Line:
    """A line of a trace: the n-th call of its kind.

    words: its strings and the paths of its descriptors, as strace compares them with selected paths.
    """

    call: str
    ordinal: int
    path: str | None
    text: str
    words: frozenset[str] = frozenset()


def _in_order(traces: Path) -> list[Path]:
    """The traces of all processes and threads, as they were started."""
    return sorted(traces.iterdir(), key=lambda path: int(path.suffix[1:]))


def _calls(trace: Path, case: Path) -> list[_Line]:
    counts, lines = Counter[str](), []
    for text in trace.read_text(errors="replace").splitlines():
        if match := _LINE.match(text):
            _, call, rest = match.groups()
            counts[call] += 1
            given = rest.rpartition(" = ")[0]
            words = frozenset([*_WORD.findall(given), *_NUMBERED.findall(given)]) - {""}
            lines.append(_Line(call, counts[call], _path(call, given, case), text, words))
    return lines


def _path(call: str, given: str, case: Path) -> str | None:
    """The path that a call with these arguments is about, relative to the case; None if it lies elsewhere."""
    folders, words = _DESCRIPTOR.findall(given), _WORD.findall(given)
    if call.endswith(("at", "at2")) or call == "statx":
        names = [os.path.join(folder, word) for folder, word in zip(folders, words, strict=False)]
    elif call in ("open", "creat", "stat", "lstat", "truncate", "rename", "unlink", "rmdir", "mkdir"):
        names = [os.path.join(case, word) for word in words]
    else:
        names = folders[:1]
    names = [os.path.normpath(name.removesuffix(" (deleted)")) for name in names]
    if not any(name == str(case) or name.startswith(f"{case}/") for name in names):
        return None
    return " -> ".join(_RANDOM.sub("?", os.path.relpath(name, case)) for name in names)


def _points(tracee: int, lines: Sequence[_Line], case: Path) -> list[Point]:
    points = []
    for line in lines:
        if line.path is not None:
            random = "?" in line.path or "->" in line.path
            names = frozenset() if random else line.words | {os.path.normpath(case / line.path)}
            among = sum(
                other.call == line.call and other.ordinal <= line.ordinal and bool(other.words & names)
                for other in lines
            )
            points.append(
                Point(tracee, line.call, line.ordinal, line.path, " = -1 " in line.text, 0, names, among)
            )
    return points


def _numbered(points: Sequence[Point]) -> list[Point]:
    counts, numbered = Counter[tuple[str, str]](), []
    for point in points:
        counts[point.call, point.path] += 1
        numbered.append(replace(point, nth=counts[point.call, point.path]))
    return numbered


def _reached(tracee: int, lines: Sequence[_Line], fault: str, point: Point) -> list[Point]:
    """Where the fault came in a trial's trace. A killed process made its last call where it was killed."""
    if fault == KILL:
        hit = [line for line in lines[-1:] if line.text.endswith(" = ?") and line.ordinal == point.when]
    else:
        hit = [line for line in lines if line.text.endswith("(INJECTED)")]
    return [Point(tracee, line.call, line.ordinal, line.path or "elsewhere") for line in hit]


def _marked(mark: str) -> list[int]:
    """The processes that carry the mark in their environment."""
    wanted, alive = f"INJECTION_CASE={mark}".encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    alive.append(int(entry.name))
            except OSError:
                continue
    return alive


def _end(processes: Sequence[int]) -> None:
    for process in processes:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
