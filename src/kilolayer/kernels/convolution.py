"""Convolutions by themselves in the kernels' arithmetic, where no unit can be computed whole: transitions.

The plain reference is the same layer in bf16 autocast, which rounds the weights to bf16.
"""

from __future__ import annotations

from ctypes import byref
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kilolayer.kernels import library
from kilolayer.kernels.arithmetic import products
from kilolayer.kernels.calls import applies, batch_of, every, fits, map_like, spread, transformed
from kilolayer.kernels.chain import no_kernel_for, shape_of

_LAST = torch.channels_last


def pays(conv: nn.Conv2d) -> bool:
    """Whether the kernels compute this layer, and faster than PyTorch's in bf16.

    A 1×1 convolution with a stride is one of fewer pixels; that of a 3×3 one may be 2.
    """
    if products() == "bf16" or no_kernel_for([conv]):
        return False
    return conv.kernel_size == (1, 1) or conv.stride[0] in (1, 2)


class NativeConv(nn.Conv2d):
    """y = W∗x in training, x and y (N, C, H, W) in bf16 and channels last, W and its gradient in fp32.

    The backward pass keeps of x what the layer reads. Everywhere else it is the layer that it was.
    """

    def forward(self, x: Tensor) -> Tensor:
        if transformed() or not (self.training and applies("native", x)):
            return super().forward(x)
        weight = self.weight
        if not fits(x, self.in_channels, [weight], [shape_of(self)]):
            return super().forward(x)
        y: Tensor = _Convolution.apply(x, weight, self.stride[0])  # type: ignore[no-untyped-call]
        return y


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        # Which pixels a 1×1 convolution skips is settled here; a 3×3 one reads all.
        ctx.size, ctx.skips, ctx.stride = x.shape, *((stride, 1) if weight.shape[2] == 1 else (1, stride))
        x = every(ctx.skips, x)
        y = map_like(x[:, :, :: ctx.stride, :: ctx.stride], len(weight))
        conv = library.Conv(library.Weights.of(weight), None, None, x.data_ptr(), y.data_ptr(), ctx.stride)
        library.native().kilolayer_convolution_forward(byref(batch_of(x)), byref(conv))
        ctx.save_for_backward(x, weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy = dy.to(x.dtype).contiguous(memory_format=_LAST)
        dx, dweight = torch.empty_like(x), torch.empty_like(weight)
        conv = library.Conv(
            library.Weights.of(weight), dweight.data_ptr(), None, x.data_ptr(), None, ctx.stride
        )
        library.native().kilolayer_convolution_backward(
            byref(batch_of(x)), byref(conv), dy.data_ptr(), dx.data_ptr()
        )
        return spread(ctx.skips, dx, ctx.size), dweight, None
