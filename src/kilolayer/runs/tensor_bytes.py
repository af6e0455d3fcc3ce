"""Tensors as bytes and back, by safetensors, after a look whether there is memory for it."""

from __future__ import annotations

import mmap
from collections.abc import Mapping

from safetensors import torch as safetensors
from torch import Tensor

_COPIES_ON_SAVING, _COPIES_ON_LOADING = 3, 2
_SLACK_BYTES = 1 << 20


def save(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """The content of a file of tensors. Raises `MemoryError`.

    >>> import torch
    >>> load(save({"weight": torch.ones(2)}))["weight"]
    tensor([1., 1.])
    """
    _ask_for(_COPIES_ON_SAVING * sum(tensor.nbytes for tensor in tensors.values()))
    return safetensors.save(dict(tensors), metadata)


def load(content: bytes) -> dict[str, Tensor]:
    """The tensors in a file's content. Raises `MemoryError`, and `SafetensorError` where it is damaged."""
    _ask_for(_COPIES_ON_LOADING * len(content))
    return safetensors.load(content)


def _ask_for(num_bytes: int) -> None:
    """Raises `MemoryError` where so much cannot be allocated: safetensors would end the process instead."""
    try:
        mmap.mmap(-1, num_bytes + _SLACK_BYTES).close()
    except OSError as error:
        raise MemoryError(error.strerror) from None
