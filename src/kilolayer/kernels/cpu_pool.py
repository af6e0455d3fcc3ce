"""CPU memory for PyTorch from a pool of exact block sizes: as fast as malloc, without fragmentation.

Without a C++ compiler malloc serves. Both only hand out memory and change no number.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from kilolayer.kernels.native_build import NativeLibrary, is_disabled, load_library
from kilolayer.kernels.native_cache import NativeUnavailable


def use_cpu_pool(device: torch.device) -> str:
    """Serves CPU tensors of 1 KiB and more from the pool from now on, if `device` is the CPU.

    Returns what was chosen, and why. KILOLAYER_POOL=0 in the environment keeps malloc. Call it before large
    tensors are allocated.

    >>> use_cpu_pool(torch.device("cuda"))
    "PyTorch's allocator for cuda"
    """
    return install_pool() if device.type == "cpu" else f"PyTorch's allocator for {device.type}"


@cache
def install_pool() -> str:
    """Installs the pool for this process, once; returns what was chosen, and why."""
    if is_disabled("KILOLAYER_POOL"):
        return "malloc: KILOLAYER_POOL is 0"
    try:
        library = load_library(_pool_library())
    except NativeUnavailable as missing:
        return f"malloc: {missing}"
    library.kilolayer_pool_use()
    return "pool of exact sizes: no holes, resident memory stays at its peak use"


def _pool_library() -> NativeLibrary:
    """The library, compiled once for every PyTorch version, since it includes PyTorch's headers."""
    base = Path(torch.__file__).parent
    flags = ("-std=c++20", f"-I{base / 'include'}", f"-L{base / 'lib'}", "-lc10")
    return NativeLibrary("pool", flags, variant=torch.__version__)
