"""A whole residual unit as one operation on a CPU with AVX-512, forward and backward.

What BN and ReLU do happens while a convolution reads its input and writes its output (native/forward.h);
only x and F's inner convolution outputs are kept, in bf16. `reference` has the same steps in plain PyTorch.
"""

from __future__ import annotations

from ctypes import POINTER, byref, pointer
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kilolayer.kernels import library
from kilolayer.kernels.calls import (
    batch_of,
    count_batch,
    every,
    known_sums,
    leave_sums,
    map_like,
    norms_of,
    spread,
)
from kilolayer.kernels.chain import Chain

_LAST = torch.channels_last


def unit(chain: Chain, x: Tensor, parameters: list[Tensor]) -> Tensor:
    """x' of `x`, (N, C, H, W) in bf16 and channels last, in training: BN takes the batch's statistics.

    `parameters` are the chain's, in fp32.

    The running averages follow. The sums that the next unit's first BN needs go with the output, as long
    as it is the same tensor, or one that shares its data and its notes.
    """
    sums = torch.empty(2 * chain.outputs, dtype=torch.float64)
    y: Tensor = _Unit.apply(chain, known_sums(x), sums, x, *parameters)  # type: ignore[no-untyped-call]
    count_batch(chain.norms())
    if chain.end is None:
        leave_sums(y, sums)
    return y


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, chain: Chain, known: Tensor | None, sums: Tensor, x: Tensor, *parameters: Tensor
    ) -> Tensor:
        ctx.size, whole = x.shape, x
        x = every(chain.skips, whole)
        read = x if chain.projection is None or chain.skips == chain.stride else every(chain.stride, whole)
        outputs, like = [], x
        for link, stride in zip(chain.links, chain.strides(), strict=True):
            like = map_like(like[:, :, ::stride, ::stride], link.conv.out_channels)
            outputs.append(like)
        # The last convolution writes x' itself, where no BN stands behind it.
        y = outputs.pop() if chain.end is None else torch.empty_like(like)
        if chain.padding is not None:
            y.zero_()[:, : ctx.size[1]] = whole[:, :, :: chain.stride, :: chain.stride]
        if chain.behind is not None:
            outputs.append(torch.empty_like(y))
        measured = torch.empty(2 * sum(norm.num_features for norm in chain.norms()))
        call = _Call(chain, x, read, y, outputs, measured, parameters, tracked=True)
        library.native().kilolayer_unit_forward(
            byref(call.batch), byref(call.unit), None if known is None else known.data_ptr(), sums.data_ptr()
        )
        ctx.chain = chain
        # An original unit's x' says where its last ReLU was open; of the others nothing needs it.
        ctx.save_for_backward(x, read, x if chain.end is None else y, measured, *outputs, *parameters)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        chain: Chain = ctx.chain
        x, read, y, measured, *rest = ctx.saved_tensors
        kept = len(chain.inner) + (chain.behind is not None)
        outputs, parameters = rest[:kept], rest[kept:]
        gradients = [torch.empty_like(parameter) for parameter in parameters]
        dx = torch.empty_like(x)
        dread = None if read.shape == x.shape else torch.empty_like(read)
        dy = dy.to(x.dtype).contiguous(memory_format=_LAST)
        call = _Call(chain, x, read, y, outputs, measured, parameters, gradients, dread)
        library.native().kilolayer_unit_backward(
            byref(call.batch), byref(call.unit), dy.data_ptr(), dx.data_ptr()
        )
        if dread is not None:
            dx[:, :, :: chain.stride, :: chain.stride] += dread
        return None, None, None, spread(chain.skips, dx, ctx.size), *gradients


class _Call:
    """A unit as the library reads it; the tensors have to outlive it."""

    def __init__(
        self,
        chain: Chain,
        x: Tensor,
        read: Tensor,
        y: Tensor,
        outputs: list[Tensor],
        measured: Tensor,
        parameters: Any,
        gradients: list[Tensor] | None = None,
        dread: Tensor | None = None,
        *,
        tracked: bool = False,
    ) -> None:
        depth, products = len(chain.links), len(chain.convs())
        affine, changes = parameters[products:], (gradients or [])[products:]
        self.norms = list(norms_of(chain.norms(), measured, affine, changes, tracked=tracked))
        ahead = iter(self.norms)
        maps = [x, *outputs[: len(chain.inner)], y]

        def norm_at(norm: nn.BatchNorm2d | None) -> Any:
            return POINTER(library.Norm)() if norm is None else pointer(next(ahead))

        def conv(
            i: int, norm: nn.BatchNorm2d | None, read: Tensor, written: Tensor, stride: int = 1
        ) -> library.Conv:
            return library.Conv(
                library.Weights.of(parameters[i]),
                gradients[i].data_ptr() if gradients else None,
                norm_at(norm),
                read.data_ptr(),
                written.data_ptr(),
                stride,
            )

        convs = (library.Conv * depth)()
        for i, (link, stride) in enumerate(zip(chain.links, chain.strides(), strict=True)):
            convs[i] = conv(i, link.norm, maps[i], maps[i + 1], stride)
        end, projection = norm_at(chain.end), POINTER(library.Conv)()
        # Where h is not x it lies where x' will be, unless a BN stands behind it.
        h = x if chain.identity else y
        if chain.projection is not None:
            written = h if chain.behind is None else outputs[-1]
            projection = pointer(conv(depth, chain.behind, read, written))
        to_read = None if dread is None else dread.data_ptr()
        padded = 0 if chain.padding is None else chain.stride // chain.skips
        self.unit = library.Unit(depth, convs, end, h.data_ptr(), y.data_ptr(), projection, to_read, padded)
        self.batch = batch_of(x)
