"""On what a reproduction was measured, from the starts that its runs recorded."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kilolayer.sweep.run_spec import RunSpec

OF_A_START = ("date", "command")
"""What differs from start to start; the rest is the environment."""


@dataclass(frozen=True)
class Provenance:
    """`environments`: versions and machine, every combination once. Dates are of the first and last start."""

    starts: int
    first: str
    last: str
    commands: tuple[str, ...]
    environments: tuple[dict[str, Any], ...]


def read_provenance(runs: Iterable[RunSpec]) -> Provenance | None:
    """What environment.json in the runs' folders says; None where no run has begun."""
    starts = sorted((start for item in runs for start in _starts(item)), key=lambda start: str(start["date"]))
    if not starts:
        return None
    environments = [{key: value for key, value in start.items() if key not in OF_A_START} for start in starts]
    distinct = {json.dumps(item, sort_keys=True): item for item in environments}
    return Provenance(
        starts=len(starts),
        first=starts[0]["date"],
        last=starts[-1]["date"],
        commands=tuple(dict.fromkeys(start["command"] for start in starts)),
        environments=tuple(distinct.values()),
    )


def _starts(spec: RunSpec) -> list[dict[str, Any]]:
    path = spec.path / "environment.json"
    starts: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return starts
