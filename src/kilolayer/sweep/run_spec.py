"""The runs of a sweep, and how far each is. The run folders themselves are the record."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kilolayer.errors import InputError
from kilolayer.training.experiment import Experiment
from kilolayer.values import from_json

REGISTRATION_FILE = "registration.json"
"""What was fixed before the first run of a sweep: in its folder, and a copy in that of each run."""

Outcome = Literal["done", "diverged", "failed", "stopped", "busy"]
"""How an attempt ended. The first three are results; "stopped" and "busy" runs go on later."""


@dataclass(frozen=True)
class RunSpec:
    """A run of a sweep: its experiment, and its folder, whose name identifies it."""

    path: Path
    experiment: Experiment

    @property
    def key(self) -> str:
        """The name of the folder."""
        return self.path.name


@dataclass(frozen=True)
class RunProgress:
    """How far a run is: its result once it has ended, and the last line of its metrics."""

    result: dict[str, Any] | None
    last_metrics: dict[str, Any] | None

    @property
    def is_finished(self) -> bool:
        return self.result is not None

    @property
    def running(self) -> bool:
        return self.result is None and self.last_metrics is not None

    def figure(self, name: str) -> float | None:
        """A figure of a finished run, from its result or else from its last epoch."""
        if self.result is None:
            return None
        value: float | None = self.result.get(name, (self.last_metrics or {}).get(name))
        return value if self.result["status"] == "done" else None


def read_progress(spec: RunSpec) -> RunProgress:
    """Reads the folder of a run, which another process may be writing."""
    result = spec.path / "result.json"
    ended = json.loads(result.read_text(encoding="utf-8")) if result.exists() else None
    return RunProgress(ended, _last_line(spec.path / "metrics.jsonl"))


def _last_line(metrics: Path) -> dict[str, Any] | None:
    if not metrics.exists():
        return None
    # The last line may be half written.
    lines = metrics.read_text(encoding="utf-8").split("\n")[:-1]
    last: dict[str, Any] | None = json.loads(lines[-1]) if lines else None
    return last


def check_folders(specs: Iterable[RunSpec]) -> None:
    """Raises `InputError` where the folder of a run holds anything else, before anything is written."""
    for spec in specs:
        config = spec.path / "config.json"
        if config.is_file():
            stored = from_json(config.read_text(encoding="utf-8"), Experiment, str(spec.path))
            if stored != spec.experiment:
                raise InputError(f"{spec.path} holds a run of another experiment; choose another --out")
        elif _holds_other_files(spec.path):
            raise InputError(f"{spec.path} holds other files; choose another --out")


def _holds_other_files(path: Path) -> bool:
    # A run that was killed at its start leaves its lock, and perhaps an empty folder.
    allowed = {".lock", "checkpoints", REGISTRATION_FILE}
    return path.exists() and (
        not path.is_dir() or any(_is_foreign(entry.name, allowed) for entry in path.iterdir())
    )


def _is_foreign(name: str, allowed: set[str]) -> bool:
    return name not in allowed and not name.startswith((".config.json.", f".{REGISTRATION_FILE}."))
