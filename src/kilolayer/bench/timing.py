"""The cost of a piece of work: wall and CPU seconds, load by other processes, and energy."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

RAPL = Path("/sys/class/powercap")
MAX_OTHER_CORES = 0.05
"""The load by other processes, in cores, above which a repeat counts as disturbed."""


@dataclass(frozen=True)
class Timing:
    """What a piece of work took.

    `seconds` are wall seconds, `cpu_seconds` those of this process; other processes kept `other_cores` busy.

    `other_cores` and `joules` are None if the system does not report them.
    """

    seconds: float
    cpu_seconds: float
    other_cores: float | None
    joules: float | None

    @property
    def is_disturbed(self) -> bool:
        """Whether other processes used so much of the machine that wall seconds are not comparable."""
        return self.other_cores is not None and self.other_cores > MAX_OTHER_CORES


def time_work(work: Callable[[], object]) -> Timing:
    """Runs `work` once and measures it."""
    energy_start, busy_start = _energy_joules(), _busy_seconds()
    wall_start, cpu_start = time.perf_counter(), time.process_time()
    work()
    seconds, cpu = time.perf_counter() - wall_start, time.process_time() - cpu_start
    busy_end, energy_end = _busy_seconds(), _energy_joules()
    other_cores = (
        None if busy_start is None or busy_end is None else max(0.0, busy_end - busy_start - cpu) / seconds
    )
    joules = (
        None
        if energy_start is None or energy_end is None or energy_end < energy_start
        else energy_end - energy_start
    )
    return Timing(seconds, cpu, other_cores, joules)


def _busy_seconds() -> float | None:
    """CPU seconds that this machine has been busy, in all processes."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            ticks = [int(word) for word in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return None
    idle = ticks[3] + ticks[4]
    return (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK")


def _energy_joules() -> float | None:
    """The energy used by the processors' packages since some moment (RAPL), or None."""
    counters = []
    for zone in sorted(RAPL.glob("intel-rapl:[0-9]*")) if RAPL.is_dir() else ():
        if zone.name.count(":") == 1:
            try:
                counters.append(int((zone / "energy_uj").read_text("ascii")))
            except (OSError, ValueError):
                return None
    return sum(counters) / 1e6 if counters else None
