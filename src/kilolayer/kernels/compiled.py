"""Native code, compiled at first use into the user's cache and found there from then on."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from filelock import FileLock

logger = logging.getLogger(__name__)

NATIVE = Path(__file__).parent / "native"
NEEDED = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16")
"""Of the processor, as /proc/cpuinfo calls them."""
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")
SECONDS = 300


class Missing(Exception):
    """Why there is no native code here, in words; the plain path serves."""


def unit_library() -> Path:
    """The compiled kernels of whole units. Raises `Missing`, with the same reason at every call."""
    found = _unit_library()
    if isinstance(found, str):
        raise Missing(found)
    return found


@cache
def _unit_library() -> Path | str:
    try:
        _check_processor()
        return _built("unit")
    except Missing as missing:
        logger.info("no native kernels: %s", missing)
        return str(missing)


def _check_processor() -> None:
    if os.environ.get("KILOLAYER_NATIVE") == "0":
        raise Missing("KILOLAYER_NATIVE is 0")
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise Missing(
            f"they are for Linux on x86-64, and this is {platform.system()} on {platform.machine()}"
        )
    lacking = [flag for flag in NEEDED if flag not in cpu_flags()]
    if lacking:
        raise Missing(f"the processor has no {', '.join(lacking)}")


@cache
def cpu_flags() -> frozenset[str]:
    """What the processor can do, in Linux's words; empty where Linux does not say."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            line = next((line for line in file if line.startswith("flags")), ":")
    except OSError:
        return frozenset()
    return frozenset(line.split(":", 1)[1].split())


def _built(name: str) -> Path:
    """The library of `native/<name>.cpp`, for these sources, this compiler and this processor."""
    compiler = _compiler()
    sources = [NATIVE / f"{name}.cpp", *sorted(NATIVE.glob("*.h"))]
    parts = [path.read_bytes() for path in sources]
    parts += [_version(compiler), " ".join(FLAGS).encode(), " ".join(sorted(cpu_flags())).encode()]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    target = folder() / f"{name}-{key}.so"
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Of many processes that begin at once, one compiles and the others wait for it.
        with FileLock(target.with_suffix(".lock"), timeout=2 * SECONDS):
            if not target.exists():
                _compile(compiler, sources[0], target)
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


def _version(compiler: str) -> bytes:
    try:
        return subprocess.run([compiler, "--version"], capture_output=True, timeout=60, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        raise Missing(f"{compiler} does not run ({error})") from None


def _compile(compiler: str, source: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        command = [compiler, *FLAGS, str(source), "-o", str(made)]
        logger.info("compiling %s, once", source.name)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)  # noqa: S603
        except subprocess.TimeoutExpired:
            raise Missing(f"{compiler} was not done after {SECONDS} s") from None
        if done.returncode:
            first = next((line for line in done.stderr.splitlines() if "error" in line), "no reason given")
            raise Missing(f"{compiler} cannot compile them: {first}")
        os.replace(made, target)
