"""Many runs in one folder: executed exactly once each, whatever is killed, by processes or a Ray cluster."""

from __future__ import annotations

from kilolayer.sweep.engine import Engine, SweepStopped, run_all
from kilolayer.sweep.processes import ProcessPool
from kilolayer.sweep.run_spec import Outcome, RunSpec, read_progress

__all__ = ["Engine", "Outcome", "ProcessPool", "RunSpec", "SweepStopped", "read_progress", "run_all"]
