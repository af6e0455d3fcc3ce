"""R8: a sweep of 30 runs by 2 workers, 20 of which are killed: 30 done, none twice, identical."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fault_counts import stride_of

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "sweep_kills.py"


def test_a_sweep_whose_workers_are_killed(tmp_path: Path, request: pytest.FixtureRequest, count: Any) -> None:
    runs, kills = (30, 20) if stride_of(request.config) == 1 else (6, 4)
    out = tmp_path / "found.json"
    words = [sys.executable, str(SCRIPT), str(runs), str(kills), "--out", str(out)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["outcomes"] == {"done": runs}
    assert runs <= found["starts"] <= runs + kills
    assert found["kills"] == kills
    count("R8", tried=runs, held=found["identical"], note=f"runs, with {kills} workers killed")
