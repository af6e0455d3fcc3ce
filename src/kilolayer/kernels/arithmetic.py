"""In which arithmetic the kernels multiply on this processor, and their library for it.

Activations lie in memory in bf16 either way, and sums are fp32. Processors with AVX512-BF16 multiply two
pairs of bf16 numbers per lane and instruction; some of them only once in two cycles, and so slower than they
multiply fp32, twice a cycle. Then, and where there is no such instruction, the kernels widen what they read.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import sys
from functools import cache
from pathlib import Path

from kilolayer import durable
from kilolayer.kernels.compiled import Missing, built
from kilolayer.kernels.processor import cpu_flags

logger = logging.getLogger(__name__)

NEEDED = ("avx512f", "avx512bw", "avx512dq", "avx512vl")
"""Of the processor, as /proc/cpuinfo calls them."""
TERMS = {"fp32": 1, "bf16": 2}
"""Products that one instruction adds to a lane, in each arithmetic."""


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
        return built("unit", ("-fopenmp", f"-DKILOLAYER_TERMS={TERMS[products()]}"))
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
def products() -> str:
    """ "bf16" or "fp32": what this processor multiplies faster, or KILOLAYER_PRODUCTS in the environment.

    It is timed once, and noted beside the libraries, so that every process chooses alike. Raises `Missing`.
    """
    asked = os.environ.get("KILOLAYER_PRODUCTS", "")
    allowed = ("fp32", "bf16") if "avx512_bf16" in cpu_flags() else ("fp32",)
    if asked:
        if asked not in allowed:
            raise Missing(f"KILOLAYER_PRODUCTS is {asked!r}; allowed here: {', '.join(allowed)}")
        return asked
    if allowed == ("fp32",):
        return "fp32"
    library = built("probe")
    note = library.with_suffix(".products")
    if not note.exists():
        terms = ctypes.CDLL(str(library)).kilolayer_terms()
        durable.write(note, b"bf16" if terms == 2 else b"fp32")
    return note.read_text(encoding="ascii")


def multiplies_bf16_faster() -> bool:
    """Whether this CPU multiplies bf16 faster than fp32.

    Where there is no compiler to time it with: whether it has instructions for it.
    """
    if "amx_bf16" in cpu_flags():
        return True
    try:
        return products() == "bf16"
    except Missing:
        return "avx512_bf16" in cpu_flags()
