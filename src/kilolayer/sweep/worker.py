"""Executes one run in this process, from its beginning or its checkpoint to a result."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType

import torch

from kilolayer.data import load
from kilolayer.errors import out_of_memory_error
from kilolayer.runs import Run, train_run
from kilolayer.runs.folder import RunInUse
from kilolayer.sweep.run_spec import Outcome, RunSpec
from kilolayer.system.printer import escape_streams
from kilolayer.system.signals import handled_signals
from kilolayer.training.device import choose_device
from kilolayer.training.distributed import DistributedContext
from kilolayer.training.experiment import Experiment
from kilolayer.training.train_state import NonFinite
from kilolayer.training.trainer import Trainer
from kilolayer.units import extensions
from kilolayer.values import from_json

_loaded = lru_cache(maxsize=2)(load)
_working = threading.Lock()
stop_asked = threading.Event()


def prepare_worker(threads: int | None, own_files: Sequence[str] = ()) -> None:
    """Sets up a worker process: its number of threads, and signals after which it saves and ends.

    own_files: files that define kinds of units of the runs (`kilolayer.units.extensions`).
    """
    escape_streams()  # of warnings, which name files
    for file in own_files:
        extensions.load_unit_file(file)
    if threads:
        torch.set_num_threads(threads)
    for number in handled_signals():
        if number != signal.SIGINT:  # the parent decides; see `pool.deaf_to_ctrl_c`
            signal.signal(number, note_stop)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_exit_with_parent, args=(parent.sentinel,), daemon=True).start()


def _exit_with_parent(sentinel: int) -> None:
    """Saves and ends when the parent is gone, which a worker of a pool would not notice."""
    wait([sentinel])
    stop_asked.set()
    with _working:
        os._exit(0)


def note_stop(number: int, frame: FrameType | None) -> None:
    """A signal handler: the current run saves and ends after its step."""
    stop_asked.set()


def execute_run(
    folder: str,
    experiment_json: str,
    device: str = "auto",
    save_seconds: float = 60.0,
    stop: Callable[[], bool] = stop_asked.is_set,
    sweep: str | None = None,
) -> Outcome:
    """Brings the run in `folder` to its end. Arguments are plain text, so that any executor can send them.

    "done", "diverged" and "failed" (out of memory) leave a result; "stopped" leaves a checkpoint; "busy"
    means that another process has the run. Below the folder `sweep` no link is followed.

    Raises `InputError` where the folder holds another experiment.
    """
    if stop():
        return "stopped"
    experiment = from_json(experiment_json, Experiment)
    try:
        below = Path(sweep) if sweep else None
        with _working, Run.open_or_create(folder, experiment, below=below) as run:
            return _status(run) or _train(run, experiment, device, save_seconds, stop)
    except RunInUse:
        return "busy"


def _status(run: Run) -> Outcome | None:
    result = run.result()
    return result["status"] if result else None


def _train(
    run: Run, experiment: Experiment, device: str, save_seconds: float, stop: Callable[[], bool]
) -> Outcome:
    try:
        training = Trainer(experiment, _loaded(experiment.data), DistributedContext(choose_device(device)))
        for _ in train_run(run, training, stop=stop, save_seconds=save_seconds):
            pass
    except NonFinite:
        return "diverged"
    except BaseException as error:  # safetensors' own failure is no Exception
        short = out_of_memory_error(error)
        if short is None:
            raise
        return _write_failure(run, str(short))
    return "done" if training.is_finished else "stopped"


def _write_failure(run: Run, reason: str) -> Outcome:
    run.write_json("result.json", {"status": "failed", "reason": reason})
    return "failed"


def record_failure(spec: RunSpec, reason: str) -> Outcome:
    """Records that a run cannot be brought to an end, unless another process has done so meanwhile."""
    try:
        with Run.open_or_create(spec.path, spec.experiment, below=spec.sweep) as run:
            return _status(run) or _write_failure(run, reason)
    except RunInUse:
        return "busy"
