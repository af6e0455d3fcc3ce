"""What the environment of a launcher is taken to say, and what is said where it makes no sense."""

from __future__ import annotations

import re

import pytest
import torch

from kilolayer.__main__ import main
from kilolayer.errors import InputError, RankError
from kilolayer.system.ranks import (
    LAUNCHERS,
    RENDEZVOUS_VARIABLES,
    TORCHRUN,
    Launch,
    is_distributed,
    is_main_process,
    num_separate_processes,
    read_launch,
)
from kilolayer.training import distributed

MASTER = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
SLURM = {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "2"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
TORCH = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
KUBEFLOW = {"RANK": "1", "WORLD_SIZE": "2"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {
        *RENDEZVOUS_VARIABLES,
        *(name for names in (TORCHRUN, *LAUNCHERS) for name in names if name),
    }:
        monkeypatch.delenv(name, raising=False)


def given(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


UNDERSTOOD: dict[str, tuple[dict[str, str], Launch]] = {
    "nothing": ({}, Launch()),
    "one process": ({"WORLD_SIZE": "1", "RANK": "0"}, Launch()),
    "one process of srun": ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"} | MASTER, Launch()),
    "empty": ({"WORLD_SIZE": "", "RANK": ""}, Launch()),
    "torchrun": (TORCH | MASTER, Launch(1, 2, 1, 2)),
    "torchrun within srun": (TORCH | MASTER | {**SLURM, "SLURM_PROCID": "0"}, Launch(1, 2, 1, 2)),
    "without a local rank": (KUBEFLOW | MASTER, Launch(1, 2)),
    "srun": (SLURM | MASTER, Launch(1, 2, 1)),
    "srun and WORLD_SIZE": (SLURM | MASTER | {"WORLD_SIZE": "2"}, Launch(1, 2, 1)),
    "an older srun": (
        {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4"} | MASTER,
        Launch(3, 4, 1),
    ),
    "mpirun": (OPEN_MPI | MASTER, Launch(1, 2, 1, 2)),
    "mpiexec": (MPICH | MASTER, Launch(1, 2, 1, 2)),
    "a local rank by hand": (SLURM | MASTER | {"LOCAL_RANK": "0"}, Launch(1, 2, 0)),
    "srun, and they are not to meet": (SLURM, Launch()),
    "within salloc": ({"SLURM_NTASKS": "4"} | MASTER, Launch()),
}


@pytest.mark.parametrize(("environment", "launched"), UNDERSTOOD.values(), ids=list(UNDERSTOOD))
def test_what_is_understood(environment, launched, monkeypatch):
    given(environment, monkeypatch)
    assert read_launch() == launched
    assert (is_main_process(), is_distributed()) == (launched.rank == 0, launched.world_size > 1)


REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "no rank": ({"WORLD_SIZE": "2"} | MASTER, "WORLD_SIZE is 2, but RANK is not set; start .*torchrun"),
    "srun of another size": (SLURM | MASTER | {"WORLD_SIZE": "8"}, "WORLD_SIZE is 8, but RANK is not set"),
    "no number": ({"WORLD_SIZE": "abc"}, "WORLD_SIZE is 'abc' in the environment; allowed: a whole number"),
    "none": ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0' .*allowed: a whole number from 1"),
    "less than none": ({"WORLD_SIZE": "-2"}, "WORLD_SIZE is '-2'"),
    "endless": ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE is '9+'"),
    "digits that are none": ({"WORLD_SIZE": "²"}, "WORLD_SIZE is '²'"),
    "the rank is no number": (TORCH | MASTER | {"RANK": "first"}, "RANK is 'first'"),
    "a rank too high": (TORCH | MASTER | {"RANK": "2"}, "RANK is 2 .*WORLD_SIZE is 2; allowed: 0 to 1"),
    "a rank of one": ({"WORLD_SIZE": "1", "RANK": "1"}, "RANK is 1 .*WORLD_SIZE is 1; allowed: 0 to 0"),
    "a rank of nothing": ({"RANK": "3"}, "RANK is 3 .*WORLD_SIZE is not set; start .*torchrun"),
    "nowhere to meet": (TORCH, "not set: MASTER_ADDR, MASTER_PORT; set MASTER_ADDR to rank 0's machine"),
    "no port": (TORCH | {"MASTER_ADDR": "a"}, "not set: MASTER_PORT; "),
    "a port that is none": (TORCH | MASTER | {"MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
    "a port too high": (TORCH | MASTER | {"MASTER_PORT": "65536"}, "MASTER_PORT .*from 1 to 65535"),
    "a local rank that is none": (TORCH | MASTER | {"LOCAL_RANK": "gpu"}, "LOCAL_RANK is 'gpu'"),
    "srun's number is none": (SLURM | MASTER | {"SLURM_STEP_NUM_TASKS": "x"}, "SLURM_STEP_NUM_TASKS is 'x'"),
}


@pytest.mark.parametrize(("environment", "said"), REFUSED.values(), ids=list(REFUSED))
def test_what_is_refused(environment, said, monkeypatch, capsys):
    given(environment, monkeypatch)
    with pytest.raises(InputError, match=said):
        read_launch()
    # Whoever cannot know its rank says it.
    assert (is_main_process(), is_distributed()) == (True, False)
    assert main(["train", "--no-tensorboard"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.fullmatch(f"kilolayer: .*{said}.*\n", shown.err)


def test_processes_that_are_not_to_meet_are_told_of_each_other(monkeypatch, caplog):
    given(SLURM, monkeypatch)
    assert num_separate_processes() == 2
    with distributed.distributed_context("cpu") as here:
        assert here.world_size == 1
    assert "2 processes were started side by side, and each trains a run of its own" in caplog.text
    given(MASTER, monkeypatch)
    assert num_separate_processes() is None


@pytest.mark.parametrize(
    ("gpus", "here", "outcome"),
    [
        (1, Launch(3, 8), "cuda:0"),
        (2, Launch(3, 8), "which of this machine's 2 GPUs is this process's, is not set"),
        (2, Launch(1, 2, 1, 2), "cuda:1"),
        (1, Launch(0, 2, 0, 2), "'cuda:1' is missing"),
        (1, Launch(1, 2, 1), "'cuda:1' is missing"),
    ],
)
def test_which_gpu_is_whose(gpus, here, outcome, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if outcome.startswith("cuda"):
        assert str(distributed._local_gpu(here)) == outcome
    else:
        with pytest.raises(InputError, match=re.escape(outcome)):
            distributed._local_gpu(here)


@pytest.mark.parametrize("text", ["soon", "1e400", "nan"])
def test_a_timeout_that_is_no_time(text, monkeypatch):
    monkeypatch.setenv("KILOLAYER_TIMEOUT", text)
    with pytest.raises(
        InputError, match=f"KILOLAYER_TIMEOUT is '{text}' in the environment; allowed: seconds"
    ):
        distributed._rank_timeout()


def test_others_that_never_come_are_named(monkeypatch):
    given(TORCH | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "KILOLAYER_TIMEOUT": "1"}, monkeypatch)
    said = r"rank 1 of 2 did not meet the others at 127\.0\.0\.1:1 "
    with pytest.raises(RankError, match=said), distributed.distributed_context("cpu"):
        pytest.fail("there is nobody")
