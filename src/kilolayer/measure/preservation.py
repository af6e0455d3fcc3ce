"""Running a module without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def preserve_state(module: nn.Module, *, training: bool = True, seed: int = 0) -> Iterator[None]:
    """Within, `module` is in training mode (or not) and random numbers follow from `seed`.

    Afterwards its buffers (BN's running statistics, say), its modes and the generators are bit for bit
    what they were: it works on copies of its buffers. Nothing here writes gradients.
    """
    modes = [(part, part.training) for part in module.modules()]
    buffers = [
        (part, name, buffer)
        for part in module.modules()
        for name, buffer in part._buffers.items()
        if buffer is not None
    ]
    with torch.random.fork_rng(devices=_gpu_indices(module)):
        torch.manual_seed(seed)
        try:
            for part, name, buffer in buffers:
                part._buffers[name] = buffer.clone()
            module.train(training)
            yield
        finally:
            for part, mode in modes:
                part.training = mode
            for part, name, buffer in buffers:
                part._buffers[name] = buffer


def _gpu_indices(module: nn.Module) -> list[int]:
    tensors = [*module.parameters(), *module.buffers()]
    return sorted({tensor.get_device() for tensor in tensors if tensor.is_cuda})
