"""The runs of a sweep, and how far each is. The run folders themselves are the record."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kilolayer.runs.folder import METRICS, REGISTRATION, Run
from kilolayer.runs.records import EndedRun, Row, read_rows
from kilolayer.training.experiment import Experiment

REGISTRATION_FILE = REGISTRATION
"""What was fixed before the first run of a sweep: in its folder, and a copy in that of each run."""

Outcome = Literal["done", "diverged", "failed", "stopped", "busy"]
"""How an attempt ended. The first three are results; "stopped" and "busy" runs go on later."""


@dataclass(frozen=True)
class RunSpec:
    """A run of a sweep: its experiment, and its folder, whose name identifies it.

    sweep: the sweep's folder; below it no link is followed.
    """

    path: Path
    experiment: Experiment
    sweep: Path | None = field(default=None, compare=False)

    @property
    def run(self) -> Run:
        """The run in the folder, which may not have begun."""
        return Run(self.path, self.sweep)

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
    metrics = spec.run.read(METRICS)
    rows = [] if metrics is None else read_rows(metrics, spec.run.file(METRICS))
    return RunProgress(spec.run.result(), rows[-1] if rows else None)


def check_folders(specs: Iterable[RunSpec]) -> None:
    """Raises `InputError` where the folder of a run holds anything else, before anything is written."""
    for spec in specs:
        spec.run.check_free_or_same(spec.experiment)
