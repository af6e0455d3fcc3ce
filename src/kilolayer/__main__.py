"""`kilolayer …` and `python -m kilolayer …`."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout, suppress
from pathlib import Path
from typing import NoReturn

from kilolayer.errors import InputError, KilolayerError, environment_error, shortage_error, single_value_error
from kilolayer.system import ranks, streams
from kilolayer.system.printer import print_line
from kilolayer.system.stopping import STOPPED_STATUS, interruptible


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status.

    0: finished. 2: an input cannot be used; one line says why. 143: stopped by a signal.
    """
    try:
        with interruptible() as stop:
            if ranks.is_distributed():
                _leave(_one_of_many(argv))
            try:
                return _main(argv)
            except Exception:
                # An interrupted import can fail with any error.
                if not stop.interrupted:
                    raise
                return STOPPED_STATUS
    except KeyboardInterrupt:  # after our handlers are gone
        return STOPPED_STATUS


def _one_of_many(argv: Sequence[str] | None) -> int:
    try:
        return _main(argv)
    except Exception:
        # Printed before this rank leaves the others, so that their messages do not mix with it.
        traceback.print_exc()
        return 1


def _main(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    is_main = ranks.is_main_process()
    streams.prepare_streams()
    try:
        with ExitStack() as silence:
            if not is_main:
                nowhere = silence.enter_context(open(os.devnull, "w", encoding="utf-8"))
                silence.enter_context(redirect_stdout(nowhere))
            _check_working_folder()
            status = _run(words)
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output, such as `head`, has closed it.
        streams.silence_stdout()
        status = 141
    except KeyboardInterrupt:
        status = STOPPED_STATUS
    except KilolayerError as error:
        status = _print_error(str(error), is_main)
    except BaseException as error:  # safetensors' own failure is no Exception
        if short := shortage_error(error):
            # Every rank prints this: only this one knows what it is short of.
            status = _print_error(str(short), True)
        elif isinstance(error, OSError):
            status = _print_error(_message(error), is_main)
        elif refusal := single_value_error(error) or environment_error(error):
            status = _print_error(str(refusal), is_main)
        else:
            raise
    return status


def _message(error: OSError) -> str:
    """The system's error as a message; raises `error` again where it is our bug."""
    if error.filename is not None and not _ours(error.filename):
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        streams.silence_stdout()
        return f"cannot write the output: {error.strerror}"
    if refusal := environment_error(error):
        return str(refusal)
    raise error


def _check_working_folder() -> None:
    """Raises `InputError` where the working folder was removed: MKL would end the process instead."""
    try:
        os.getcwd()
    except OSError as error:
        raise InputError(f"the working folder is gone ({error.strerror}); change to another") from None


def _leave(status: int) -> NoReturn:
    """Ends a rank without Python's clean-up: gloo's threads sometimes abort an interpreter that ends slowly.

    All output is written by then; a normal exit would only free memory.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _run(words: list[str]) -> int:
    if words == ["--version"]:
        from kilolayer import __version__

        print_line(f"kilolayer {__version__}")
        return 0
    if shell := os.environ.get("_KILOLAYER_COMPLETE"):
        from kilolayer.cli.completion_words import print_completions

        print_completions(shell, words)
        return 0
    from kilolayer.cli.command_line import run_command_line

    return run_command_line(words)


def _print_error(text: str, is_main: bool) -> int:
    """Prints the error as one line, which a terminal gets broken between words. Returns the exit status."""
    line = f"kilolayer: {' '.join(text.split())}"
    with suppress(OSError):  # standard error may be closed too
        if is_main and sys.stderr.isatty():
            from kilolayer.system.terminal import print_text

            print_text(line, stderr=True)
        elif is_main:
            print_line(line, stderr=True)
    return 2


def _ours(filename: object) -> bool:
    """Whether a missing file belongs to the package, which is our bug and not the user's."""
    return isinstance(filename, str) and Path(filename).is_relative_to(Path(__file__).parent)


if __name__ == "__main__":
    sys.exit(main())
