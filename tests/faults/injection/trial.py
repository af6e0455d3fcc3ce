"""A fault at a point of a command: what must hold then, and after the next start without faults."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from injection.scenarios import Outcome, Scenario, environment, saved_epochs
from injection.strace import FAULTS, KILL, Case, Ended, Point

EPOCH = re.compile(r"^epoch (\d+)/", re.MULTILINE)
ALIKE = re.compile(r"photos/./(?!0\.png|11\.png)\d+\.png$")
"""Every picture passes the same code: the first and the last stand for all."""
LASTING = (
    "write",
    "pwrite64",
    "fsync",
    "fdatasync",
    "rename",
    "renameat",
    "renameat2",
    "ftruncate",
    "truncate",
)
"""Where one of these fails on a file that a run acknowledges, it cannot have been saved."""
EMPTY = hashlib.sha256().hexdigest()
PASSED_OVER = re.compile(r"^home/\.c|set-aside")
EXTRAS = ("run/timing.jsonl", "home/.cache", "run/.lock", "sweep/.lock")
"""Nothing depends on these files, so their failures may pass."""


@dataclass(frozen=True)
class Trial:
    """A fault at a point."""

    point: Point
    fault: str

    def __str__(self) -> str:
        return f"{self.fault} at {self.point.call} {self.point.nth} of {self.point.path}"


@dataclass(frozen=True)
class Verdict:
    """What came of a trial. `wrong` is empty where it held.

    missed: the fault came elsewhere or not at all.
    """

    trial: Trial
    status: int
    said: str
    wrong: str = ""
    missed: bool = False
    starts: int = 1


@dataclass
class Bench:
    """A scenario with its files, traced once without a fault."""

    scenario: Scenario
    folder: Path
    program: tuple[str, ...] = ()
    """In place of the program of the scenario's commands: one with a planted fault."""
    template: Path | None = None
    """The files before the command; made where they are not given."""
    whole: Outcome = field(init=False)
    names: frozenset[str] = field(init=False)
    ended: Ended = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # Every copy has the same path: the n-th call is the same call only there.
        path = self.folder / "case"
        self.case = Case(path, environment(path))
        if self.template is None:
            self._remove()
            self.scenario.prepare(self.case)
            self.template = self.folder / f"{self.scenario.name}.before"
            shutil.copytree(path, self.template, symlinks=True)
        self.trace()

    def planted(self, program: tuple[str, ...]) -> Bench:
        """The same with a planted fault, in the same files."""
        return Bench(self.scenario, self.folder, program, self.template)

    def trace(self) -> None:
        """Runs the command without a fault; its calls are the points."""
        self._restore()
        self.ended = self.case.run(self._words(self.scenario.command))
        assert self.ended.status == 0, f"{self.scenario.name} fails without faults: {self.ended.err}"
        self.whole = self.scenario.outcome(self.case, self.ended)
        self.names = self._names()

    @cached_property
    def trials(self) -> list[Trial]:
        """Every point with every fault, shuffled by a hash, so that any part of them is a sample."""
        points = [point for point in self.ended.points if not ALIKE.match(point.path)]
        every = [Trial(point, fault) for point in points for fault in FAULTS]
        return sorted(every, key=lambda trial: hashlib.sha256(str(trial).encode()).digest())

    def try_one(self, trial: Trial) -> Verdict:
        """Puts the fault in; looks at what is left; starts again without a fault, and compares."""
        for attempt in range(2):
            if attempt:
                # An import has changed the ordinals, such as one whose bytecode is in the cache by now.
                self.trace()
            same = (point for point in self.ended.points if _key(point) == _key(trial.point))
            point = next(same, trial.point)
            self._restore()
            before = self._contents()
            state = saved_epochs(self.case.path / "run")
            ended = self.case.run(self._words(self.scenario.command), trial.fault, point)
            said = ended.err.rstrip().rpartition("\n")[2]
            wanted = (point.call, point.when, point.path)
            if any((one.call, one.ordinal, one.path) == wanted for one in ended.reached):
                break
        else:
            return Verdict(trial, ended.status, f"reached {ended.reached[:2]}", missed=True)
        wrong = self._wrong_at_once(trial, ended, before, state)
        starts = 1
        if not wrong and ended.status != 0:
            starts = 2
            wrong = self._wrong_next(ended, before)
        return Verdict(trial, ended.status, said, wrong, starts=starts)

    def _wrong_at_once(self, trial: Trial, ended: Ended, before: dict[str, str], state: int) -> str:
        if "Traceback (most recent" in ended.err:
            return f"a traceback: {ended.err.strip().rpartition(chr(10))[2]}"
        if ended.status < 0 and not (trial.fault == KILL and ended.status == -9):
            return f"ended by signal {-ended.status}: {ended.err[-200:]}"
        if ended.alive:
            return f"{len(ended.alive)} processes are left"
        if ended.status > 0 and trial.fault != KILL:
            lines = [line for line in ended.err.splitlines() if line.startswith("kilolayer: ")]
            if ended.status != 2:
                return f"status {ended.status}: {ended.err[-200:]}"
            if len(lines) != 1 or ended.err.rstrip().rpartition("\n")[2] != lines[0]:
                return f"not one line: {ended.err[-300:]!r}"
        if lost := self._lost(before):
            return f"changed or gone: {lost}"
        if emptied := next((name for name in before if self._is_emptied(name, before)), ""):
            return f"emptied: {emptied}"
        acknowledged = max(map(int, EPOCH.findall(ended.out)), default=0)
        if saved_epochs(self.case.path / "run") < max(state, acknowledged):
            return "a state that was reported as saved is gone"
        if ended.status == 0:
            if self._must_fail(trial):
                return f"{trial.fault} passed over without a word"
            return self._differing(ended)
        return ""

    def _must_fail(self, trial: Trial) -> bool:
        """Whether nobody may say "saved" after this."""
        point = trial.point
        harmless = trial.fault == "EINTR" or (trial.fault == "EINVAL" and self._is_folder(point.path))
        return point.call in LASTING and not harmless and not any(extra in point.path for extra in EXTRAS)

    def _is_folder(self, path: str) -> bool:
        return (self.case.path / path).is_dir()

    def _wrong_next(self, ended: Ended, before: dict[str, str]) -> str:
        done = max(map(int, EPOCH.findall(ended.out)), default=0)
        again = self.case.plainly(self._words(self.scenario.continued(self.case)))
        if again.status != 0:
            return f"the next start ends with {again.status}: {again.err[-300:]}"
        repeated = [int(number) for number in EPOCH.findall(again.out) if int(number) <= done]
        if repeated:
            return f"the next start repeats epoch {repeated[0]}, which was shown as saved"
        if lost := self._lost(before):
            return f"changed or gone after the next start: {lost}"
        if again.alive:
            return f"{len(again.alive)} processes are left after the next start"
        return self._differing(again, "after the next start ")

    def _differing(self, ended: Ended, when: str = "") -> str:
        outcome = self.scenario.outcome(self.case, ended)
        for key in sorted(self.whole.keys() | outcome.keys()):
            if self.whole.get(key) != outcome.get(key):
                return f"{when}{key} differs: {str(outcome.get(key))[:80]!r}"
        names = self._names()
        left = sorted(names - self.names) or [f"no {name}" for name in sorted(self.names - names)]
        return f"{when}left: {left[:3]}" if left else ""

    def _lost(self, before: dict[str, str]) -> str:
        """A file that was there and is the user's: the pictures, the bystander."""
        now = self._contents()
        mine = ("photos/", "outside/")
        return next(
            (name for name, what in before.items() if name.startswith(mine) and now.get(name) != what), ""
        )

    def _is_emptied(self, name: str, before: dict[str, str]) -> bool:
        path = self.case.path / name
        if path.name == ".lock":
            return False  # it says who has the run
        return before[name] != EMPTY and path.is_file() and path.stat().st_size == 0

    def _names(self) -> frozenset[str]:
        """Names of all files and folders, without caches and what was set aside: they may be there."""
        names = (path.relative_to(self.case.path).as_posix() for path in self.case.path.rglob("*"))
        return frozenset(name for name in names if not PASSED_OVER.search(name))

    def _contents(self) -> dict[str, str]:
        return {
            path.relative_to(self.case.path).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.case.path.rglob("*")
            if path.is_file() and not path.is_symlink()
        }

    def _words(self, words: tuple[str, ...]) -> tuple[str, ...]:
        return (*self.program, *words[4:]) if self.program else words

    def _remove(self) -> None:
        shutil.rmtree(self.case.path, ignore_errors=True)

    def _restore(self) -> None:
        assert self.template is not None
        self._remove()
        shutil.copytree(self.template, self.case.path, symlinks=True)


def _key(point: Point) -> tuple[str, str, int]:
    return point.call, point.path, point.nth


def counted(verdicts: Sequence[Verdict]) -> str:
    """How many were tried, held, failed or missed, in words."""
    kinds = Counter(
        "missed" if verdict.missed else "wrong" if verdict.wrong else f"status {verdict.status}"
        for verdict in verdicts
    )
    return ", ".join(f"{kind} {number}" for kind, number in sorted(kinds.items()))
