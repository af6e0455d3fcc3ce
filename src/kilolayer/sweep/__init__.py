"""Many runs in one folder, each executed exactly once, by processes or a Ray cluster.

The folders of the runs are the record: whatever is killed, a sweep goes on from them.

>>> from kilolayer.sweep import ProcessPool, run_all
>>> run_all([], ProcessPool(workers=2))
{}
"""

from __future__ import annotations

from kilolayer.sweep.engine import Engine, SweepStopped, run_all, run_batches
from kilolayer.sweep.processes import ProcessPool
from kilolayer.sweep.run_spec import Outcome, RunSpec, read_progress

__all__ = [
    "Engine",
    "Outcome",
    "ProcessPool",
    "RunSpec",
    "SweepStopped",
    "read_progress",
    "run_all",
    "run_batches",
]
