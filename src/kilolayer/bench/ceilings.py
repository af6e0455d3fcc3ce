"""What this machine can do at the most: multiplying in bf16 and fp32, and moving memory."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

SIZES = (512, 1024, 2048)
SECONDS = 0.4
"""For each size: long enough for a best of many."""


def ceilings(device: torch.device) -> dict[str, float]:
    """FLOP/s of the fastest matrix product in each precision, and bytes/s read plus written by a copy."""
    found = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        found[f"{name}_flops"] = max(_product(size, dtype, device) for size in SIZES)
    return found | {"copy_bytes": _copy(device)}


def _product(size: int, dtype: torch.dtype, device: torch.device) -> float:
    a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / _least(lambda: torch.mm(a, b, out=out), device)


def _copy(device: torch.device) -> float:
    source = torch.ones(2**26 if device.type == "cpu" else 2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _least(lambda: target.copy_(source), device)


def _least(work: Callable[[], object], device: torch.device) -> float:
    """The seconds of the fastest repeat; on one thread of a CPU its own processor seconds."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    best, began = float("inf"), time.perf_counter()
    work()
    while time.perf_counter() - began < SECONDS or best == float("inf"):
        started = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, clock() - started)
    return best
