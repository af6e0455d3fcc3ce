"""PyTorch's CPU memory from a pool of exact sizes, where a C++ compiler is: as fast, without malloc's holes.

The plain reference is malloc itself: both hand out memory and change no number.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch

from kilolayer.kernels.native_build import NativeUnavailable, compile_library, is_disabled


@cache
def install_pool() -> str:
    """From now on this process's CPU tensors of 1 KiB and more come from the pool, where it can be built.

    Says in words what was chosen and why. `KILOLAYER_POOL=0` in the environment leaves malloc in place.
    """
    if is_disabled("KILOLAYER_POOL"):
        return "malloc: KILOLAYER_POOL is 0"
    try:
        library = ctypes.CDLL(str(_pool_library()))
    except NativeUnavailable as missing:
        return f"malloc: {missing}"
    except OSError as error:
        return f"malloc: the pool cannot be loaded ({error})"
    library.kilolayer_pool_use()
    return "pool of exact sizes: no holes, resident memory stays at its peak use"


def _pool_library() -> Path:
    """The library, compiled once for each PyTorch, whose headers it reads."""
    base = Path(torch.__file__).parent
    flags = ("-std=c++20", f"-I{base / 'include'}", f"-L{base / 'lib'}", "-lc10")
    return compile_library("pool", flags, variant=torch.__version__)
