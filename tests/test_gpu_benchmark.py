"""The scripts for a GPU machine run through on a CPU in small, so that no minute there is lost to a slip."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from kilolayer.data import Data, load
from kilolayer.runs import Run, train_run
from kilolayer.training import (
    DistributedContext,
    Experiment,
    Trainer,
    network_for_data,
    recipe_by_name,
    recipe_for_data,
)

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
BYTES_KEPT_FREE = 53 * 2**20
"""Of the 64 MiB that may travel: 18 for pictures and packages, 35 for the state of ResNet-1001."""


@pytest.fixture
def session_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    import gpu_session

    yield gpu_session
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]


@pytest.fixture
def session(session_module: ModuleType, tmp_path: Path) -> Any:
    out = tmp_path / "out"
    out.mkdir()
    return session_module.Session(out, True, time.monotonic() + 100)


def rehearsed(script: str, out: Path) -> list[dict[str, Any]]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OUT": str(out)}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    done = subprocess.run(
        [str(BENCHMARKS / script), "--rehearse"], env=env, capture_output=True, text=True, check=False
    )
    log = (out / "log.txt").read_text()
    assert done.returncode == 0, done.stderr + log
    assert "Traceback" not in log
    return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_first_session_runs_through_and_every_part_has_its_rows(tmp_path: Path) -> None:
    pytest.importorskip("triton", minversion="3.7")  # 3.6 cannot be interpreted with NumPy 2.4
    rows = rehearsed("gpu_first.sh", tmp_path)
    assert {row["not run"] for row in rows if "not run" in row} <= {"needs a GPU"}
    checked = [row for row in rows if row.get("proof", "").startswith("units by")]
    assert len(checked) == 6
    assert all(row["fine"] for row in checked)
    assert {row["proof"] for row in rows if row["part"] == "check-graphs" and "proof" in row} == {
        "graph: graph",
        "graph: Triton, graph",
        "graph: units compiled, graph",
        "graph: Triton, cuDNN's 3×3, graph",
    }
    assert all("images_per_second" in rows_of(rows, "steps", way)[-1] for way in EAGER_WAYS)
    curves = [row for row in rows if row["part"] == "curve"]
    assert [row["network"] for row in curves] == ["preact_resnet110_cifar", "resnet110_cifar"]
    assert all(row["result"]["test_error"] > 0 for row in curves)
    assert rows[-1]["part"] == "session"
    assert len(list(tmp_path.rglob("*"))) <= 8  # as many files as come back


@pytest.mark.slow
def test_the_next_session_runs_through(tmp_path: Path) -> None:
    pytest.importorskip("triton", minversion="3.7")
    rows = rehearsed("gpu_next.sh", tmp_path)
    curves = [row["network"] for row in rows if row["part"] == "curve"]
    assert curves == ["preact_resnet1001_cifar", "preact_resnet164_cifar"]
    assert {"kernel"} <= {key for row in rows if row["part"] == "kernels" for key in row}


EAGER_WAYS = ("bf16, channels last, eager", "fp32, channels first, eager")


def rows_of(rows: list[dict[str, Any]], part: str, way: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["part"] == part and row.get("way") == way]


def test_without_a_gpu_only_a_rehearsal_runs(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "steps", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert "there is no GPU here; --rehearse runs everything in small on the CPU" in done.stderr


@pytest.mark.slow
def test_a_part_that_fails_or_hangs_is_a_row_and_the_next_one_runs(
    session_module: ModuleType, session: Any
) -> None:
    wrong, right = (
        session_module.Job("steps", ("--no-such-option",), 60),
        session_module.Job("kernels", (), 60),
    )
    endless = session_module.Job("steps", (), 0.2)
    session.run([wrong])
    session.run([endless])
    session.run([right])
    rows = session.rows
    assert "it ended with status 2" in rows[0]["not run"]
    assert any("it took too long and was ended" in row.get("not run", "") for row in rows)
    assert any(row["part"] == "kernels" and "microseconds" in row for row in rows)


def test_what_travels_leaves_room_for_pictures_and_a_state(session_module: ModuleType) -> None:
    from gpu_travel import MOST_BYTES, travelling

    if not (BENCHMARKS.parent / ".git").exists():
        pytest.skip("what git tracks is not known here")
    carried = sum(path.stat().st_size for path in (BENCHMARKS.parent / ".gpu").rglob("*") if path.is_file())
    assert travelling() - carried + BYTES_KEPT_FREE <= MOST_BYTES


SPEEDS = [
    {"part": "steps", "network": "preact_resnet110_cifar", "way": "Triton, graph", "images_per_second": 9.0},
    {"part": "steps", "network": "preact_resnet110_cifar", "way": "graph", "images_per_second": 5.0},
    {"part": "steps", "network": "preact_resnet110_cifar", "way": "pytorchcv", "images_per_second": 99.0},
]
UNIT = {"proof": "units by triton", "network": "preact_resnet110_cifar", "fine": True}
GRAPHS = [{"proof": f"graph: {way}", "fine": True} for way in ("Triton, graph", "graph")]


def test_the_fastest_way_is_one_whose_checks_were_made_and_passed(session_module: ModuleType) -> None:
    fastest, name = session_module.fastest, "preact_resnet110_cifar"
    assert fastest(name, [*SPEEDS, UNIT, *GRAPHS]) == "Triton, graph"
    assert fastest(name, [*SPEEDS, UNIT, {**UNIT, "fine": False}, *GRAPHS]) == "graph"
    assert fastest(name, [*SPEEDS, *GRAPHS]) == "graph"
    assert fastest(name, [*SPEEDS, UNIT, {"proof": "graph: graph", "not run": "why"}]) == session_module.EAGER
    assert fastest(name, SPEEDS) == session_module.EAGER


def test_a_thousand_layers_are_checked_by_the_units_of_164(session_module: ModuleType) -> None:
    rows = [{**UNIT, "network": "preact_resnet164_cifar"}, *GRAPHS]
    assert session_module.is_right("Triton, graph", "preact_resnet1001_cifar", rows)
    assert not session_module.is_right("Triton, graph", "preact_resnet1001_cifar", [UNIT, *GRAPHS])


def test_the_units_that_stand_for_another_network_are_of_the_same_kinds(session_module: ModuleType) -> None:
    from kilolayer.networks import describe

    def kinds(name: str) -> set[Any]:
        return {replace(unit, name="") for unit in describe(name).units()}

    for network, checked in session_module.UNITS_AS_IN.items():
        assert kinds(network) == kinds(checked)


@pytest.mark.parametrize("size", [0, 1, 3, 4, 4099])
def test_packing_loses_no_byte(session_module: ModuleType, tmp_path: Path, size: int) -> None:
    from gpu_travel import pack, read_pieces, unpack, write_pieces

    content = os.urandom(size)
    write_pieces(pack(content), tmp_path, "state")
    assert unpack(read_pieces(tmp_path, "state")) == content


def trained(folder: Path, iterations: int) -> None:
    data = Data("digits", subset=64)
    splits = load(data)
    from kilolayer.networks import describe

    network = network_for_data(
        describe("preact_resnet8_cifar"), classes=splits.num_classes, in_chans=splits.in_chans,
        image_size=splits.image_size,
    )  # fmt: skip
    experiment = Experiment(network, data, recipe_for_data(recipe_by_name("smoke", 64), data))
    with Run.open_or_create(folder, experiment) as run:
        training = Trainer(experiment, splits, DistributedContext(torch.device("cpu")))
        for _ in train_run(run, training, stop=lambda: training.state.iteration >= iterations):
            pass


@pytest.mark.parametrize("momentum", [True, False])
def test_a_training_that_came_back_goes_on(
    session_module: ModuleType, session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, momentum: bool
) -> None:
    whole, stopped, later = tmp_path / "whole", tmp_path / "stopped", tmp_path / "later"
    trained(whole, 100)
    trained(stopped, 5)
    session_module.bring_back(session, stopped, keep_momentum=momentum)
    (tmp_path / "travel").mkdir()
    session.out.rename(tmp_path / "travel" / "state")
    monkeypatch.setattr(session_module, "FOLDER", tmp_path / "travel")
    session_module.take_along(later)
    trained(later, 100)
    same = (later / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
    assert same == momentum
    assert Run.open(later).result()["status"] == "done"  # type: ignore[index]
