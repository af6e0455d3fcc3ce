"""Many runs in one folder: executed exactly once each, whatever is killed, by processes or a Ray cluster."""

from __future__ import annotations

from kilolayer.sweep.engine import Engine, Stopped, run_all
from kilolayer.sweep.plan import Outcome, Planned, state_of
from kilolayer.sweep.pool import Pool

__all__ = ["Engine", "Outcome", "Planned", "Pool", "Stopped", "run_all", "state_of"]
