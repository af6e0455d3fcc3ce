"""A terminal, as a person has one: starts a program on a pty and says what the screen shows."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyte

KILOLAYER = (sys.executable, "-m", "kilolayer")
HEIGHT = 50
PATIENCE = 150


@dataclass(frozen=True)
class Shown:
    """What a program that has ended left on the screen, and all it wrote on the way."""

    status: int
    raw: bytes
    width: int

    @property
    def text(self) -> str:
        """Everything written, without what moves the cursor and colours the letters."""
        return "\n".join(line.rstrip() for line in self.lines)

    @property
    def lines(self) -> list[str]:
        """The screen and what has rolled off its top, a line each."""
        screen = pyte.HistoryScreen(self.width, HEIGHT, history=100_000, ratio=0.5)
        pyte.ByteStream(screen).feed(self.raw)
        above = ("".join(row[at].data for at in range(self.width)) for row in screen.history.top)
        lines = [*above, *screen.display]
        while lines and not lines[-1].strip():
            lines.pop()
        return lines

    @property
    def frames(self) -> list[list[str]]:
        """The screen after each line feed or return: what was to be seen while the program ran."""
        screen = pyte.Screen(self.width, HEIGHT)
        stream, frames = pyte.ByteStream(screen), []
        for part in self.raw.replace(b"\r", b"\n\r").split(b"\n"):
            stream.feed(part)
            frames.append(list(screen.display))
        return frames


def on_terminal(
    words: Sequence[str],
    *,
    width: int = 80,
    folder: Path | None = None,
    env: Mapping[str, str | None] | None = None,
    program: Sequence[str] = KILOLAYER,
    meanwhile: Callable[[int, bytes], None] = lambda terminal, raw: None,
) -> Shown:
    """Starts the program on a pty of this width and reads until it ends.

    `env` adds to the environment or, with None, takes away. `meanwhile(terminal, raw)` is called after
    every read with what was written so far, and may type into the terminal or resize it.
    """
    outer, inner = pty.openpty()
    resize(outer, width)
    surroundings = {**os.environ, "TERM": "xterm-256color", "COLUMNS": None, "LINES": None, **(env or {})}
    child = subprocess.Popen(
        [*program, *words],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        cwd=folder,
        env={name: value for name, value in surroundings.items() if value is not None},
        start_new_session=True,
        # Only a controlling terminal turns Ctrl-C into a signal.
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(inner)
    # A program that waits for ever fails its test, and not the suite.
    alarm = threading.Timer(PATIENCE, child.kill)
    alarm.start()
    raw = b""
    with contextlib.suppress(OSError):  # a pty without a program is at its end with EIO
        while part := os.read(outer, 65536):
            raw += part
            meanwhile(outer, raw)
    status = child.wait()
    alarm.cancel()
    os.close(outer)
    return Shown(status, raw, width)


def resize(terminal: int, width: int) -> None:
    """The window is so many columns wide from now on; the program gets SIGWINCH."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, width, 0, 0))


def at_prompt(
    program: Sequence[str], typed: str, prompt: str, *, folder: Path, env: Mapping[str, str | None]
) -> str:
    """Types into an interactive shell once its prompt is there, and returns all that it then writes.

    The line is given up by Ctrl-C once the shell has been still for a while, and the shell left.
    """
    ahead = [typed, "\x03", "exit\n"]

    def answer(terminal: int, raw: bytes) -> None:
        if len(ahead) == 3 and prompt.encode() not in raw:
            return
        if ahead and (len(ahead) == 3 or not select.select([terminal], [], [], 3)[0]):
            os.write(terminal, ahead.pop(0).encode())

    return on_terminal([], program=program, folder=folder, env=env, meanwhile=answer).raw.decode()
