"""The engine for a Ray cluster: one task for each run. A run goes on elsewhere when its node is lost."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kilolayer.errors import InputError, KilolayerError
from kilolayer.sweep.engine import AttemptCounter, Tick, mark_failed
from kilolayer.sweep.run_spec import Outcome, RunSpec
from kilolayer.system.message_text import error_line
from kilolayer.values import to_json

SECONDS_TO_SAVE = 60.0


class RayEngine:
    """Runs as tasks of a Ray cluster, each with `cpus` cores, and with a GPU where the cluster has any.

    address: the cluster's; None: RAY_ADDRESS, or the cluster of this machine, or a new one for the sweep.
        workers: the most runs at once; None: as many as fit. The folder of the sweep, the data and Kilolayer
            must be the same on every node. A run whose
    worker or node is lost continues elsewhere from its last checkpoint.

    Raises `InputError` where Ray is missing, where the cluster does not answer, or where no node is large
    enough.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        workers: int | None = None,
        cpus: int = 1,
        device: str = "auto",
        save_seconds: float = 60.0,
    ) -> None:
        self.workers, self.cpus = workers, cpus
        self.device, self.save_seconds = device, save_seconds
        self._ray = connect(address)
        self.nodes = [node for node in self._ray.nodes() if node["Alive"]]
        self.gpus = int(device != "cpu" and any(node["Resources"].get("GPU") for node in self.nodes))
        self._check_size()
        self._running: dict[Any, RunSpec] = {}
        self._attempts = AttemptCounter()
        # We retry tasks ourselves, because only we know whether a run has made progress.
        self._task = self._ray.remote(_task).options(
            num_cpus=cpus, num_gpus=self.gpus, max_retries=0, scheduling_strategy="SPREAD"
        )

    def _check_size(self) -> None:
        most = max((int(node["Resources"].get("CPU", 0)) for node in self.nodes), default=0)
        if self.cpus > most:
            self._ray.shutdown()
            raise InputError(f"{self.cpus} cores for a run; allowed: up to {most}, the largest Ray node's")

    def execute(self, specs: Sequence[RunSpec], tick: Tick) -> Iterator[tuple[RunSpec, Outcome]]:
        """Yields each run with its outcome; see `Engine.execute`."""
        waiting = deque(specs)
        while waiting or self._running:
            while waiting and len(self._running) < (self.workers or len(specs)):
                spec = waiting.popleft()
                self._running[self._submit(spec)] = spec
            finished, _ = self._ray.wait(list(self._running), num_returns=1, timeout=0.3)
            tick()
            for reference in finished:
                spec = self._running.pop(reference)
                outcome = self._outcome(reference, spec)
                if outcome is None:
                    waiting.appendleft(spec)
                else:
                    yield spec, outcome

    def close(self) -> None:
        """Lets runs save and end, leaves the cluster, and ends a cluster that was started for the sweep."""
        unfinished = list(self._running)
        self._running.clear()
        for reference in unfinished:
            self._ray.cancel(reference)  # the worker receives it as Ctrl-C
        if unfinished:
            _, unsaved = self._ray.wait(unfinished, num_returns=len(unfinished), timeout=SECONDS_TO_SAVE)
            for reference in unsaved:
                self._ray.cancel(reference, force=True)
        self._ray.shutdown()

    def _submit(self, spec: RunSpec) -> Any:
        # Other workers have other working folders. Links are left for the worker to refuse.
        folders = os.path.abspath(spec.path), os.path.abspath(spec.sweep or spec.path)
        arguments = (*folders, to_json(spec.experiment), self.device, self.save_seconds)
        return self._task.remote(_DriverContext.capture(self.cpus), *arguments)

    def _outcome(self, reference: Any, spec: RunSpec) -> Outcome | None:
        """The outcome of the attempt; None where its worker or node was lost, to try the run again."""
        errors = self._ray.exceptions
        try:
            outcome: Outcome = self._ray.get(reference)
            if outcome != "stopped":
                return outcome
        except errors.RayTaskError as error:
            raise error.cause from (None if isinstance(error.cause, KilolayerError) else error)
        except errors.RuntimeEnvSetupError as error:
            raise InputError(f"Ray cannot set its workers up: {error_line(error)}") from None
        except errors.RayError:
            pass
        return None if self._attempts.try_again(spec) else mark_failed(spec)


@dataclass(frozen=True)
class _DriverContext:
    """The driver's folder, command and environment, so that paths and records mean the same in a task."""

    folder: str
    command: tuple[str, ...]
    data_home: str | None
    threads: int

    @classmethod
    def capture(cls, threads: int) -> _DriverContext:
        return cls(os.getcwd(), tuple(sys.argv), os.environ.get("KILOLAYER_DATA"), threads)

    def enter(self) -> None:
        import torch

        torch.set_num_threads(self.threads)
        sys.argv = list(self.command)
        if os.path.isdir(self.folder):
            os.chdir(self.folder)
        if self.data_home:
            os.environ["KILOLAYER_DATA"] = self.data_home


def _task(
    context: _DriverContext,
    folder: str,
    sweep: str,
    experiment_json: str,
    device: str,
    save_seconds: float,
) -> Outcome:
    from kilolayer.sweep import worker

    context.enter()
    worker.stop_asked.clear()
    signal.signal(signal.SIGINT, worker.note_stop)
    return worker.execute_run(folder, experiment_json, device, save_seconds, sweep=sweep)


SECONDS_TO_ANSWER = 5.0
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "GLOG_minloglevel": "3"}
"""Settings without which Ray writes to the terminal and reports its usage."""


def connect(address: str | None) -> Any:
    """Ray, connected to `address`, to the cluster of this machine, or to a new cluster.

    Raises `InputError` where Ray is missing or nothing answers.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise InputError("--engine ray needs Ray: pip install 'kilolayer[cluster]'") from None
    if ray.is_initialized():
        return ray
    _check_answers(address)
    try:
        ray.init(address, log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"at {address}" if address else "on this machine"
        raise InputError(f"no Ray cluster {where}: {error_line(error)}") from None
    return ray


def _check_answers(address: str | None) -> None:
    """Fails early: Ray itself tries for a minute, and ends the whole program where nothing answers."""
    host, _, port = (address or "").rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"no Ray cluster at {address}: {error}; see: ray start --help") from None
