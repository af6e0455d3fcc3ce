"""PyTorch's CPU memory from a pool of exact sizes, where a C++ compiler is: as fast, without malloc's holes.

The plain reference is malloc itself: both hand out memory and change no number.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch

SOURCE = Path(__file__).parent / "native" / "pool.cpp"


@cache
def use() -> str:
    """From now on this process's CPU tensors of 1 KiB and more come from the pool, where it can be built.

    Says in words what was chosen and why. `KILOLAYER_POOL=0` in the environment leaves malloc in place.
    """
    if os.environ.get("KILOLAYER_POOL") == "0":
        return "malloc: KILOLAYER_POOL is 0"
    try:
        library = ctypes.CDLL(str(_built()))
    except _CannotBuildError as error:
        return f"malloc: {error}"
    except OSError as error:
        return f"malloc: the pool cannot be loaded ({error})"
    library.kilolayer_pool_use()
    return "pool of exact sizes: no holes, resident memory stays at its peak use"


class _CannotBuildError(Exception):
    pass


def _built() -> Path:
    """The library, compiled once for each PyTorch and source."""
    if sys.platform != "linux":
        raise _CannotBuildError("the pool is for Linux")
    content = SOURCE.read_bytes()
    key = hashlib.sha256(content + torch.__version__.encode()).hexdigest()[:16]
    target = _folder() / f"pool-{key}.so"
    if not target.exists():
        _compile(target)
    return target


def _folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "kilolayer" / "native"


def _compile(target: Path) -> None:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise _CannotBuildError("no C++ compiler is here")
    base = Path(torch.__file__).parent
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / target.name
            flags = ["-O2", "-std=c++20", "-fPIC", "-shared", f"-I{base / 'include'}", str(SOURCE)]
            command = [compiler, *flags, "-o", str(made), f"-L{base / 'lib'}", "-lc10"]
            subprocess.run(command, check=True, capture_output=True, timeout=120)  # noqa: S603 - our own words
            os.replace(made, target)
    except OSError as error:
        raise _CannotBuildError(f"{target.parent} cannot be written ({error.strerror})") from None
    except subprocess.SubprocessError:
        raise _CannotBuildError(f"{compiler} does not compile it") from None
