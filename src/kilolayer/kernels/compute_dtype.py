"""In which arithmetic the kernels multiply on this processor, and their library for it.

Activations lie in memory in bf16 whichever it is, and what is added over a batch is fp32 and fp64. Processors
with AVX512-BF16 multiply two pairs of bf16 numbers per lane and instruction; some of them only once in two
cycles, and so slower than they multiply fp32, twice a cycle. Those with AVX512-FP16 multiply twice as many
fp16 numbers as fp32 ones. The kernels convert what they read.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import sys
from functools import cache
from pathlib import Path

import torch

from kilolayer.errors import InputError
from kilolayer.kernels.cpu_features import cpu_flags
from kilolayer.kernels.native_build import NativeUnavailable, compile_library, is_disabled
from kilolayer.system import durable

logger = logging.getLogger(__name__)

REQUIRED_CPU_FLAGS = ("avx512f", "avx512bw", "avx512dq", "avx512vl")
"""Of the processor, as /proc/cpuinfo calls them."""
MUL_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What the kernels can multiply, and the type of its numbers."""
UNIT_SOURCES = ("forward", "backward", "inference")
"""The sources of the kernels of whole units."""


def unit_library_path() -> Path:
    """The compiled kernels of whole units. Raises `Missing`, with the same reason at every call."""
    path = _unit_library_path()
    if isinstance(path, str):
        raise NativeUnavailable(path)
    return path


@cache
def _unit_library_path() -> Path | str:
    try:
        _check_processor()
        return compile_library(
            "unit", ("-fopenmp", f"-DKILOLAYER_{mul_dtype().upper()}"), source_names=UNIT_SOURCES
        )
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
    """One of `PRODUCTS`: what this processor multiplies fastest, or KILOLAYER_PRODUCTS in the environment.

    It is timed once, and noted beside the libraries, so that every process chooses alike. Raises `Missing`,
    and `InputError` where the environment asks for what there is not.
    """
    requested = os.environ.get("KILOLAYER_PRODUCTS", "")
    allowed = ["fp32", *(name for name in MUL_DTYPES if f"avx512_{name}" in cpu_flags())]
    if requested:
        if requested not in allowed:
            raise InputError(f"KILOLAYER_PRODUCTS is {requested!r}; allowed here: {', '.join(allowed)}")
        return requested
    if allowed == ["fp32"]:
        return "fp32"
    cache_file = _probe_library().with_suffix(".products")
    fastest = cache_file.read_text(encoding="utf-8", errors="replace") if cache_file.exists() else ""
    if fastest not in allowed:
        fastest = max(allowed, key=peak_multiply_adds)
        try:
            durable.write_file(cache_file, fastest.encode())
        except InputError as error:
            raise NativeUnavailable(str(error)) from None
    return fastest


def peak_multiply_adds(name: str, threads: int = 1) -> float:
    """How many of them per second the processor can do at most in one of `PRODUCTS`, timed now; 0 where it
    has no instruction for them. Raises `Missing`.
    """
    probe = ctypes.CDLL(str(_probe_library())).kilolayer_peak_multiply_adds
    probe.argtypes, probe.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_double
    per_second: float = probe(name.encode(), threads)
    return per_second


def _probe_library() -> Path:
    return compile_library("probe", ("-fopenmp",))


def multiplies_bf16_faster() -> bool:
    """Whether this CPU multiplies bf16 faster than fp32: what was timed, for some with AVX512-BF16 do not.

    Without a compiler to time it with: whether it has AMX.
    """
    if "amx_bf16" in cpu_flags():
        return True
    try:
        return mul_dtype() == "bf16"
    except NativeUnavailable:
        return False
