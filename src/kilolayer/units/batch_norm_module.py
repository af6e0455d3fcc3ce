"""Batch normalisation as PyTorch's own module, so that tools for nn.BatchNorm2d (tracing, fusing) know it.

The state dict has no batch counter. Only a cumulative mean reads that counter (`momentum` None, as set by
`torch.optim.swa_utils.update_bn`); it counts from the last `reset_running_stats` or the last loading.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

COUNTER = "num_batches_tracked"


def make_batch_norm(channels: int) -> nn.BatchNorm2d:
    """BN with ε = 1e-5 and momentum 0.1. It loads state dicts with and without a batch counter."""
    norm = nn.BatchNorm2d(channels)
    norm.register_buffer(COUNTER, norm.num_batches_tracked, persistent=False)
    # Version 1 had no counter: a BN or SyncBatchNorm of PyTorch that loads this state adds its own counter.
    norm._version = 1
    norm.register_load_state_dict_pre_hook(_reset_batch_counter)  # type: ignore[no-untyped-call]
    return norm


def _reset_batch_counter(norm: nn.BatchNorm2d, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Reset the counter after loading, and ignore a counter in the loaded state."""
    state.pop(prefix + COUNTER, None)
    counter, mean = norm.num_batches_tracked, state.get(prefix + "running_mean")
    if counter is not None and counter.is_meta and isinstance(mean, Tensor):
        norm.num_batches_tracked = torch.zeros_like(counter, device=mean.device)
    elif counter is not None:
        counter.zero_()


@contextmanager
def preserve_running_statistics(*modules: nn.Module) -> Iterator[None]:
    """Within it, the BNs of `modules` use a batch's statistics and leave their running ones alone."""
    parts = (part for module in modules for part in module.modules())
    norms = [part for part in parts if isinstance(part, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, (_, counter) in zip(norms, before, strict=True):
        # Momentum 0, not track_running_stats=False: autograd must save as many tensors as in the first pass.
        norm.momentum = 0.0
        norm.num_batches_tracked = None if counter is None else torch.empty_like(counter)
    try:
        yield
    finally:
        for norm, (momentum, counter) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter
