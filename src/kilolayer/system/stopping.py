"""Being asked to stop: a signal ends a command with status 143, after its state is saved where it has one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from kilolayer.system.signals import handled_signals

STOPPED_STATUS = 143


class Interrupted(KeyboardInterrupt):
    """What is raised where a command is broken off.

    Not `KeyboardInterrupt` itself: once that has left an `exec`, as dataclasses use it while they are
    imported, CPython ends by SIGINT whatever status the program returns.
    """


class StopRequest:
    """Callable: whether a signal has come."""

    def __init__(self) -> None:
        self.requested = False
        self.saves_state = False
        self.interrupted = False
        """Whether what ran was broken off: from then on it may fail in any way."""

    def __call__(self) -> bool:
        return self.requested

    def handle_signal(self, number: int, frame: FrameType | None) -> None:
        """The handler. Where nothing is to be saved, and at a second Ctrl-C, all ends at once."""
        impatient = self.requested and number == signal.SIGINT
        # Remembered too: code that must not fail, such as a weak reference's, swallows exceptions.
        self.requested = True
        if impatient or not self.saves_state:
            self.interrupted = True
            raise Interrupted


_current: list[StopRequest] = []


@contextmanager
def interruptible() -> Iterator[StopRequest]:
    """Within this context every signal that asks to stop raises `Stopped`."""
    if _current or threading.current_thread() is not threading.main_thread():
        yield _current[0] if _current else StopRequest()
        return
    _current.append(StopRequest())
    before = {number: signal.signal(number, _current[0].handle_signal) for number in handled_signals()}
    try:
        yield _current[0]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _current.clear()


@contextmanager
def stoppable() -> Iterator[StopRequest]:
    """Within this context signals are noted instead, so that the state can be saved."""
    with interruptible() as stop:
        stop.saves_state = True
        try:
            yield stop
        finally:
            stop.saves_state = False
