"""The convolution of a stem, which reads few channels, by im2col and the native kernels.

The plain reference is the same layer in bf16 autocast, which also rounds the weights to bf16.
"""

from __future__ import annotations

from ctypes import byref
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from kilolayer.kernels.compute_dtype import mul_dtype
from kilolayer.kernels.conv_chain import LANES, weight_shape
from kilolayer.kernels.dispatch import attach_channel_sums, batch_struct, can_run, fits_kernel, is_transformed
from kilolayer.kernels.native_library import ImagesStruct, WeightsStruct, load_native_library

_LAST = torch.channels_last
PATCH_ROW = 32
"""The numbers in one row of a patch that one instruction copies, at most."""


class Im2colConv(nn.Conv2d):
    """y = W∗x in training; x and y are (N, C, H, W) in bf16, channels last, W and its gradient fp32.

    If x needs a gradient, and outside training, it is the plain layer. Σ y and Σ y² are attached to y for the
    BN behind it.
    """

    @staticmethod
    def is_faster(conv: nn.Conv2d) -> bool:
        """Whether the kernels compute `conv`, and faster than PyTorch does: for kernels of 5×5 and more.

        For a 3×3 kernel laying out the patches takes longer than it saves (the log: CPU kernels).
        """
        square = all(len(set(sizes)) == 1 for sizes in (conv.kernel_size, conv.stride, conv.padding))
        return (
            mul_dtype() != "bf16"
            and square
            and conv.kernel_size[0] >= 5
            and conv.kernel_size[0] * conv.in_channels <= PATCH_ROW
            and conv.out_channels % LANES == 0
            and conv.groups == 1
            and conv.dilation == (1, 1)
            and conv.bias is None
            and conv.padding_mode == "zeros"
        )

    def forward(self, x: Tensor) -> Tensor:
        if (
            is_transformed()
            or not self.training
            or (x.requires_grad and torch.is_grad_enabled())
            or not _is_readable(x, weight_shape(self), int(self.padding[0]))
        ):
            return super().forward(x)
        # Images come in fp32; autocast would round them to bf16 first, so this does too.
        bf16_x = x.to(torch.bfloat16, memory_format=_LAST) if x.dtype is torch.float32 else x
        weight = self.weight
        if not (
            can_run("native", bf16_x)
            and fits_kernel(bf16_x, self.in_channels, [weight], [weight_shape(self)])
        ):
            return super().forward(x)
        sums = torch.empty(2 * self.out_channels, dtype=torch.float64)
        y: Tensor = _Im2colFunction.apply(bf16_x, weight, sums, self.stride[0], self.padding[0])  # type: ignore[no-untyped-call]
        attach_channel_sums(y, sums)
        return y


class _Im2colFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, sums: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sizes = stride, padding
        y = _empty_output(x, weight, stride, padding)
        load_native_library().kilolayer_im2col_forward(
            *_structs(x, weight, y, *ctx.sizes), y.data_ptr(), sums.data_ptr()
        )
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy = dy.to(x.dtype).contiguous(memory_format=_LAST)
        dweight = torch.empty_like(weight)
        load_native_library().kilolayer_im2col_backward(
            *_structs(x, weight, dy, *ctx.sizes), dy.data_ptr(), dweight.data_ptr()
        )
        return None, dweight, None, None, None


class FoldedStemConv(nn.Module):
    """ReLU(W∗x + b), or without the ReLU, at inference; x and y are bf16, W and b fp32.

    `layer` is the convolution; `weight` and `bias` include the BN behind it. An input that no kernel reads
    goes to PyTorch's layer in bf16, which converts or refuses it.
    """

    def __init__(self, layer: nn.Conv2d, weight: Tensor, bias: Tensor | None, *, relu: bool) -> None:
        super().__init__()
        # Not buffers: these stay fp32 when the network is converted to another dtype.
        self.weight = weight.float()
        self.bias = torch.zeros(len(weight)) if bias is None else bias.float()
        self.sizes = layer.stride[0], int(layer.padding[0])
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        if not (_is_readable(x, self.weight.shape, self.sizes[1]) and x.dtype is torch.bfloat16 and x.is_cpu):
            y = functional.conv2d(x, self.weight.bfloat16(), self.bias.bfloat16(), *self.sizes)
            return y.relu_() if self.relu else y
        x = x.contiguous(memory_format=_LAST)
        y = _empty_output(x, self.weight, *self.sizes)
        call = _structs(x, self.weight, y, *self.sizes)
        load_native_library().kilolayer_im2col_infer(*call, self.bias.data_ptr(), self.relu, y.data_ptr())
        return y


def _is_readable(x: Tensor, shape: tuple[int, ...], padding: int) -> bool:
    """Whether a convolution with weights of this shape can read `x`."""
    _, channels, kernel, _ = shape
    return x.dim() == 4 and x.shape[1] == channels and min(x.shape[2:]) + 2 * padding >= kernel


def _empty_output(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    height, width = ((side + 2 * padding - weight.shape[2]) // stride + 1 for side in x.shape[2:])
    return torch.empty((len(x), len(weight), height, width), dtype=x.dtype, memory_format=_LAST)


def _structs(x: Tensor, weight: Tensor, y: Tensor, stride: int, padding: int) -> tuple[Any, Any, Any]:
    _, channels, height, width = x.shape
    images = ImagesStruct(x.data_ptr(), height, width, channels, weight.shape[2], stride, padding)
    return byref(batch_struct(y)), byref(images), byref(WeightsStruct.of(weight))
