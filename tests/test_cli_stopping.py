"""Runs in several processes, as a person starts them. tests/faults stops and kills them."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kilolayer.data import Data, load
from kilolayer.runs import Run
from kilolayer.runs.predictions import read_predictions

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
OPTIONS = ("--threads", "1", "--precision", "fp32", "--no-tensorboard", "--subset", "256", "--epochs", "6")
ALONE = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}


def finish(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, env=ALONE, timeout=200)


def outcome(run: Path) -> tuple[str, bytes]:
    weights = (run / "weights.safetensors").read_bytes()
    return hashlib.sha256(weights).hexdigest(), (run / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_two_processes_train_one_run_and_repeat_it(tmp_path: Path) -> None:
    for name in ("first", "second"):
        done = finish(*TORCHRUN, "-m", "kilolayer", "train", *OPTIONS, "--out", str(tmp_path / name))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("test error") == 1
        assert "2 processes" in done.stdout
    assert outcome(tmp_path / "first") == outcome(tmp_path / "second")
    kept, result = read_predictions(tmp_path / "first"), Run(tmp_path / "first").result()
    test = load(Data("digits", subset=256)).test
    assert kept is not None
    assert result is not None
    assert (kept.labels.tolist(), kept.test_set) == (test.labels.tolist(), test.fingerprint())
    assert kept.error == pytest.approx(result["test_error"], abs=1e-12)  # of all images, not of one rank's


@pytest.mark.slow
def test_two_processes_are_refused_as_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    began = time.monotonic()
    out = str(tmp_path / "file" / "run")
    done = finish(*TORCHRUN, "-m", "kilolayer", "train", *OPTIONS, "--out", out)
    assert done.returncode != 0
    assert done.stderr.count("kilolayer: ") == 1
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_one_command_begins_goes_on_and_is_done(tmp_path: Path) -> None:
    """Stopped by SIGTERM to torchrun, as a batch system does it."""
    run = tmp_path / "run"
    words = (*TORCHRUN, "-m", "kilolayer", "train", *OPTIONS, "--out", str(run), "--resume", "auto")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=ALONE) as process:
        deadline = time.monotonic() + 120
        while not (run / "metrics.jsonl").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.terminate()
        process.communicate(timeout=120)
    assert not (run / "result.json").exists()
    assert finish(*words).returncode == 0
    done = finish(*words)
    assert done.returncode == 0
    assert done.stdout.count("is done: test error") == 1
    whole = finish(*TORCHRUN, "-m", "kilolayer", "train", *OPTIONS, "--out", str(tmp_path / "whole"))
    assert whole.returncode == 0
    assert outcome(run) == outcome(tmp_path / "whole")
    refused = finish(*words, "--seed", "1")
    assert refused.returncode != 0
    assert refused.stderr.count("was begun with other settings: seed 0 (now 1)") == 1


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_two_processes_of_another_launcher_are_ranks_of_one_run(launcher: str, tmp_path: Path) -> None:
    """As `srun -n 2` and `mpirun -n 2` start them, with MASTER_ADDR and MASTER_PORT set by the user."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = (sys.executable, "-m", "kilolayer", "train", *OPTIONS, "--out", str(tmp_path / "run"))
    names = {
        "srun": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
        "mpirun": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    }[launcher]
    processes = []
    for rank in ("0", "1"):
        said = dict(zip(names, (rank, "2", rank), strict=True))
        env = ALONE | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "KILOLAYER_TIMEOUT": "100"} | said
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=env))
    ended = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ended
    assert "2 processes" in ended[0][0]
    assert ended[1] == ("", "")
    torchrun = (*TORCHRUN, "-m", "kilolayer", "train", *OPTIONS, "--out", str(tmp_path / "torchrun"))
    assert finish(*torchrun).returncode == 0
    assert outcome(tmp_path / "run") == outcome(tmp_path / "torchrun")
