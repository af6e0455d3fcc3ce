"""A sweep on a real Ray cluster of two nodes on this machine, one of which is killed."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kilolayer.__main__ import main

pytestmark = pytest.mark.slow
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_an_address_where_nothing_answers_is_one_line_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        words = [
            "p2-table-1",
            "--scale",
            "smoke",
            "--data",
            "digits",
            "--engine",
            "ray",
            "--address",
            address,
        ]
        assert main(["reproduce", *words, "--out", str(tmp_path / "sweep")]) == 2
    shown = capsys.readouterr()
    assert f"no Ray cluster at {address}" in shown.err
    assert shown.err.count("\n") == 1
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_survives_the_death_of_a_node(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "sweep_ray.py"), "6", "--out", str(tmp_path / "found.json")],
        capture_output=True, text=True, timeout=230,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["nodes"] == 2
    assert found["killed"]["under_way"] >= 1
    assert found["outcomes"] == {"done": 6}
    assert found["identical"] == 6


def test_a_stopped_sweep_on_a_cluster_saves_and_goes_on_here(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    code = STOPPED.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=235)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["Stopped", "saved", "continued", "2"]


STOPPED = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
from test_sweep import starts, tiny
from kilolayer.sweep import SweepStopped, read_progress, run_all, worker
from kilolayer.sweep.ray_engine import RayEngine
from kilolayer.values import to_json

def iteration(one):
    return max(int(seal.stem.partition("-")[0]) for seal in one.path.glob("checkpoints/*.json"))

def some():
    calls = iter(range(10**9))
    return lambda: next(calls) > 20

if __name__ == "__main__":
    one = tiny(Path({folder!r}), iterations=4000)
    try:
        run_all([one], RayEngine(device="cpu", save_seconds=1e9), stop=lambda: read_progress(one).running)
    except SweepStopped:
        print("Stopped")
    before = read_progress(one).last_metrics["iteration"]
    saved = iteration(one)
    print("saved" if saved >= before else "lost")
    assert worker.execute_run(str(one.path), to_json(one.experiment), "cpu", 60.0, some()) == "stopped"
    last = iteration(one)
    print("continued" if saved < last < saved + 100 else "begun again", starts(one))
"""
