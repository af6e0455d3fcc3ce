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

from kilolayer import durable
from kilolayer.errors import InputError
from kilolayer.kernels.compiled import Missing, built, switched_off
from kilolayer.kernels.processor import cpu_flags

logger = logging.getLogger(__name__)

NEEDED = ("avx512f", "avx512bw", "avx512dq", "avx512vl")
"""Of the processor, as /proc/cpuinfo calls them."""
PRODUCTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What the kernels can multiply, and the type of its numbers."""
PARTS = ("forward", "backward", "infer")
"""The sources of the kernels of whole units."""


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
        return built("unit", ("-fopenmp", f"-DKILOLAYER_{products().upper()}"), parts=PARTS)
    except Missing as missing:
        logger.info("no native kernels: %s", missing)
        return str(missing)


def _check_processor() -> None:
    if switched_off("KILOLAYER_NATIVE"):
        raise Missing("KILOLAYER_NATIVE is 0")
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise Missing(
            f"they are for Linux on x86-64, and this is {platform.system()} on {platform.machine()}"
        )
    lacking = [flag for flag in NEEDED if flag not in cpu_flags()]
    if lacking:
        raise Missing(f"the processor has no {', '.join(lacking)}")


@cache
def products() -> str:
    """One of `PRODUCTS`: what this processor multiplies fastest, or KILOLAYER_PRODUCTS in the environment.

    It is timed once, and noted beside the libraries, so that every process chooses alike. Raises `Missing`,
    and `InputError` where the environment asks for what there is not.
    """
    asked = os.environ.get("KILOLAYER_PRODUCTS", "")
    allowed = ["fp32", *(name for name in PRODUCTS if f"avx512_{name}" in cpu_flags())]
    if asked:
        if asked not in allowed:
            raise InputError(f"KILOLAYER_PRODUCTS is {asked!r}; allowed here: {', '.join(allowed)}")
        return asked
    if allowed == ["fp32"]:
        return "fp32"
    note = _probe().with_suffix(".products")
    noted = note.read_text(encoding="utf-8", errors="replace") if note.exists() else ""
    if noted not in allowed:
        noted = max(allowed, key=multiply_adds)
        try:
            durable.write(note, noted.encode())
        except InputError as error:
            raise Missing(str(error)) from None
    return noted


def multiply_adds(name: str, threads: int = 1) -> float:
    """How many of them per second the processor can do at most in one of `PRODUCTS`, timed now; 0 where it
    has no instruction for them. Raises `Missing`.
    """
    timed = ctypes.CDLL(str(_probe())).kilolayer_multiply_adds
    timed.argtypes, timed.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_double
    found: float = timed(name.encode(), threads)
    return found


def _probe() -> Path:
    return built("probe", ("-fopenmp",))


def multiplies_bf16_faster() -> bool:
    """Whether this CPU multiplies bf16 faster than fp32: what was timed, for some with AVX512-BF16 do not.

    Without a compiler to time it with: whether it has AMX.
    """
    if "amx_bf16" in cpu_flags():
        return True
    try:
        return products() == "bf16"
    except Missing:
        return False
