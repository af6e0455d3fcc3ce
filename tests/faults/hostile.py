"""What the tests of hostile input share: the command line in process, and a watch over what is done."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from kilolayer.__main__ import main

FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.spawn", "os.remove", "os.rmdir",
    "os.chmod", "os.kill", "pty.spawn", "shutil.rmtree", "subprocess.Popen", "socket.connect", "socket.bind",
    "socket.getaddrinfo", "urllib.Request", "webbrowser.open", "ctypes.dlopen", "code.__new__", "exec",
)  # fmt: skip
_seen: list[str] = []
_watching = False


def _hook(event: str, arguments: object) -> None:
    if _watching and event in FORBIDDEN:
        _seen.append(event)


sys.addaudithook(_hook)


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """The forbidden things that Python says are done within; modules must be imported before."""
    global _watching
    _seen.clear()
    _watching = True
    try:
        yield _seen
    finally:
        _watching = False


def status(words: Sequence[str]) -> tuple[int, str, str]:
    """The exit status of a command line, and what it wrote; an exception of ours passes through."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(words))
    return code, out.getvalue(), err.getvalue()


def refused(words: Sequence[str], *said: str) -> bool:
    """Whether a command line ends with status 2 and one line that says all of this."""
    code, _, err = status(words)
    one_line = err.startswith("kilolayer: ") and err.count("\n") == 1 and "Traceback" not in err
    return code == 2 and one_line and all(each in err for each in said)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every entry below a folder, files with their content; links are not followed."""
    found: dict[str, bytes | None] = {}
    for root, folders, files in os.walk(folder):
        for name in folders:
            found[os.path.relpath(os.path.join(root, name), folder)] = None
        for name in files:
            path = Path(root, name)
            plain = path.is_file() and not path.is_symlink()
            found[os.path.relpath(path, folder)] = path.read_bytes() if plain else None
    return found


def resident() -> int:
    """Bytes in memory now."""
    said = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(said[1]) * 1024 if said else 0


def peak() -> int:
    """The most bytes in memory since `reset_peak`."""
    said = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(said[1]) * 1024 if said else 0


def reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
