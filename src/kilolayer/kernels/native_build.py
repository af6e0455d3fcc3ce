"""Native code: compiled at first use into the user's cache, and loaded from there afterwards.

If no cache is writable, it is compiled into a private folder of temporary files.
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

from kilolayer.errors import InputError
from kilolayer.kernels.cpu_features import cpu_flags
from kilolayer.system import durable, folders

logger = logging.getLogger(__name__)

SOURCE_FOLDER = Path(__file__).parent / "native"
COMPILER_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC")
TIMEOUT_SECONDS = 300
UTF8, REPLACE = "utf-8", "replace"
"""A compiler quotes in UTF-8 even if our own locale is ASCII."""
CACHE_FOLDER = "native"
"""The folder of the cache that holds the libraries."""


class NativeUnavailable(Exception):
    """There is no native code here; the message is the reason. PyTorch's layers compute instead."""


def is_disabled(name: str) -> bool:
    """Whether the environment variable `name` is 0. Raises `InputError` for values other than 0 and 1."""
    setting = os.environ.get(name) or "1"
    if setting not in ("0", "1"):
        raise InputError(f"{name} is {setting!r} in the environment; allowed: 0, 1")
    return setting == "0"


def compile_library(
    name: str, flags: Sequence[str] = (), *, source_names: Sequence[str] = (), variant: str = ""
) -> Path:
    """The library of `native/<name>.cpp` for these sources, flags, this compiler and this processor.

    `source_names` lists several sources, which are compiled in parallel. `variant` names what else the
    library depends on, such as PyTorch's version. Raises `NativeUnavailable`.
    """
    if sys.platform != "linux":
        raise NativeUnavailable(f"native code is for Linux, and this is {sys.platform}")
    compiler = _compiler()
    sources = [SOURCE_FOLDER / f"{part}.cpp" for part in source_names or (name,)]
    words = [_version(compiler), *COMPILER_FLAGS, *flags, variant, *sorted(cpu_flags())]
    contents = [path.read_bytes() for path in (*sources, *sorted(SOURCE_FOLDER.glob("*.h")))]
    key = hashlib.sha256(b"\0".join([*contents, *(word.encode() for word in words)])).hexdigest()[:16]
    library = f"{name}-{key}.so"
    cache = folders.cache_folder()
    if cache and _is_compiled(cache / CACHE_FOLDER / library):
        return cache / CACHE_FOLDER / library
    return _compile_into_first_folder([*compiler, *COMPILER_FLAGS], sources, flags, library)


def _is_compiled(library: Path) -> bool:
    """Whether the library exists; a read-only cache serves too."""
    return os.path.isfile(library)


def _compile_into_first_folder(
    command: Sequence[str], sources: Sequence[Path], flags: Sequence[str], library: str
) -> Path:
    """Compiles the library into the first writable folder. Raises `NativeUnavailable`."""
    reason = "no folder for it can be written, neither a cache nor one of temporary files"
    for folder in folders.writable_folders(CACHE_FOLDER):
        target = folder / library
        try:
            # When many processes start at once, one compiles and the others wait for it.
            with FileLock(target.with_suffix(".lock"), timeout=2 * TIMEOUT_SECONDS):
                if not _is_compiled(target):
                    _compile(command, sources, flags, target)
            return target
        except OSError as error:  # a timeout of the lock is one too
            reason = f"{folder} cannot be written ({error})"
    _warn(f"native kernels cannot be compiled: {reason}; PyTorch's own layers compute instead")
    raise NativeUnavailable(reason)


@cache
def _warn(text: str) -> None:
    """Logs `text` once, though there are several libraries."""
    logger.warning(text)


def _compiler() -> list[str]:
    """$CXX, which may be several words, or the first compiler that is installed."""
    try:
        requested = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise NativeUnavailable(f"$CXX is {os.environ['CXX']!r}, which is not a command ({error})") from None
    if requested and shutil.which(requested[0]) is None:
        raise NativeUnavailable(f"$CXX is {' '.join(requested)}, and {requested[0]} is not installed")
    compiler = requested[:1] or [name for name in ("g++", "c++", "clang++") if shutil.which(name)][:1]
    if not compiler:
        raise NativeUnavailable("no C++ compiler is installed")
    return [str(shutil.which(compiler[0])), *requested[1:]]


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
        raise NativeUnavailable(f"{' '.join(compiler)} does not run ({error})") from None


def _compile(command: Sequence[str], sources: Sequence[Path], flags: Sequence[str], target: Path) -> None:
    if len(sources) > 1:  # a minute without a word would look like a hang
        logger.warning("compiling native kernels for this processor, once; it takes up to a minute")
    else:
        logger.info("compiling %s, once", sources[0].name)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        temporary = Path(folder) / target.name
        objects = [str(Path(folder) / f"{source.stem}.o") for source in sources]
        pairs = zip(sources, objects, strict=True)
        _run(*([*command, "-c", str(source), "-o", file, *flags] for source, file in pairs))
        _run([*command, "-shared", *objects, "-o", str(temporary), *flags])
        # A library truncated by a power failure would crash every process that loads it.
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        durable.sync_folder(target.parent)


def _run(*commands: list[str]) -> None:
    """Runs all commands in parallel; if this ends early, it ends them and their child processes."""
    with ExitStack() as stack:
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
            stack.enter_context(process)
            stack.callback(_end, process)
            running.append(process)
        for process, (compiler, *_) in zip(running, commands, strict=True):
            try:
                _, errors = process.communicate(timeout=TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                raise NativeUnavailable(f"{compiler} did not finish within {TIMEOUT_SECONDS} s") from None
            if process.returncode:
                first_error = next(
                    (line for line in errors.splitlines() if "error" in line), "no reason given"
                )
                raise NativeUnavailable(f"{compiler} cannot compile our kernels: {first_error}")


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
