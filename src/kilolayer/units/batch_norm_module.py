"""PyTorch's own BN, so that whatever knows nn.BatchNorm2d knows ours: tracing, fusing, converting, averaging.

Its batch counter is in no state dict: nothing reads it but a cumulative mean (`momentum` None, as
`torch.optim.swa_utils.update_bn` sets it). It counts from the last `reset_running_stats` or loading.
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
    """BN with ε = 1e-5 and a running average of 0.1; files with and without a batch counter fit it."""
    norm = nn.BatchNorm2d(channels)
    norm.register_buffer(COUNTER, norm.num_batches_tracked, persistent=False)
    # The version before the counter: PyTorch's own BN and SyncBatchNorm put theirs in where they read ours.
    norm._version = 1
    norm.register_load_state_dict_pre_hook(_reset_batch_counter)  # type: ignore[no-untyped-call]
    return norm


def _reset_batch_counter(norm: nn.BatchNorm2d, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """What has been loaded has seen no batch here; a counter that comes with it is passed over."""
    state.pop(prefix + COUNTER, None)
    counter, mean = norm.num_batches_tracked, state.get(prefix + "running_mean")
    if counter is not None and counter.is_meta and isinstance(mean, Tensor):
        norm.num_batches_tracked = torch.zeros_like(counter, device=mean.device)
    elif counter is not None:
        counter.zero_()


@contextmanager
def preserve_running_statistics(*modules: nn.Module) -> Iterator[None]:
    """Within, the BNs of `modules` use a batch's statistics without a trace in their running ones."""
    parts = (part for module in modules for part in module.modules())
    norms = [part for part in parts if isinstance(part, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, (_, counter) in zip(norms, before, strict=True):
        # The running figures still go in: what autograd saves has to be as many tensors as at first.
        norm.momentum = 0.0
        norm.num_batches_tracked = None if counter is None else torch.empty_like(counter)
    try:
        yield
    finally:
        for norm, (momentum, counter) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter
