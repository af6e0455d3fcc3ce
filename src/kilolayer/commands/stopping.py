"""Being asked to stop: a signal ends a command with status 143, after its state is saved where it has one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from kilolayer.signals import heeded

STATUS = 143


class Stopped(KeyboardInterrupt):
    """What is raised where a command is broken off.

    Not `KeyboardInterrupt` itself: once that has left an `exec`, as dataclasses use it while they are
    imported, CPython ends by SIGINT whatever status the program returns.
    """


class Stop:
    """Callable: whether a signal has come."""

    def __init__(self) -> None:
        self.asked = False
        self.saves = False
        self.interrupted = False
        """Whether what ran was broken off: from then on it may fail in any way."""

    def __call__(self) -> bool:
        return self.asked

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler. Where nothing is to be saved, and at a second Ctrl-C, all ends at once."""
        impatient = self.asked and number == signal.SIGINT
        # Remembered too: code that must not fail, such as a weak reference's, swallows exceptions.
        self.asked = True
        if impatient or not self.saves:
            self.interrupted = True
            raise Stopped


_current: list[Stop] = []


@contextmanager
def interruptible() -> Iterator[Stop]:
    """Within this context every signal that asks to stop raises `Stopped`."""
    if _current or threading.current_thread() is not threading.main_thread():
        yield _current[0] if _current else Stop()
        return
    _current.append(Stop())
    before = {number: signal.signal(number, _current[0].note) for number in heeded()}
    try:
        yield _current[0]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _current.clear()


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Within this context signals are noted instead, so that the state can be saved."""
    with interruptible() as stop:
        stop.saves = True
        try:
            yield stop
        finally:
            stop.saves = False
