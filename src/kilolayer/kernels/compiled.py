"""Native code, compiled at first use into the user's cache and found there from then on.

Where no cache can be written it is compiled into a folder of temporary files that is the user's alone.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from filelock import FileLock

from kilolayer import durable, folders
from kilolayer.errors import InputError
from kilolayer.kernels.processor import cpu_flags

logger = logging.getLogger(__name__)

NATIVE = Path(__file__).parent / "native"
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC")
SECONDS = 300
UTF8, REPLACE = "utf-8", "replace"
"""How a compiler's words are read: it quotes in UTF-8 where our own locale may be ASCII."""
FOLDER = "native"
"""Of the cache, where libraries are kept."""


class Missing(Exception):
    """Why there is no native code here, in words; the plain path serves."""


def switched_off(name: str) -> bool:
    """Whether `name` is 0 in the environment. Raises `InputError` for anything but 0 and 1."""
    found = os.environ.get(name) or "1"
    if found not in ("0", "1"):
        raise InputError(f"{name} is {found!r} in the environment; allowed: 0, 1")
    return found == "0"


def built(name: str, flags: Sequence[str] = (), *, parts: Sequence[str] = (), of: str = "") -> Path:
    """The library of `native/<name>.cpp`, for these sources, flags, this compiler and this processor.

    `parts` are its sources' names where they are several, compiled side by side; `of` says what else it was
    built for, as PyTorch's version. Raises `Missing`.
    """
    if sys.platform != "linux":
        raise Missing(f"native code is for Linux, and this is {sys.platform}")
    compiler = _compiler()
    sources = [NATIVE / f"{part}.cpp" for part in parts or (name,)]
    words = [_version(compiler), *FLAGS, *flags, of, *sorted(cpu_flags())]
    read = [path.read_bytes() for path in (*sources, *sorted(NATIVE.glob("*.h")))]
    key = hashlib.sha256(b"\0".join([*read, *(word.encode() for word in words)])).hexdigest()[:16]
    library = f"{name}-{key}.so"
    cache = folders.cache()
    if cache and _may_be_loaded(cache / FOLDER / library):
        return cache / FOLDER / library
    return _compiled([*compiler, *FLAGS], sources, flags, library)


def _may_be_loaded(library: Path) -> bool:
    """Whether a library that was compiled before is there; a cache that can only be read serves as well."""
    return os.path.isfile(library)


def _compiled(command: Sequence[str], sources: Sequence[Path], flags: Sequence[str], library: str) -> Path:
    """The library compiled into the first folder that takes it. Raises `Missing`."""
    why = "no folder for it can be written, neither a cache nor one of temporary files"
    for folder in folders.writable(FOLDER):
        target = folder / library
        try:
            # Of many processes that begin at once, one compiles and the others wait for it.
            with FileLock(target.with_suffix(".lock"), timeout=2 * SECONDS):
                if not _may_be_loaded(target):
                    _compile(command, sources, flags, target)
            return target
        except OSError as error:  # a lock that is not had in time is one too
            why = f"{folder} cannot be written ({error})"
    _warn(f"native kernels cannot be compiled: {why}; PyTorch's own layers compute instead")
    raise Missing(why)


@cache
def _warn(text: str) -> None:
    """Says `text` once, though there are several libraries."""
    logger.warning(text)


def _compiler() -> list[str]:
    """$CXX, which may be several words, or the first that is here."""
    try:
        asked = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise Missing(f"$CXX is {os.environ['CXX']!r}, which is no command ({error})") from None
    if asked and shutil.which(asked[0]) is None:
        raise Missing(f"$CXX is {' '.join(asked)}, and there is no {asked[0]} here")
    found = asked[:1] or [name for name in ("g++", "c++", "clang++") if shutil.which(name)][:1]
    if not found:
        raise Missing("no C++ compiler is here")
    return [str(shutil.which(found[0])), *asked[1:]]


def _version(compiler: list[str]) -> str:
    try:
        return subprocess.run(  # noqa: S603
            [*compiler, "--version"],
            capture_output=True,
            timeout=60,
            check=True,
            encoding=UTF8,
            errors=REPLACE,
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise Missing(f"{' '.join(compiler)} does not run ({error})") from None


def _compile(command: Sequence[str], sources: Sequence[Path], flags: Sequence[str], target: Path) -> None:
    if len(sources) > 1:  # nobody shall wait that long in silence
        logger.warning("compiling native kernels for this processor, once; it takes up to a minute")
    else:
        logger.info("compiling %s, once", sources[0].name)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        objects = [str(Path(folder) / f"{source.stem}.o") for source in sources]
        pairs = zip(sources, objects, strict=True)
        _run(*([*command, "-c", str(source), "-o", written, *flags] for source, written in pairs))
        _run([*command, "-shared", *objects, "-o", str(made), *flags])
        # A library that lost its end with the machine's power would end every process that loads it.
        with made.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(made, target)
        durable.sync_folder(target.parent)


def _run(*commands: list[str]) -> None:
    """All at once; whatever ends this early ends them, and what they have started."""
    with ExitStack() as held:
        running = []
        for command in commands:
            process = subprocess.Popen(  # noqa: S603
                command,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
                encoding=UTF8,
                errors=REPLACE,
            )
            held.enter_context(process)
            held.callback(_end, process)
            running.append(process)
        for process, (compiler, *_) in zip(running, commands, strict=True):
            try:
                _, said = process.communicate(timeout=SECONDS)
            except subprocess.TimeoutExpired:
                raise Missing(f"{compiler} was not done after {SECONDS} s") from None
            if process.returncode:
                first = next((line for line in said.splitlines() if "error" in line), "no reason given")
                raise Missing(f"{compiler} cannot compile them: {first}")


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
