"""The signals that ask a process to save its state and stop."""

import signal

_NAMES = (
    "SIGINT",
    "SIGTERM",
    "SIGUSR1",
    "SIGHUP",  # the terminal is closed
    "SIGXCPU",  # a batch system's time is up
)
STOP_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


def handled_signals() -> tuple[signal.Signals, ...]:
    """`STOP_SIGNALS`, without SIGHUP where the process is to outlive its terminal, as under nohup."""
    return tuple(
        number
        for number in STOP_SIGNALS
        if number.name != "SIGHUP" or signal.getsignal(number) is not signal.SIG_IGN
    )
