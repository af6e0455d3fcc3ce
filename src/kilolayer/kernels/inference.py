"""Runs of residual units at inference in one native operation: an image at a time, between convolutions in
the cache (native/infer.h)."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref
from typing import Any

import torch
from torch import Tensor, nn

from kilolayer.kernels import library
from kilolayer.kernels.arithmetic import products
from kilolayer.kernels.calls import batch_of
from kilolayer.kernels.chain import Chain
from kilolayer.units.modules import BatchNorm


class NativeRun(nn.Module):
    """Units of one shape, each a chain, their BNs folded where a convolution stands before them.

    Takes and gives (N, C, H, W) in bf16 and channels last, on a CPU. Its tensors are its own, in the
    kernels' order, and no parameters.
    """

    def __init__(self, chains: Sequence[Chain]) -> None:
        super().__init__()
        self.units = [_folded(chain) for chain in chains]

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        y = torch.empty_like(x)
        # Addresses do not survive a copy or a pickle, so they are gathered anew: microseconds a unit.
        called = (library.FoldedUnit * len(self.units))(*map(_called, self.units))
        library.native().kilolayer_infer(byref(batch_of(x)), called, len(called), x.data_ptr(), y.data_ptr())
        return y

    def extra_repr(self) -> str:
        return f"{len(self.units)} units"


def scale_and_shift(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """BN(x) = scale·x + shift, with its running statistics."""
    assert norm.running_mean is not None and norm.running_var is not None  # noqa: S101, PT018 - ours always have them
    scale = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias.detach() - norm.running_mean * scale


def _folded(chain: Chain) -> dict[str, Any]:
    """The tensors of a unit: packed weights and biases, and the first BN's scale and shift."""
    behind = [*(link.norm for link in chain.links[1:]), chain.end]
    first = chain.links[0].norm
    return {
        "convs": [_conv(link.conv, norm) for link, norm in zip(chain.links, behind, strict=True)],
        "before": None if first is None else [part.float() for part in scale_and_shift(first)],
        "rectified": chain.end is not None,
    }


def _conv(conv: nn.Conv2d, norm: BatchNorm | None) -> dict[str, Any]:
    weight = conv.weight.detach().float()
    bias = torch.zeros(conv.out_channels)
    if norm is not None:
        scale, shift = scale_and_shift(norm)
        weight, bias = weight * scale.float().view(-1, 1, 1, 1), shift.float()
    packed = torch.empty(weight.numel(), dtype=torch.float32 if products() == "fp32" else torch.bfloat16)
    library.native().kilolayer_pack(byref(library.Weights.of(weight)), packed.data_ptr())
    return {
        "packed": packed,
        "bias": bias,
        "sizes": (conv.out_channels, conv.in_channels, conv.kernel_size[0]),
    }


def _called(unit: dict[str, Any]) -> library.FoldedUnit:
    convs = [
        library.FoldedConv(conv["packed"].data_ptr(), conv["bias"].data_ptr(), *conv["sizes"])
        for conv in unit["convs"]
    ]
    before = [part.data_ptr() for part in unit["before"] or ()] or [None, None]
    return library.FoldedUnit(
        len(convs), (library.FoldedConv * len(convs))(*convs), *before, unit["rectified"]
    )
