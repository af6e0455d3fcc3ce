"""The signals that ask a process to save its state and stop."""

import signal

_NAMES = (
    "SIGINT",
    "SIGTERM",
    "SIGUSR1",
    "SIGUSR2",  # a batch system's warning before SIGKILL, as SIGUSR1
    "SIGHUP",  # the terminal is closed
    "SIGXCPU",  # a batch system's time is up, or `ulimit -t` is reached
    "SIGALRM",  # a time limit, set before this program was started
    "SIGPWR",  # the power fails
)
STOP_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


def handled_signals() -> tuple[signal.Signals, ...]:
    """`STOP_SIGNALS`, without those that the process was started to ignore, as SIGHUP under nohup.

    SIGINT always counts: a shell script starts its background commands with SIGINT ignored, and somebody who
    sends it to one of them means it. A timer of the program that calls us keeps its SIGALRM.
    """
    return tuple(number for number in STOP_SIGNALS if number == signal.SIGINT or _is_free(number))


def _is_free(number: signal.Signals) -> bool:
    handler = signal.getsignal(number)
    return handler is signal.SIG_DFL if number.name == "SIGALRM" else handler is not signal.SIG_IGN
