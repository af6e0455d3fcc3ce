"""The engine for one machine: a pool of processes."""

from __future__ import annotations

import logging
import signal
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType

from kilolayer.errors import InputError
from kilolayer.sweep.engine import AttemptCounter, Tick, mark_failed
from kilolayer.sweep.run_spec import Outcome, RunSpec
from kilolayer.values import to_json

logger = logging.getLogger(__name__)

Running = dict[Future[Outcome], tuple[int, RunSpec]]


class ProcessPool:
    """`workers` processes on this machine, each with `threads` cores. They take turns on the `devices`.

    Every worker is an executor of its own. A killed worker therefore takes down only its own run, which then
    continues from its checkpoint. A run whose workers keep dying without progress counts as failed.
    """

    def __init__(
        self,
        workers: int = 2,
        *,
        threads: int | None = 1,
        devices: Sequence[str] = ("auto",),
        save_seconds: float = 60.0,
    ) -> None:
        self.workers, self.threads, self.devices = workers, threads, tuple(devices)
        self.save_seconds = save_seconds
        self._executors: dict[int, ProcessPoolExecutor] = {}
        self._children: set[BaseProcess] = set()
        self._attempts = AttemptCounter()
        self._memory_kills = memory_kills()

    def execute(self, specs: Sequence[RunSpec], tick: Tick) -> Iterator[tuple[RunSpec, Outcome]]:
        """Yields each run with its outcome; see `Engine.execute`."""
        waiting, running = deque(specs), Running()
        while waiting or running:
            self._fill(waiting, running)
            finished, _ = wait(running, timeout=0.3, return_when=FIRST_COMPLETED)
            tick()
            for future in finished:
                slot, spec = running.pop(future)
                outcome = self._outcome(future, slot, spec)
                if outcome is None:
                    waiting.appendleft(spec)
                else:
                    yield spec, outcome

    def close(self) -> None:
        """Lets workers save and end. Leaves no process behind."""
        for child in self._children & set(active_children()):
            child.terminate()
        for executor in self._executors.values():
            executor.shutdown(wait=True, cancel_futures=True)
        self._executors.clear()

    def _fill(self, waiting: deque[RunSpec], running: Running) -> None:
        used = {slot for slot, _ in running.values()}
        for slot in set(range(self.workers)) - used:
            if waiting:
                spec = waiting.popleft()
                running[self._submit(slot, spec)] = (slot, spec)

    def _submit(self, slot: int, spec: RunSpec) -> Future[Outcome]:
        try:
            return self._submit_to(self._executor(slot), slot, spec)
        except BrokenProcessPool:  # its worker was killed while idle
            self._discard(slot)
            return self._submit_to(self._executor(slot), slot, spec)

    def _submit_to(self, executor: ProcessPoolExecutor, slot: int, spec: RunSpec) -> Future[Outcome]:
        from kilolayer.sweep.worker import execute_run

        arguments = (str(spec.path), to_json(spec.experiment), self.devices[slot % len(self.devices)])
        sweep = str(spec.sweep) if spec.sweep else None
        before = set(active_children())
        with block_sigint(), _hide_main_module():
            future = executor.submit(execute_run, *arguments, self.save_seconds, sweep=sweep)
        self._children |= set(active_children()) - before
        return future

    def _executor(self, slot: int) -> ProcessPoolExecutor:
        from kilolayer.sweep.worker import prepare_worker
        from kilolayer.units import extensions

        if slot not in self._executors:
            try:
                arguments = self.threads, extensions.loaded_files()
                self._executors[slot] = ProcessPoolExecutor(
                    1, mp_context=get_context("spawn"), initializer=prepare_worker, initargs=arguments
                )
            except OSError as error:
                raise _worker_error(error) from error
        return self._executors[slot]

    def _discard(self, slot: int) -> None:
        self._executors.pop(slot).shutdown(wait=False)

    def _outcome(self, future: Future[Outcome], slot: int, spec: RunSpec) -> Outcome | None:
        """The outcome of the attempt; None where its worker died and the run is to be tried again."""
        cause = "somebody stopped it"
        try:
            outcome = future.result()
            if outcome != "stopped":
                return outcome
        except BrokenProcessPool:
            cause = self._cause_of_death()
            logger.warning("the worker of %s ended: %s; the run goes on from its last state", spec.key, cause)
        # Somebody else terminated a worker that stopped; it would refuse every further run.
        self._discard(slot)
        return None if self._attempts.try_again(spec) else mark_failed(spec, cause)

    def _cause_of_death(self) -> str:
        """Why the worker that was lost last ended, as far as the system tells."""
        before, self._memory_kills = self._memory_kills, memory_kills()
        if self._memory_kills > before:
            return "the system killed it for its memory; fewer --workers need less"
        dead = {child for child in self._children if child.exitcode is not None}
        self._children -= dead
        codes = {child.exitcode for child in dead if child.exitcode}
        killed = [signal.Signals(-code).name for code in codes if code < 0]
        return f"killed by {', '.join(killed)}" if killed else "it ended by itself"


def memory_kills() -> int:
    """How many processes this machine has killed since its start because memory ran out; 0 if unknown."""
    with suppress(OSError, ValueError):
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return 0


def _worker_error(error: OSError) -> InputError:
    return InputError(
        f"cannot start a worker: {error.strerror}; workers need a little shared memory (see: df /dev/shm), "
        "open files and processes (see: ulimit -a)"
    )


@contextmanager
def _hide_main_module() -> Iterator[None]:
    """A worker started here does not run the caller's script again, of which it needs nothing.

    That script may come from standard input, or have no guard around its code.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def block_sigint() -> Iterator[None]:
    """Blocks Ctrl-C in workers started here: it reaches the whole group, but only the parent decides."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
