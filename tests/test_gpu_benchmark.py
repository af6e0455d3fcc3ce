"""The script for a GPU machine runs through on a CPU in small, so that no minute there is lost to a slip."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"


def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.slow
def test_the_rehearsal_runs_through_and_saves_every_part(tmp_path: Path) -> None:
    pytest.importorskip("triton", minversion="3.7")  # 3.6 cannot be interpreted with NumPy 2.4
    done = ran("--rehearse", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    found = {part: json.loads((tmp_path / f"gpu-{part}.json").read_text()) for part in PARTS}
    assert all(one["rehearsal"] and one["ceilings"]["copy_bytes"] > 0 for one in found.values())
    rows = {part: one["rows"] for part, one in found.items()}
    left_out = {row["not run"] for part in PARTS for row in rows[part] if "not run" in row}
    assert left_out <= {"needs a GPU"}
    assert sum(row.get("fine", False) for row in rows["check"]) == 2
    assert {row["kernel"] for row in rows["kernels"]} >= {
        "BN-ReLU",
        "convolution",
        "convolution backward, dw",
    }
    assert len([row for row in rows["steps"] if "images_per_second" in row]) == 2
    assert rows["recipe"][0]["test_error"] > 0


PARTS = ("check", "kernels", "steps", "recipe")


def test_without_a_gpu_only_a_rehearsal_runs(tmp_path: Path) -> None:
    done = ran("--out", str(tmp_path))
    assert done.returncode == 2
    assert "there is no GPU here; --rehearse runs everything in small on the CPU" in done.stderr
