"""Runs a module and leaves it exactly as it was."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn


@contextmanager
def preserve_state(module: nn.Module, *, training: bool = True, seed: int = 0) -> Iterator[None]:
    """Preserves a module's buffers and modes, and the random number generators, while it runs.

    While the context is open the module is in training mode (or in evaluation mode, with `training` off),
    works on copies of its buffers, random numbers follow from `seed`, and what `torch.compile` was called on
    runs as it was written. Afterwards buffers (as BN's
    running statistics), modes and generators are bit for bit what they were. Gradients are not covered.

    >>> norm = nn.BatchNorm1d(2)
    >>> with preserve_state(norm):
    ...     _ = norm(torch.ones(4, 2))
    >>> norm.running_mean, norm.num_batches_tracked
    (tensor([0., 0.]), tensor(0))
    """
    modes = [(part, part.training) for part in module.modules()]
    buffers = [
        (part, name, buffer)
        for part in module.modules()
        for name, buffer in part._buffers.items()
        if buffer is not None
    ]
    with _without_compiled_code(), torch.random.fork_rng(devices=_gpu_indices(module)):
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


def _without_compiled_code() -> AbstractContextManager[Any]:
    """Runs what was compiled as it was written.

    Compiled code would not notice that a unit's forward is replaced, and hides its operations.
    """
    # Who has not imported the compiler has compiled nothing; it takes a second and a hundred megabytes.
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    eagerly: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return eagerly


def _gpu_indices(module: nn.Module) -> list[int]:
    tensors = [*module.parameters(), *module.buffers()]
    return sorted({tensor.get_device() for tensor in tensors if tensor.is_cuda})
