"""Single convolutions by the native kernels, for units that cannot be computed as a whole.

The plain reference is the same layer in bf16 autocast, which rounds the weights to bf16.
"""

from __future__ import annotations

from ctypes import byref
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kilolayer.kernels.compute_dtype import mul_dtype
from kilolayer.kernels.conv_chain import unsupported_convs_reason, weight_shape
from kilolayer.kernels.dispatch import (
    batch_struct,
    can_run,
    empty_map_like,
    fits_kernel,
    is_transformed,
    scatter_strided,
    subsample,
)
from kilolayer.kernels.native_library import ConvStruct, WeightsStruct, load_native_library

_LAST = torch.channels_last


class NativeConv(nn.Conv2d):
    """y = W∗x in training; x and y are (N, C, H, W) in bf16, channels last, W and its gradient fp32.

    The backward pass saves the pixels of x that the layer reads. Outside training it is the plain layer.
    """

    @staticmethod
    def is_faster(conv: nn.Conv2d) -> bool:
        """Whether the kernels compute `conv`, and faster than PyTorch does in bf16.

        A strided 1×1 convolution is one of a subsampled input; a 3×3 convolution may have a stride of 2.
        """
        if mul_dtype() == "bf16" or unsupported_convs_reason([conv]):
            return False
        return conv.kernel_size == (1, 1) or conv.stride[0] in (1, 2)

    def forward(self, x: Tensor) -> Tensor:
        if is_transformed() or not (self.training and can_run("native", x)):
            return super().forward(x)
        weight = self.weight
        if not fits_kernel(x, self.in_channels, [weight], [weight_shape(self)]):
            return super().forward(x)
        y: Tensor = _NativeConvFunction.apply(x, weight, self.stride[0])  # type: ignore[no-untyped-call]
        return y


class _NativeConvFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        # A strided 1×1 convolution is subsampled here; a 3×3 one strides in the kernel.
        ctx.size, ctx.input_stride, ctx.stride = (
            x.shape,
            *((stride, 1) if weight.shape[2] == 1 else (1, stride)),
        )
        x = subsample(ctx.input_stride, x)
        y = empty_map_like(x[:, :, :: ctx.stride, :: ctx.stride], len(weight))
        conv = ConvStruct(WeightsStruct.of(weight), None, None, x.data_ptr(), y.data_ptr(), ctx.stride)
        load_native_library().kilolayer_conv_forward(byref(batch_struct(x)), byref(conv))
        ctx.save_for_backward(x, weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy = dy.to(x.dtype).contiguous(memory_format=_LAST)
        dx, dweight = torch.empty_like(x), torch.empty_like(weight)
        conv = ConvStruct(WeightsStruct.of(weight), dweight.data_ptr(), None, x.data_ptr(), None, ctx.stride)
        load_native_library().kilolayer_conv_backward(
            byref(batch_struct(x)), byref(conv), dy.data_ptr(), dx.data_ptr()
        )
        return scatter_strided(ctx.input_stride, dx, ctx.size), dweight, None
