"""Convolutions over bf16 maps that PyTorch multiplies in fp32, where that is faster than in bf16.

For what no kernel computes whole: the stem, strides, groups. The plain reference is the same layer in
bf16 autocast, which rounds the weights too.
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


def pays(conv: nn.Conv2d) -> bool:
    """Whether this processor is faster so. Its 1×1 convolutions wait for memory, where it has bf16 at all."""
    return mul_dtype() != "bf16" and (conv.kernel_size != (1, 1) or "avx512_bf16" not in cpu_flags())


class UpcastConv(nn.Conv2d):
    """y = W∗x in training, x and y (N, C, H, W) in bf16 and channels last, W and the products in fp32.

    The backward pass keeps x in bf16. Everywhere else it is the layer that it was.
    """

    def forward(self, x: Tensor) -> Tensor:
        parameters = [parameter for parameter in (self.weight, self.bias) if parameter is not None]
        # Images come in fp32; in autocast they would be rounded first, and so they are here.
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
