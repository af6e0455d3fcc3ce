"""The limits of this machine: multiplying in bf16, fp16, fp32 and int8, and copying memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from kilolayer.kernels import fp16_peak_flops
from kilolayer.runs.start_environment import processor_name

MATRIX_SIZES = (512, 1024, 2048)
SECONDS_PER_SIZE = 0.4
"""Long enough for the best of many repeats."""


FLOAT_DTYPES = ("bf16", "fp16", "fp32")
INSTRUCTIONS = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_fp16",
    "avx512_vnni",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "sve",
    "bf16",
)


def measure_ceilings(device: torch.device) -> dict[str, float]:
    """FLOP/s of the fastest matrix product in each dtype, and bytes/s (read plus written) of a copy.

    int8 is left out if this PyTorch cannot multiply it. fp16 is listed if our native kernels multiply in it:
    it is the rate of the instruction, since PyTorch's own fp16 product uses fp32 instructions.
    """
    ceilings = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        ceilings[f"{name}_flops"] = max(_matmul_flops(size, dtype, device) for size in MATRIX_SIZES)
    fp16_flops = fp16_peak_flops(torch.get_num_threads()) if device.type == "cpu" else None
    if fp16_flops is not None:
        ceilings["fp16_flops"] = fp16_flops
    with suppress(RuntimeError, AttributeError):
        ceilings["int8_flops"] = max(_int8_flops(size, device) for size in MATRIX_SIZES)
    return ceilings | {"copy_bytes": _copy_bandwidth(device)}


def fastest_dtype(ceilings: dict[str, float], *, int8: bool = False) -> tuple[str, float]:
    """The fastest dtype of these ceilings and its FLOP/s.

    int8 counts only with `int8`, for candidates that compute in it.

    >>> fastest_dtype({"fp32_flops": 1e11, "bf16_flops": 3e11, "copy_bytes": 1e10})
    ('bf16', 300000000000.0)
    """
    names = [name for name in (*FLOAT_DTYPES, *(["int8"] if int8 else [])) if f"{name}_flops" in ceilings]
    return max(((name, ceilings[f"{name}_flops"]) for name in names), key=lambda pair: pair[1])


def describe_machine() -> dict[str, Any]:
    """The processor: name, family and model if the system tells them, and its vector instructions."""
    fields: dict[str, str] = {}
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags", fields.get("Features", "")).split()
    return {
        "name": processor_name(),
        "family_and_model": " ".join(fields[key] for key in ("cpu family", "model") if key in fields),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
    }


def _matmul_flops(size: int, dtype: torch.dtype, device: torch.device) -> float:
    a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / _min_seconds(lambda: torch.mm(a, b, out=out), device)


def _int8_flops(size: int, device: torch.device) -> float:
    a, b = (torch.ones(size, size, dtype=torch.int8, device=device) for _ in range(2))
    return 2 * size**3 / _min_seconds(lambda: torch._int_mm(a, b), device)


def _copy_bandwidth(device: torch.device) -> float:
    source = torch.ones(2**26 if device.type == "cpu" else 2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _min_seconds(lambda: target.copy_(source), device)


def _min_seconds(work: Callable[[], object], device: torch.device) -> float:
    """The seconds of the fastest repeat; on one CPU thread, the process's own CPU seconds."""
    single_thread = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if single_thread else time.perf_counter
    best, start = float("inf"), time.perf_counter()
    work()
    while time.perf_counter() - start < SECONDS_PER_SIZE or best == float("inf"):
        repeat_start = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, clock() - repeat_start)
    return best
