"""The runs of a sweep, and how far each is. The run folders themselves are the record."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kilolayer.errors import InputError
from kilolayer.runs.records import EndedRun, Row, read_result, read_rows
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

    result: EndedRun | None
    last_metrics: Row | None

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
        figures: dict[str, object] = {**(self.last_metrics or {}), **self.result}
        value = figures.get(name)
        return value if self.result["status"] == "done" and isinstance(value, int | float) else None


def read_progress(spec: RunSpec) -> RunProgress:
    """Reads the folder of a run, which another process may be writing."""
    result, metrics = spec.path / "result.json", spec.path / "metrics.jsonl"
    ended = read_result(result.read_bytes(), result) if result.exists() else None
    rows = read_rows(metrics.read_bytes(), metrics) if metrics.exists() else []
    return RunProgress(ended, rows[-1] if rows else None)


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
