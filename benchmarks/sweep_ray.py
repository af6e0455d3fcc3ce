"""A sweep on a Ray cluster of two nodes, one of which is killed halfway: every run ends, as on one machine.

    python benchmarks/sweep_ray.py [RUNS] [--out FILE]

The cluster's two nodes are processes of this machine, a core each. When half the runs have ended, the
second node (its raylet and all that it started) gets SIGKILL. Weights (SHA-256), metrics and results
must equal those of a pool without Ray. Writes results/sweep-ray.json; exit status 1 where they differ.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from sweeps import arguments, compared, record, tiny_runs

from kilolayer.sweep import ProcessPool, RunSpec, read_progress, run_all
from kilolayer.sweep.ray_engine import QUIET, RayEngine


class Executioner:
    """Kills a node's processes once half of the runs have ended and others are under way."""

    def __init__(self, planned: list[RunSpec], raylet: int) -> None:
        self.planned, self.raylet = planned, raylet
        self.killed: dict[str, Any] = {}

    def __call__(self) -> None:
        """The sweep's tick."""
        if self.killed:
            return
        states = [read_progress(one) for one in self.planned]
        ended = sum(state.is_finished for state in states)
        under_way = sum(state.running for state in states)
        workers = _descendants(self.raylet)
        # With a core each and two runs under way, one of them is the second node's.
        if 2 * ended >= len(states) and under_way > 1 and workers:
            for pid in (self.raylet, *workers):
                _kill(pid)
            self.killed = {"when_ended": ended, "under_way": under_way, "processes": 1 + len(workers)}


def _descendants(parent: int) -> list[int]:
    """Every process that `parent` started, and that these started."""
    found, children = [], _children()
    left = [parent]
    while left:
        started = children.get(left.pop(), [])
        found += started
        left += started
    return found


def _children() -> dict[int, list[int]]:
    by_parent: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended meanwhile
            continue
        by_parent.setdefault(parent, []).append(int(stat.parent.name))
    return by_parent


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def on_two_nodes(planned: list[RunSpec]) -> dict[str, Any]:
    """The sweep on a fresh cluster, whose second node dies halfway."""
    os.environ.update(QUIET)
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "num_gpus": 0}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    second = cluster.add_node(**node)
    cluster.wait_for_nodes()
    raylet = second.all_processes["raylet"][0].process.pid
    try:
        engine = RayEngine(cluster.address, device="cpu", save_seconds=5.0)
        nodes = len(engine.nodes)
        killer = Executioner(planned, raylet)
        outcomes = Counter(run_all(planned, engine, killer).values())
        return {"nodes": nodes, "outcomes": outcomes, "killed": killer.killed}
    finally:
        cluster.shutdown()


def measure(folder: Path, runs: int) -> dict[str, Any]:
    """The sweep by a pool, undisturbed, and on the cluster; and what they have in common."""
    calm, on_ray = tiny_runs(folder / "pool", runs), tiny_runs(folder / "ray", runs)
    run_all(calm, ProcessPool(2))
    began = time.monotonic()
    found = on_two_nodes(on_ray)
    seconds = round(time.monotonic() - began, 1)
    rows = compared(on_ray, calm)
    return {
        "runs": runs,
        **found,
        "seconds": seconds,
        "starts": sum(row["starts"] for row in rows),
        "identical": sum(row["identical"] for row in rows),
        "each": rows,
    }


def main() -> int:
    """Runs, writes, and says whether it holds."""
    logging.disable(logging.WARNING)
    (runs,), path = arguments((30,), "sweep-ray.json")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), runs)
    import ray

    holds = found["identical"] == runs and found["outcomes"] == {"done": runs} and bool(found["killed"])
    record(path, {"ray": ray.__version__, "holds": holds} | found)
    print(f"{found['nodes']} nodes, one killed: {found['outcomes'].get('done', 0)} of {runs} runs done,")
    print(f"{found['identical']} identical to the pool's, {found['starts']} starts: {path}")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
