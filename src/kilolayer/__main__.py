"""`kilolayer …` and `python -m kilolayer …`."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import NoReturn

from kilolayer.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status.

    0 done, 2 something given cannot be used (one line says what), 130 and 143 stopped by a signal.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    leads = os.environ.get("RANK", "0") == "0"
    _write_what_can_be_written()
    try:
        with ExitStack() as silence:
            if not leads:
                silence.enter_context(redirect_stdout(silence.enter_context(open(os.devnull, "w"))))
            status = _run(words)
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has enough; without this the interpreter complains while it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except KeyboardInterrupt:
        status = 130
    except InputError as error:
        status = _refuse(str(error), leads)
    except OSError as error:
        if error.filename is None or _ours(error.filename):
            raise
        status = _refuse(f"{os.fsdecode(error.filename)}: {error.strerror}", leads)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _leave(status)
    return status


def _leave(status: int) -> NoReturn:
    """Ends one of many processes at once: gloo's threads sometimes abort a Python that takes its time.

    Everything is written by then; what else would happen at exit is only freeing memory.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _write_what_can_be_written() -> None:
    """A terminal without × or a file name that is no text gets a "?" and no traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _run(words: list[str]) -> int:
    if words == ["--version"]:
        from kilolayer import __version__

        print(f"kilolayer {__version__}")
        return 0
    from kilolayer.cli import run

    return run(words)


def _refuse(text: str, leads: bool) -> int:
    if leads:
        print(f"kilolayer: {' '.join(text.split())}", file=sys.stderr)
    return 2


def _ours(filename: object) -> bool:
    """Whether a file that is missing is the package's own, which is no fault of the user's."""
    return isinstance(filename, str) and Path(filename).is_relative_to(Path(__file__).parent)


if __name__ == "__main__":
    sys.exit(main())
