"""Stopping by a signal: it ends a command with status 143, after the command has saved its state, if any."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from kilolayer.system.signals import handled_signals

STOPPED_STATUS = 143


class Interrupted(KeyboardInterrupt):
    """Interrupts a command.

    We do not raise `KeyboardInterrupt` itself: after it has left an `exec`, which dataclasses use while they
    are imported, CPython ends by SIGINT whatever status the program returns.
    """


class StopRequest:
    """Callable: whether a signal has asked to stop."""

    def __init__(self) -> None:
        self.requested = False
        self.saves_state = False
        self.interrupted = False
        """Whether the command was interrupted; from then on it may fail in any way."""

    def __call__(self) -> bool:
        return self.requested

    def handle_signal(self, number: int, frame: FrameType | None) -> None:
        """The signal handler. Without state to save, and at a second Ctrl-C, it ends the command at once."""
        impatient = self.requested and number == signal.SIGINT
        # We record it too, because code such as a weak reference's callback swallows exceptions.
        self.requested = True
        if impatient or not self.saves_state:
            self.interrupted = True
            raise Interrupted


_current: list[StopRequest] = []


@contextmanager
def interruptible() -> Iterator[StopRequest]:
    """Within this context every signal that asks to stop raises `Interrupted`."""
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
    """Within this context signals are only recorded, so that the command can save its state."""
    with interruptible() as stop:
        stop.saves_state = True
        try:
            yield stop
        finally:
            stop.saves_state = False
