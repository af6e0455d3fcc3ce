"""A sweep whose workers are killed at random: every run ends exactly once, as if nothing had happened.

    python benchmarks/sweep_kills.py [RUNS KILLS] [--out FILE]

Thirty tiny runs are made twice by a pool of two workers: undisturbed, and with SIGKILL sent to a random
worker at random moments, twenty times (R8 of RELIABILITY.md). Weights (SHA-256), metrics and results must
be equal bit for bit. Writes results/sweep-kills.json; exit status 1 where something differs.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from sweeps import arguments, compared, record, tiny_runs

from kilolayer.sweep import ProcessPool, RunSpec, read_progress, run_all

WORKERS = 2
EPOCH = 4
"""Iterations of an epoch of the tiny runs."""


class Killer:
    """Kills a random worker each time that the whole sweep has reached a random number of epochs.

    Epochs, not seconds, so that a slow machine's workers are not killed before they have begun; a worker
    that is still being set up is hit too, while another one works.
    """

    def __init__(self, planned: list[RunSpec], kills: int, seed: int = 0) -> None:
        self.planned, self.random = planned, random.Random(seed)
        total = sum(one.experiment.recipe.iterations // EPOCH for one in planned)
        self.left = sorted(self.random.sample(range(1, total - 1), kills), reverse=True)
        self.moments: list[dict[str, Any]] = []
        self._began = time.monotonic()

    def __call__(self) -> None:
        """The sweep's tick."""
        children = active_children()
        if self.left and children and self._epochs() >= self.left[-1]:
            self._kill(self.random.choice(children))

    def _epochs(self) -> int:
        metrics = (one.path / "metrics.jsonl" for one in self.planned)
        return sum(path.read_bytes().count(b"\n") for path in metrics if path.exists())

    def _kill(self, child: BaseProcess) -> None:
        states = [read_progress(one) for one in self.planned]
        try:
            os.kill(child.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has ended meanwhile; another one is killed in its place
            return
        self.left.pop()
        self.moments.append(
            {
                "seconds": round(time.monotonic() - self._began, 2),
                "finished": sum(state.is_finished for state in states),
                "under_way": sum(state.running for state in states),
            }
        )


def measure(folder: Path, runs: int, kills: int) -> dict[str, Any]:
    """Both sweeps, and what they have in common."""
    calm, killed = tiny_runs(folder / "undisturbed", runs), tiny_runs(folder / "killed", runs)
    began = time.monotonic()
    run_all(calm, ProcessPool(WORKERS))
    between = time.monotonic()
    killer = Killer(killed, kills)
    outcomes = Counter(run_all(killed, ProcessPool(WORKERS), killer).values())
    ended = time.monotonic()
    rows = compared(killed, calm)
    return {
        "runs": runs,
        "workers": WORKERS,
        "kills": len(killer.moments),
        "seconds": {"undisturbed": round(between - began, 1), "killed": round(ended - between, 1)},
        "outcomes": outcomes,
        "starts": sum(row["starts"] for row in rows),
        "identical": sum(row["identical"] for row in rows),
        "moments": killer.moments,
        "each": rows,
    }


def main() -> int:
    """Runs, writes, and says whether it holds."""
    (runs, kills), path = arguments((30, 20), "sweep-kills.json")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), runs, kills)
    holds = found["identical"] == runs and found["outcomes"] == {"done": runs} and found["kills"] == kills
    record(path, {"holds": holds} | found)
    print(f"{found['kills']} kills, {found['outcomes'].get('done', 0)} of {runs} runs done,")
    print(f"{found['identical']} identical to the undisturbed sweep's, {found['starts']} starts: {path}")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
