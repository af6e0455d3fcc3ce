"""Standard input, output and error made robust: closed streams, no UTF-8, a terminal that is gone."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

from kilolayer.system.printer import escape_streams, unescaped


class DetachableTerminal(io.FileIO):
    """A terminal that may be closed while the program continues; what is written then is lost."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return len(data)


def prepare_streams() -> None:
    """Makes writing to the standard streams succeed wherever that is possible.

    A terminal without × gets a "?" and no traceback, and everything that is written is escaped.
    """
    _reopen_closed_streams()
    for name in ("stdout", "stderr"):
        stream = unescaped(getattr(sys, name))
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
            if stream.isatty() and not isinstance(_raw_stream(stream), DetachableTerminal):
                setattr(sys, name, _detachable_stream(stream))
    escape_streams()


def _reopen_closed_streams() -> None:
    """Connects streams that were closed, as by `>&-`, or opened for reading only, to the null device.

    Otherwise the next opened files would get their numbers, and a compiler's output would go into them.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
        if number and not _can_write(number):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - open until the end


def _can_write(descriptor: int) -> bool:
    if sys.platform == "win32":
        return True
    import fcntl

    return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY


def _raw_stream(stream: io.TextIOWrapper) -> object:
    return getattr(stream.buffer, "raw", None)


def _detachable_stream(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """The same stream; the program continues when its terminal is closed."""
    stream.flush()
    raw = DetachableTerminal(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=stream.encoding, errors=stream.errors, line_buffering=True
    )


def silence_stdout() -> None:
    """Stops writing: otherwise the interpreter reports the failed last write while it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
