"""What the trace of a run without faults must show: nothing has its name before it can last."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from injection.strace import Point

OUTPUTS = ("run", "sweep", "out")
WRITES = ("write", "pwrite64", "ftruncate", "truncate")


def not_lasting(points: Sequence[Point]) -> list[str]:
    """The files of a command's output that a power cut could take, although they had their names."""
    tracees = sorted({point.tracee for point in points})
    return [text for tracee in tracees for text in _in_one([p for p in points if p.tracee == tracee])]


def _in_one(points: Sequence[Point]) -> list[str]:
    wrong: list[str] = []
    dirty: set[str] = set()
    pending: tuple[str, str] | None = None
    for point in points:
        if point.failed or not point.path.startswith(OUTPUTS):
            continue
        if point.call in WRITES:
            dirty.add(point.path)
        elif point.call in ("fsync", "fdatasync"):
            dirty.discard(point.path)
            if pending and point.path == pending[0]:
                pending = None
        elif point.call.startswith("rename"):
            source, _, target = point.path.partition(" -> ")
            if source in dirty:
                wrong.append(f"{target} has its name before its content is synchronised")
            if pending:
                wrong.append(f"{pending[1]}: its folder is not synchronised before the next name")
            dirty.discard(source)
            pending = str(PurePosixPath(target).parent), target
    if pending:
        wrong.append(f"{pending[1]}: its folder is never synchronised")
    return wrong
