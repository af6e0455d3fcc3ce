"""What all engines share: they bring a sweep to its end, whatever is killed and whoever else works on it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from kilolayer.sweep.run_spec import Outcome, RunSpec, check_folders, read_progress
from kilolayer.system.folder_listing import matching_paths

ATTEMPTS_WITHOUT_PROGRESS = 5
SECONDS_UNTIL_BUSY_IS_TRIED_AGAIN = 1.0

Tick = Callable[[], None]


class SweepStopped(Exception):
    """The sweep was asked to stop. The state of every run is saved."""


class Engine(Protocol):
    """Executes runs, and yields each with its outcome when an attempt ends."""

    def execute(self, specs: Sequence[RunSpec], tick: Tick) -> Iterator[tuple[RunSpec, Outcome]]:
        """`tick` is called a few times a second and may raise. Attempts end in any order."""
        ...

    def close(self) -> None:
        """Lets running attempts save and end. Leaves no process behind."""
        ...


def run_all(
    specs: Sequence[RunSpec],
    engine: Engine,
    tick: Tick = lambda: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Outcome]:
    """Brings every run to its result, each exactly once, and returns the outcome by run.

    Finished runs are left as they are. A run that another process holds is tried again.

    Raises `SweepStopped` soon after `stop()` turns true, and `InputError` where a folder holds another run,
    before anything is written.
    """
    batches = iter((specs,))
    return run_batches(lambda: next(batches, ()), engine, tick, stop)


def run_batches(
    next_batch: Callable[[], Sequence[RunSpec]],
    engine: Engine,
    tick: Tick = lambda: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Outcome]:
    """As `run_all`, batch by batch: `next_batch` is asked when a batch has ended, until it names no run."""
    outcomes: dict[str, Outcome] = {}
    try:
        while specs := next_batch():
            check_folders(specs)
            outcomes |= _run_all(specs, engine, lambda: _tick_or_stop(tick, stop))
        return outcomes
    finally:
        engine.close()


def _tick_or_stop(tick: Tick, stop: Callable[[], bool]) -> None:
    tick()
    if stop():
        raise SweepStopped


def _run_all(specs: Sequence[RunSpec], engine: Engine, look: Tick) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    remaining = list(specs)
    while True:
        outcomes |= {
            spec.key: result["status"] for spec in remaining if (result := read_progress(spec).result)
        }
        remaining = [spec for spec in remaining if outcomes.get(spec.key, "busy") == "busy"]
        if not remaining:
            return outcomes
        outcomes |= {spec.key: outcome for spec, outcome in engine.execute(remaining, look)}
        if "busy" in outcomes.values():
            _pause(look)


def _pause(look: Tick) -> None:
    until = time.monotonic() + SECONDS_UNTIL_BUSY_IS_TRIED_AGAIN
    while time.monotonic() < until:
        look()
        time.sleep(0.1)


class AttemptCounter:
    """Counts how often the workers of a run died since the run last saved something."""

    def __init__(self) -> None:
        self._deaths: Counter[tuple[str, str]] = Counter()

    def try_again(self, spec: RunSpec) -> bool:
        """Counts a death, and says whether to try the run once more."""
        mark = (spec.key, _progress(spec))
        self._deaths[mark] += 1
        return self._deaths[mark] < ATTEMPTS_WITHOUT_PROGRESS


def _progress(spec: RunSpec) -> str:
    """A mark that changes when a run has saved something new."""
    seals = matching_paths(spec.path / "checkpoints", "*.json")
    return seals[-1].name if seals else ""


def mark_failed(spec: RunSpec, cause: str = "killed for its memory?") -> Outcome:
    """Records that the workers of a run die again and again, and returns the outcome."""
    from kilolayer.sweep.worker import record_failure

    times = ATTEMPTS_WITHOUT_PROGRESS
    return record_failure(spec, f"its worker died {times} times without progress ({cause})")
