"""Being asked to stop: the first signal is noted, so that the state can be saved; a second one ends all."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, *((signal.SIGUSR1,) if hasattr(signal, "SIGUSR1") else ()))


class Stop:
    """Callable: whether a signal has come. `status` is the exit status that says so."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        return self.signal is not None

    @property
    def status(self) -> int:
        """130 for Ctrl-C, 143 for every request of the system's, whichever process it came to."""
        return 130 if self.signal == signal.SIGINT else 143

    def note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = number


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Within this context signals are noted instead of ending the program."""
    stop = Stop()
    before = {number: signal.signal(number, stop.note) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
