"""S11: what is small stays small: everything is counted before it is built, within a small machine."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from bombs import BOMBS
from hostile import peak, reset_peak

from kilolayer.__main__ import main

pytest.importorskip("pyarrow")
MOST = 1_000_000_000
"""The bytes that a command may take, PyTorch's own included."""
ROOM = 5_000_000_000
"""The address space beyond what the process has at its start."""
SECONDS = 60
"""A hang becomes a failure; how fast a command is decides nothing."""


def in_child(function: Callable[[], object]) -> tuple[int, object]:
    """What `function` returns in a forked process, and the process's exit status."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        status = 1
        try:
            os.write(writer, json.dumps(function()).encode()[:60_000])
            status = 0
        except BaseException:
            os.write(writer, json.dumps(traceback.format_exc()[-2000:]).encode())
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        raw = file.read()
    _, ended = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(ended), json.loads(raw) if raw else None


def command(words: Sequence[str]) -> list[object]:
    """Exit status, the errors, the most bytes and the seconds of a command line, under the limits."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM,) * 2)
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    reset_peak()
    begun = time.process_time()
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        status = main(list(words))
    text = errors.getvalue() or out.getvalue()
    return [status, errors.getvalue().count("\n"), text[-400:], peak(), time.process_time() - begun]


def holds(name: str, folder: Path) -> str:
    """Why a case does not hold; "" where it does."""
    folder.mkdir()
    made, words = in_child(lambda: BOMBS[name](folder))
    assert made == 0, f"{name}: {words}"
    ended, said = in_child(lambda: command(words))  # type: ignore[arg-type]
    if ended != 0 or not isinstance(said, list):
        return f"ended with {ended}: {said}"
    status, lines, text, most, seconds = said
    if os.environ.get("SHOWN"):
        print(f"{name[:60]:60} {status} {most / 1e6:6.0f} MB {seconds:5.1f} s  {text.strip()[-170:]!r}")
    wrong = {
        f"status {status}": status not in (0, 1, 2),
        f"{lines} lines": status == 2 and lines > 1,
        "a traceback": "Traceback" in text,
        f"{most:,} bytes": most > MOST,
    }
    return "; ".join(reason for reason, is_wrong in wrong.items() if is_wrong)


def test_bombs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chosen: Callable[[Sequence[str]], list[str]],
    count: Callable[..., None],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    import kilolayer.training  # noqa: F401 - before the first fork, so that every child has it

    first, part = int(os.environ.get("FROM", "0")), os.environ.get("BOMB", "")
    cases = [name for name in chosen(list(BOMBS)[first:]) if part in name]
    failed = {name: why for i, name in enumerate(cases) if (why := holds(name, tmp_path / str(i)))}
    count("S11", tried=len(cases), held=len(cases) - len(failed), note=str(failed) if failed else "")
