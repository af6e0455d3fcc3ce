"""A short run that is stopped at a chosen call: what is left, and whether it comes back to the same end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree

import calls
from calls import Call, Disk, Tree
from harness import Ended, Lab, outcome, saved_iteration


@dataclass
class Story:
    """A run from `before`, which is a folder's content or nothing, and the calls that it makes to its end."""

    lab: Lab
    folder: Path
    before: Path | None
    seeded: dict[str, str]

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.calls = self._recorded()

    def _recorded(self) -> list[Call]:
        place, trace = self.prepared("whole"), self.folder / "trace"
        ended = self.go(place, FAULT_TRACE=str(trace))
        assert ended.status == 0, ended.err
        return calls.read(trace)

    def prepared(self, name: str) -> Path:
        """The run's folder, as it is before; nothing else lies beside it."""
        run = self.folder / name / "run"
        run.parent.mkdir()
        if self.before is not None:
            copytree(self.before, run)
        return run

    def go(self, run: Path, **env: str) -> Ended:
        """Starts or continues the run; below its parent every call is watched."""
        return self.lab.bring_back(run, FAULT_UNDER=str(run.parent), **self.seeded, **env)

    def comes_back(self, run: Path, number: int, whole: tuple[str, bytes]) -> str:
        """What is wrong with the run after a crash before call `number`, or "" where all is well."""
        begun = saved_iteration(self.before) if self.before else 0
        promised, kept = max(begun, calls.acknowledged(self.calls, number)), saved_iteration(run)
        if kept < promised:
            return f"step {promised} was saved, step {kept} is left"
        ended = self.lab.bring_back(run, **self.seeded)
        if ended.status != 0:
            return f"status {ended.status}: {ended.said}"
        left = [path.name for path in run.rglob(".*.*.????????")]
        if left:
            return f"left over: {left}"
        return "" if outcome(run) == whole else "not identical"

    # Kills

    def killed(self, fault: str, number: int, whole: tuple[str, bytes]) -> str:
        run = self.prepared(f"{fault}-{number}")
        ended = self.go(run, FAULT=f"{fault}:{number}")
        if ended.status != -9:
            return f"not killed: status {ended.status}, {ended.err}"
        return self.comes_back(run, number, whole)

    # Power cuts

    def found_after_power_cuts(self, every: int) -> Iterator[tuple[str, int, Tree]]:
        """Every N-th of the different folders that cuts around the calls can leave."""
        source = self.folder / "whole"
        disk = Disk.holding(source, self._tree_before(source))
        seen = set[bytes]()
        for number, call in enumerate([*self.calls, None]):
            for what, tree in disk.after_power_cut():
                # The same folder is another case where more has been promised.
                mark = _mark(tree, calls.acknowledged(self.calls, number))
                if mark not in seen:
                    seen.add(mark)
                    if len(seen) % every == 0:
                        yield what, number, tree
            if call is not None:
                disk.do(call)

    def _tree_before(self, source: Path) -> Tree:
        if self.before is None:
            return {}
        return {
            str(source / "run" / Path(path).relative_to(self.before)): content
            for path, content in calls.found(self.before).items()
        }

    def after_power_cut(self, name: str, number: int, tree: Tree, whole: tuple[str, bytes]) -> str:
        place = self.folder / name
        calls.lay_out(tree, self.folder / "whole", place)
        return self.comes_back(place / "run", number, whole)


def _mark(tree: Tree, promised: int) -> bytes:
    found = hashlib.sha256(str(promised).encode())
    for path, content in sorted(tree.items()):
        found.update(f"{path} {content is None} ".encode())
        found.update(hashlib.sha256(content or b"").digest())
    return found.digest()


def begun(lab: Lab, folder: Path, at: int, **seeded: str) -> Path:
    """A run that was killed before call `at`."""
    run = folder / "run"
    folder.mkdir()
    ended = lab.bring_back(run, FAULT_UNDER=str(folder), FAULT=f"kill:{at}", **seeded)
    assert ended.status == -9, ended.err
    return run
