"""PyTorch's CPU memory from a pool of exact sizes, where a C++ compiler is: as fast, without malloc's holes.

The plain reference is malloc itself: both hand out memory and change no number.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch

from kilolayer.kernels.compiled import Missing, built, switched_off


@cache
def use() -> str:
    """From now on this process's CPU tensors of 1 KiB and more come from the pool, where it can be built.

    Says in words what was chosen and why. `KILOLAYER_POOL=0` in the environment leaves malloc in place.
    """
    if switched_off("KILOLAYER_POOL"):
        return "malloc: KILOLAYER_POOL is 0"
    try:
        library = ctypes.CDLL(str(_built()))
    except Missing as missing:
        return f"malloc: {missing}"
    except OSError as error:
        return f"malloc: the pool cannot be loaded ({error})"
    library.kilolayer_pool_use()
    return "pool of exact sizes: no holes, resident memory stays at its peak use"


def _built() -> Path:
    """The library, compiled once for each PyTorch, whose headers it reads."""
    base = Path(torch.__file__).parent
    flags = ("-std=c++20", f"-I{base / 'include'}", f"-L{base / 'lib'}", "-lc10")
    return built("pool", flags, of=torch.__version__)
