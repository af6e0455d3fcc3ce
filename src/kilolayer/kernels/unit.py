"""A whole residual unit as one operation on a CPU with AVX-512, forward and backward.

What BN and ReLU do happens while a convolution reads its input and writes its output (native/forward.h);
only x and F's inner convolution outputs are kept, in bf16. `reference` has the same steps in plain PyTorch.
"""

from __future__ import annotations

from ctypes import POINTER, byref, pointer
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kilolayer.kernels import library
from kilolayer.kernels.calls import batch_of, known_sums, map_like, norms_of
from kilolayer.kernels.chain import Chain

_LAST = torch.channels_last


def unit(chain: Chain, x: Tensor, parameters: list[Tensor]) -> Tensor:
    """x' of `x`, (N, C, H, W) in bf16 and channels last, in training: BN takes the batch's statistics.

    `parameters` are the chain's, in fp32.

    The running averages follow where the BN `tracks`. The sums that the next unit's first BN needs go
    with the output, as long as it is the same tensor, or one that shares its data and its notes.
    """
    sums = torch.empty(2 * x.shape[1], dtype=torch.float64)
    y: Tensor = _Unit.apply(chain, known_sums(x), sums, x, *parameters)  # type: ignore[no-untyped-call]
    if chain.end is None:
        y.channel_sums = (sums, y._version)  # type: ignore[attr-defined]
    return y


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, chain: Chain, known: Tensor | None, sums: Tensor, x: Tensor, *parameters: Tensor
    ) -> Tensor:
        inner = len(chain.links) - (chain.end is None)
        outputs = [map_like(x, link.conv.out_channels) for link in chain.links[:inner]]
        y = torch.empty_like(x)
        measured = torch.empty(2 * sum(norm.num_features for norm in chain.norms()))
        call = _Call(chain, x, y, outputs, measured, parameters, tracked=True)
        library.native().kilolayer_unit_forward(
            byref(call.batch), byref(call.unit), None if known is None else known.data_ptr(), sums.data_ptr()
        )
        ctx.chain = chain
        # An original unit's x' says where its last ReLU was open; of the others nothing needs it.
        ctx.save_for_backward(x, x if chain.end is None else y, measured, *outputs, *parameters)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        chain: Chain = ctx.chain
        x, y, measured, *rest = ctx.saved_tensors
        inner = len(chain.links) - (chain.end is None)
        outputs, parameters = rest[:inner], rest[inner:]
        gradients = [torch.empty_like(parameter) for parameter in parameters]
        dx = torch.empty_like(x)
        dy = dy.to(x.dtype).contiguous(memory_format=_LAST)
        call = _Call(chain, x, y, outputs, measured, parameters, gradients)
        library.native().kilolayer_unit_backward(
            byref(call.batch), byref(call.unit), dy.data_ptr(), dx.data_ptr()
        )
        return None, None, None, dx, *gradients


class _Call:
    """A unit as the library reads it; the tensors have to outlive it."""

    def __init__(
        self,
        chain: Chain,
        x: Tensor,
        y: Tensor,
        outputs: list[Tensor],
        measured: Tensor,
        parameters: Any,
        gradients: list[Tensor] | None = None,
        *,
        tracked: bool = False,
    ) -> None:
        depth = len(chain.links)
        affine, changes = parameters[depth:], (gradients or [])[depth:]
        self.norms = list(norms_of(chain.norms(), measured, affine, changes, tracked=tracked))
        ahead = iter(self.norms)
        maps = [x, *outputs, y]
        convs = (library.Conv * depth)()
        for i, link in enumerate(chain.links):
            convs[i] = library.Conv(
                library.Weights.of(parameters[i]),
                gradients[i].data_ptr() if gradients else None,
                POINTER(library.Norm)() if link.norm is None else pointer(next(ahead)),
                maps[i].data_ptr(),
                maps[i + 1].data_ptr(),
            )
        end = POINTER(library.Norm)() if chain.end is None else pointer(next(ahead))
        self.unit = library.Unit(depth, convs, end, x.data_ptr(), y.data_ptr())
        self.batch = batch_of(x)
