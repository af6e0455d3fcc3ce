"""Native code: compiled at first use, kept in the user's cache, and loaded from there afterwards.

A compiler runs in a process group of its own beside a watchdog, which ends the group when this process is
gone, killed even: the watchdog waits for the end of a pipe that this process holds open.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import logging
import os
import selectors
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from kilolayer.errors import InputError
from kilolayer.kernels.cpu_features import cpu_flags
from kilolayer.kernels.native_cache import NativeUnavailable, load_cached, warn
from kilolayer.system.message_text import error_text, truncate

logger = logging.getLogger(__name__)

SOURCE_FOLDER = Path(__file__).parent / "native"
COMPILER_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC")
VERSION_SECONDS, COMPILE_SECONDS = 30, 300
MAX_OUTPUT = 2**20
"""A compiler that prints more is ended."""
ADVICE = "set $CXX to a g++ or clang++ that works; PyTorch's own layers compute until then"
WATCHED = """
umask 077
exec 3<&0 </dev/null
{ read -r end <&3; kill -KILL 0; } >/dev/null 2>&1 &
"$@" 3<&-
status=$?
{ kill -KILL $!; wait $!; } >/dev/null 2>&1
exit $status
"""
"""Runs the command in its arguments, and ends its process group where standard input ends before that."""

_unusable: dict[str, str] = {}
"""Compilers that did not answer, and why: they are not asked again for the next library."""
_open_libraries: list[int] = []
"""Held open: glibc takes a library of a number under /proc/self/fd for one that it has loaded already."""


def is_disabled(name: str) -> bool:
    """Whether the environment variable `name` is 0. Raises `InputError` for values other than 0 and 1."""
    setting = os.environ.get(name) or "1"
    if setting not in ("0", "1"):
        raise InputError(f"{name} is {setting!r} in the environment; allowed: 0, 1")
    return setting == "0"


@dataclass(frozen=True)
class NativeLibrary:
    """A library of `native/<name>.cpp`.

    flags: of the compiler, beside `COMPILER_FLAGS`.
    source_names: several sources in place of one; they are compiled in parallel.
    variant: what else the library depends on, such as PyTorch's version.
    """

    name: str
    flags: tuple[str, ...] = ()
    source_names: tuple[str, ...] = ()
    variant: str = ""

    @property
    def sources(self) -> list[Path]:
        """The files of its source."""
        return [SOURCE_FOLDER / f"{part}.cpp" for part in self.source_names or (self.name,)]


def load_library(library: NativeLibrary) -> ctypes.CDLL:
    """The loaded library, for this compiler and this processor. Raises `NativeUnavailable`."""
    return load_cached(
        f"{cache_key(library)}.so", load_bytes, lambda folder: _compile(_compiler(), library, folder)
    )


def cache_key(library: NativeLibrary) -> str:
    """The library's name, and a hash of its sources, its flags, the compiler, the system and the processor.

    Raises `NativeUnavailable` where there is no compiler.
    """
    if sys.platform != "linux":
        raise NativeUnavailable(f"native code is for Linux, and this is {sys.platform}")
    compiler = _compiler()
    words = [_version(compiler), *compiler[1:], *COMPILER_FLAGS, *library.flags, library.variant]
    words += [os.uname().machine, _c_library(), *sorted(cpu_flags())]
    files = (*library.sources, *sorted(SOURCE_FOLDER.glob("*.h")))
    content = b"\0".join([*(path.read_bytes() for path in files), *map(os.fsencode, words)])
    return f"{library.name}-{hashlib.sha256(content).hexdigest()[:16]}"


def _c_library() -> str:
    """The C library: one folder may be the home of machines with several."""
    with suppress(ValueError, OSError):
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    return ""


def load_bytes(content: bytes) -> ctypes.CDLL:
    """Loads a library from memory: nothing can change it, neither before this nor while it is used.

    Raises `OSError` where the system cannot load it.
    """
    _check_complete(content)
    descriptor = os.memfd_create("kilolayer", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK)
        library = ctypes.CDLL(f"/proc/self/fd/{descriptor}")
    except BaseException:
        os.close(descriptor)
        raise
    _open_libraries.append(descriptor)
    return library


def _check_complete(content: bytes) -> None:
    """Raises `OSError` for a library without its end, as a linker leaves it: to load it is a bus error."""
    if len(content) < 64 or content[:6] != b"\x7fELF\x02\x01":
        raise OSError("it is no library of 64 bits")
    table, size, count = struct.unpack_from("<32xQ14xHH", content)
    for at in range(table, table + size * count, size or 1):
        segment = content[at : at + 40]
        if len(segment) < 40 or sum(struct.unpack("<8xQ16xQ", segment)) > len(content):
            raise OSError("its end is missing")


def _compiler() -> list[str]:
    """$CXX, which may be several words, or the first compiler that is installed."""
    setting = os.environ.get("CXX", "")
    try:
        requested = shlex.split(setting)
    except ValueError as error:
        raise NativeUnavailable(f"$CXX is {setting!r}, which is not a command ({error})") from None
    if requested and shutil.which(requested[0]) is None:
        raise NativeUnavailable(f"$CXX is {setting!r}, and {requested[0]!r} is not installed")
    names = requested[:1] or [name for name in ("g++", "c++", "clang++") if shutil.which(name)][:1]
    if not names:
        raise NativeUnavailable("no C++ compiler is installed: install g++, or set $CXX to one")
    compiler = [os.path.abspath(str(shutil.which(names[0]))), *requested[1:]]
    if reason := _unusable.get(shlex.join(compiler)):
        raise NativeUnavailable(reason)
    return compiler


def _version(compiler: list[str]) -> str:
    try:
        (version,) = _run([[*compiler, "--version"]], VERSION_SECONDS, errors=False)
        if version.strip():
            return version
        reason = "says nothing"
    except (CommandFailed, OSError) as error:
        reason = error_text(error)
    raise _refuse(compiler, f"{shlex.join(compiler)} --version {reason}; {ADVICE}")


def _refuse(compiler: list[str], reason: str) -> NativeUnavailable:
    """The error that says why; the compiler is not asked again for the next library."""
    _unusable[shlex.join(compiler)] = reason
    warn(reason)
    return NativeUnavailable(reason)


def _compile(compiler: list[str], library: NativeLibrary, folder: Path) -> bytes:
    """The compiled library; all temporary files are in `folder`. Raises `NativeUnavailable` and `OSError`."""
    if len(library.sources) > 1:  # a minute without a word would look like a hang
        logger.warning("compiling native kernels for this processor, once; it takes up to a minute")
    else:
        logger.info("compiling %s, once", library.sources[0].name)
    command = [*compiler, *COMPILER_FLAGS]
    objects = [str(folder / f"{source.stem}.o") for source in library.sources]
    target = folder / "library.so"
    names = ", ".join(source.name for source in library.sources)
    # A compiler that is killed leaves its own temporary files.
    environment = {"TMPDIR": str(folder)}
    pairs = zip(library.sources, objects, strict=True)
    steps = [
        [[*command, "-c", str(source), "-o", file, *library.flags] for source, file in pairs],
        [[*command, "-shared", *objects, "-o", str(target), *library.flags]],
    ]
    try:
        for commands in steps:
            _run(commands, COMPILE_SECONDS, environment)
        return target.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        reason = "made no library"
    except CommandFailed as error:
        reason = str(error)
        if error.is_silent:
            raise _refuse(compiler, f"{shlex.join(compiler)}, at {names}, {reason}; {ADVICE}") from None
    raise NativeUnavailable(
        f"{shlex.join(compiler)} cannot compile {names} ({SOURCE_FOLDER}): {reason}; {ADVICE}"
    )


class CommandFailed(Exception):
    """A command ended with an error, or did not end (`is_silent`)."""

    def __init__(self, reason: str, is_silent: bool = False) -> None:
        super().__init__(reason)
        self.is_silent = is_silent


def _run(
    commands: Sequence[list[str]],
    seconds: float,
    environment: Mapping[str, str] = MappingProxyType({}),
    *,
    errors: bool = True,
) -> list[str]:
    """Runs all commands in parallel and returns what each printed, as an error or else as output.

    If this ends early, or this process is killed, it ends them and their child processes. Raises
    `CommandFailed`, and `OSError` where a disk is full.
    """
    deadline = time.monotonic() + seconds
    with ExitStack() as stack:
        gone, alive = os.pipe()
        stack.callback(os.close, alive)
        running = []
        try:
            for command in commands:
                process = subprocess.Popen(  # noqa: S603
                    ["/bin/sh", "-c", WATCHED, "sh", *command],
                    env={**os.environ, "LC_ALL": "C", **environment},  # its errors are to be in English
                    stdin=gone,
                    stdout=subprocess.DEVNULL if errors else subprocess.PIPE,
                    stderr=subprocess.PIPE if errors else subprocess.DEVNULL,
                    start_new_session=True,
                )
                stack.enter_context(process)
                stack.callback(_end, process)
                running.append(process)
        finally:
            os.close(gone)
        return [_output(process, deadline, seconds) for process in running]


def _output(process: subprocess.Popen[bytes], deadline: float, seconds: float) -> str:
    """What the process prints until it ends. Raises `CommandFailed`."""
    stream = next(stream for stream in (process.stderr, process.stdout) if stream)
    output = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while selector.select(max(0, deadline - time.monotonic())):
            part = os.read(stream.fileno(), 2**16)
            output += part
            if len(output) > MAX_OUTPUT:
                raise CommandFailed("prints without end", is_silent=True)
            if not part:
                break
    try:
        status = process.wait(max(0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise CommandFailed(f"did not finish within {seconds:g} s", is_silent=True) from None
    text = output.decode("utf-8", "replace")  # a compiler quotes in UTF-8 even if our own locale is ASCII
    if status:
        lines = [line for line in text.splitlines() if "error" in line.lower() or "illed" in line]
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):  # another folder may have room
            if os.strerror(number) in text:
                raise OSError(number, os.strerror(number))
        raise CommandFailed(truncate(lines[0], 300) if lines else f"ended with status {status}")
    return text


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
