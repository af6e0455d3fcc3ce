"""Upcast convolutions: bf16 feature maps, multiplied by PyTorch in fp32 where that is faster than bf16.

They serve what no kernel computes: stems, strides, groups. The plain reference is the same layer in bf16
autocast, which rounds the weights too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kilolayer.kernels.compute_dtype import mul_dtype
from kilolayer.kernels.cpu_features import cpu_flags
from kilolayer.kernels.dispatch import can_run, is_transformed

_BOTH = torch.ops.aten.convolution_backward


class UpcastConv(nn.Conv2d):
    """y = W∗x in training; x and y are (N, C, H, W) in bf16, channels last; W and the products are fp32.

    The backward pass saves x in bf16. Outside training it is the plain layer.
    """

    @staticmethod
    def is_faster(conv: nn.Conv2d) -> bool:
        """Whether this processor is faster with upcast operands.

        1×1 convolutions are bound by memory, so with AVX512-BF16 they are not upcast.
        """
        return mul_dtype() != "bf16" and (conv.kernel_size != (1, 1) or "avx512_bf16" not in cpu_flags())

    def forward(self, x: Tensor) -> Tensor:
        parameters = [parameter for parameter in (self.weight, self.bias) if parameter is not None]
        # Images come in fp32; autocast would round them to bf16 first, so this does too.
        bf16_x = x.to(torch.bfloat16) if self.training and x.dtype is torch.float32 else x
        if is_transformed() or not (
            self.training
            and can_run("native", bf16_x)
            and all(parameter.dtype is torch.float32 for parameter in parameters)
        ):
            return super().forward(x)
        y: Tensor = _UpcastConvFunction.apply(bf16_x, self.weight, self.bias, self._sizes())  # type: ignore[no-untyped-call]
        return y

    def _sizes(self) -> tuple[Any, ...]:
        return list(self.stride), list(self.padding), list(self.dilation), False, [0, 0], self.groups


class _UpcastConvFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, sizes: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sizes, ctx.bias_sizes = sizes, None if bias is None else list(bias.shape)
        with torch.autocast("cpu", enabled=False):
            return torch.ops.aten.convolution(x.float(), weight, bias, *sizes).to(x.dtype)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        output_mask = [ctx.needs_input_grad[0], True, ctx.bias_sizes is not None]
        with torch.autocast("cpu", enabled=False):
            dx, dweight, dbias = _BOTH(dy.float(), x.float(), weight, ctx.bias_sizes, *ctx.sizes, output_mask)
        return None if dx is None else dx.to(x.dtype), dweight, dbias, None
