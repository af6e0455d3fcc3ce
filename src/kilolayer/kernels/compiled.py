"""Native code, compiled at first use into the user's cache and found there from then on."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from kilolayer.kernels.processor import cpu_flags

logger = logging.getLogger(__name__)

NATIVE = Path(__file__).parent / "native"
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared")
SECONDS = 300


class Missing(Exception):
    """Why there is no native code here, in words; the plain path serves."""


def built(name: str, flags: Sequence[str] = (), *, of: str = "") -> Path:
    """The library of `native/<name>.cpp`, for these sources, flags, this compiler and this processor.

    `of` says what else it was built for, as PyTorch's version. Raises `Missing`.
    """
    if sys.platform != "linux":
        raise Missing(f"native code is for Linux, and this is {sys.platform}")
    compiler = _compiler()
    sources = [NATIVE / f"{name}.cpp", *sorted(NATIVE.glob("*.h"))]
    words = [_version(compiler), *FLAGS, *flags, of, *sorted(cpu_flags())]
    parts = [path.read_bytes() for path in sources] + [word.encode() for word in words]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    target = folder() / f"{name}-{key}.so"
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Of many processes that begin at once, one compiles and the others wait for it.
        with FileLock(target.with_suffix(".lock"), timeout=2 * SECONDS):
            if not target.exists():
                _compile([compiler, *FLAGS, str(sources[0]), *flags], target)
    except OSError as error:  # a lock that is not had in time is one too
        raise Missing(f"{target.parent} cannot be written ({error})") from None
    return target


def folder() -> Path:
    """Where libraries are kept: $XDG_CACHE_HOME or ~/.cache, then kilolayer/native."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "kilolayer" / "native"


def _compiler() -> str:
    wanted = os.environ.get("CXX", "g++"), "c++", "clang++"
    found = next(filter(None, map(shutil.which, wanted)), None)
    if found is None:
        raise Missing("no C++ compiler is here")
    return found


def _version(compiler: str) -> str:
    try:
        return subprocess.run(  # noqa: S603
            [compiler, "--version"], capture_output=True, timeout=60, check=True, text=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise Missing(f"{compiler} does not run ({error})") from None


def _compile(command: list[str], target: Path) -> None:
    compiler, source = command[0], next(word for word in command if word.endswith(".cpp"))
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        logger.info("compiling %s, once", Path(source).name)
        try:
            done = subprocess.run(  # noqa: S603
                [*command, "-o", str(made)], capture_output=True, text=True, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            raise Missing(f"{compiler} was not done after {SECONDS} s") from None
        if done.returncode:
            first = next((line for line in done.stderr.splitlines() if "error" in line), "no reason given")
            raise Missing(f"{compiler} cannot compile them: {first}")
        os.replace(made, target)
