"""Being asked to stop, started again, or short of memory: what a process makes of it."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
import torch

from kilolayer.cli import resuming
from kilolayer.errors import InputError, out_of_memory_error, shortage_error
from kilolayer.runs import tensor_bytes
from kilolayer.system.signals import STOP_SIGNALS, handled_signals
from kilolayer.system.stopping import interruptible, stoppable
from kilolayer.training.device import check_threads


@pytest.fixture(autouse=True)
def no_timer() -> Iterator[None]:
    """The tests' own time limit is a SIGALRM."""
    before = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_where_nothing_is_to_be_saved_a_signal_ends_all(number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interruptible():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_where_something_is_it_is_noted(number: int) -> None:
    with stoppable() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
    assert not stop.saves_state


@pytest.mark.parametrize("number", [number for number in STOP_SIGNALS if number != signal.SIGINT])
def test_what_the_process_was_started_to_ignore_is_not_heard(number: signal.Signals) -> None:
    """As SIGHUP is under nohup."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        assert set(STOP_SIGNALS) - set(handled_signals()) == {number}
        with stoppable() as stop:
            os.kill(os.getpid(), number)
            assert not stop()
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)
    assert set(handled_signals()) == set(STOP_SIGNALS)


def test_ctrl_c_is_heard_where_a_script_began_the_command_in_the_background() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stoppable() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_timer_of_the_calling_program_stays() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGALRM, lambda number, frame: heard.append(number))
    with stoppable() as stop:
        os.kill(os.getpid(), signal.SIGALRM)
        assert not stop()
    assert heard == [signal.SIGALRM]


def test_only_a_second_ctrl_c_insists() -> None:
    with stoppable() as stop:
        for number in (signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_whose_exception_was_swallowed_stops_the_run_at_its_first_look() -> None:
    """An import that is interrupted within a weak reference's callback goes on."""
    with interruptible():
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        with stoppable() as stop:
            assert stop()


def test_under_torchrun_a_run_keeps_its_name_at_every_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len({resuming.run_suffix() for _ in range(20)}) > 1
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    first = resuming.run_suffix()
    assert (resuming.is_torchrun_restart(), len(first)) == (False, 4)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert (resuming.is_torchrun_restart(), resuming.run_suffix()) == (True, first)


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (MemoryError(), ""),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"), "2.00 GiB"),
        (RuntimeError("can't allocate memory: you tried to allocate 640 bytes. Error code 12"), "640 bytes"),
        (RuntimeError("could not create a primitive"), ""),
        (RuntimeError("std::bad_alloc"), ""),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), ""),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), "a file"), ""),
        (ImportError("_imaging.so: failed to map segment from shared object"), ""),
    ],
)
def test_memory_that_is_short_is_told_with_advice(error: Exception, asked: str) -> None:
    told = str(shortage_error(error))
    assert told == str(out_of_memory_error(error))
    assert told.startswith(f"out of memory{f' (asked for {asked})' if asked else ''}; nothing was changed: ")
    assert "--batch-size" in told


def test_another_fault_is_none_of_memory() -> None:
    assert shortage_error(RuntimeError("shapes do not fit")) is None
    assert shortage_error(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "x")) is None
    named_so = OSError(errno.ENOENT, os.strerror(errno.ENOENT), "Too many open files")
    assert shortage_error(named_so) is None


@pytest.mark.parametrize(
    ("error", "noun"),
    [
        (RuntimeError("can't start new thread"), "threads"),
        (BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)), "threads or processes"),
        (RuntimeError("Resource temporarily unavailable"), "threads or processes"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "open files"),
        (RuntimeError("unable to open shared memory object: Too many open files (24)"), "open files"),
    ],
)
def test_limits_of_the_machine_are_told_with_advice(error: Exception, noun: str) -> None:
    told = str(shortage_error(error))
    assert told.startswith(f"this machine allows no more {noun}; nothing was changed: allow more (ulimit -u")


def test_threads_that_cannot_be_started_are_told_before_openmp_ends_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, left = threading.Thread.start, [2]

    def start(thread: threading.Thread) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    check_threads(3)
    left[0] = 2
    with pytest.raises(InputError, match="allows 3 of 8 threads; take --threads 3, or allow more"):
        check_threads(8)


def test_memory_is_asked_for_before_native_code_would_abort(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int, length: int) -> None:
        assert length >= 3 * 4000
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(tensor_bytes.mmap, "mmap", refuse)
    with pytest.raises(MemoryError, match="Cannot allocate memory"):
        tensor_bytes.save({"weight": torch.zeros(1000)})
    with pytest.raises(MemoryError):
        tensor_bytes.load(bytes(6000))
