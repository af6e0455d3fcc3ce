"""The dtype in which the native kernels multiply on this processor, and the library compiled for that dtype.

Activations are bf16 in memory whatever the kernels multiply; sums over a batch are fp32 and fp64. A processor
with AVX512-BF16 multiplies two pairs of bf16 numbers per lane and instruction, but some issue that
instruction only every other cycle and so are slower in bf16 than in fp32. A processor with AVX512-FP16
multiplies twice as many fp16 as fp32 numbers per instruction. The kernels convert what they read.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import sys
from functools import cache

import torch

from kilolayer.errors import InputError
from kilolayer.kernels.cpu_features import cpu_flags
from kilolayer.kernels.native_build import NativeLibrary, cache_key, is_disabled, load_library
from kilolayer.kernels.native_cache import NativeUnavailable, load_cached

logger = logging.getLogger(__name__)

REQUIRED_CPU_FLAGS = ("avx512f", "avx512bw", "avx512dq", "avx512vl")
"""What the processor must support, by the names of /proc/cpuinfo."""
MUL_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The dtypes that the kernels can multiply in."""
UNIT_SOURCES = ("forward", "backward", "inference")
"""The C++ sources of the kernels for whole units."""
PROBE = NativeLibrary("probe", ("-fopenmp",))
"""It times the multiplications."""


def load_unit_library() -> ctypes.CDLL:
    """The loaded library of kernels. Raises `NativeUnavailable`, at every call with the same reason."""
    library = _load_unit_library()
    if isinstance(library, str):
        raise NativeUnavailable(library)
    return library


@cache
def _load_unit_library() -> ctypes.CDLL | str:
    try:
        _check_processor()
        flags = ("-fopenmp", f"-DKILOLAYER_{mul_dtype().upper()}")
        return load_library(NativeLibrary("unit", flags, UNIT_SOURCES))
    except NativeUnavailable as missing:
        logger.info("no native kernels: %s", missing)
        return str(missing)


def _check_processor() -> None:
    if is_disabled("KILOLAYER_NATIVE"):
        raise NativeUnavailable("KILOLAYER_NATIVE is 0")
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise NativeUnavailable(
            f"they are for Linux on x86-64, and this is {platform.system()} on {platform.machine()}"
        )
    missing_flags = [flag for flag in REQUIRED_CPU_FLAGS if flag not in cpu_flags()]
    if missing_flags:
        raise NativeUnavailable(f"the processor has no {', '.join(missing_flags)}")


@cache
def mul_dtype() -> str:
    """The dtype in which the native kernels multiply: the fastest of `MUL_DTYPES` on this processor.

    The rates are timed once and the result is stored beside the libraries, so that every process chooses the
    same dtype. The environment variable KILOLAYER_PRODUCTS overrides it.

    Raises:
        NativeUnavailable: there are no native kernels here.
        InputError: KILOLAYER_PRODUCTS names a dtype that this processor cannot multiply.
    """
    requested = os.environ.get("KILOLAYER_PRODUCTS", "")
    allowed = ["fp32", *(name for name in MUL_DTYPES if f"avx512_{name}" in cpu_flags())]
    if requested:
        if requested not in allowed:
            raise InputError(f"KILOLAYER_PRODUCTS is {requested!r}; allowed here: {', '.join(allowed)}")
        return requested
    if allowed == ["fp32"]:
        return "fp32"
    _load_probe()  # before the cache is locked for the choice
    return load_cached(
        f"{cache_key(PROBE)}.products",
        lambda content: _allowed_dtype(content, allowed),
        lambda folder: max(allowed, key=peak_multiply_adds).encode(),
    )


def _allowed_dtype(content: bytes, allowed: list[str]) -> str:
    name = content.decode()
    if name not in allowed:
        raise ValueError(f"{name!r} is not allowed here")
    return name


def peak_multiply_adds(name: str, threads: int = 1) -> float:
    """The peak rate of multiply-adds per second in one of `MUL_DTYPES`, measured now.

    It is 0 if the processor has no such instruction. Raises `NativeUnavailable`.
    """
    probe = _load_probe().kilolayer_peak_multiply_adds
    probe.argtypes, probe.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_double
    per_second: float = probe(name.encode(), threads)
    return per_second


def fp16_peak_flops(threads: int) -> float | None:
    """The peak FLOP/s of fp16 multiply-adds, or None unless the native kernels multiply in fp16 here."""
    try:
        return 2 * peak_multiply_adds("fp16", threads) if mul_dtype() == "fp16" else None
    except NativeUnavailable:
        return None


@cache
def _load_probe() -> ctypes.CDLL:
    return load_library(PROBE)


def multiplies_bf16_faster() -> bool:
    """Whether this CPU multiplies bf16 faster than fp32, by measurement: AVX512-BF16 alone does not imply it.

    Without a compiler nothing can be measured; then it is true for processors with AMX.
    """
    if "amx_bf16" in cpu_flags():
        return True
    try:
        return mul_dtype() == "bf16"
    except NativeUnavailable:
        return False
