"""BN and ReLU as one operation on a GPU, for stems, final activations and units not fused as a whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kilolayer.kernels.dispatch import channel_sums_of, count_batch
from kilolayer.kernels.gpu import launch


def triton_bn_relu(norm: Any, x: Tensor) -> Tensor:
    """a = ReLU(BN(x)) with the statistics of the batch; `x` is (N, C, H, W) in bf16, channels last."""
    out: Tensor = _TritonBnRelu.apply(norm, channel_sums_of(x), x, norm.weight, norm.bias)  # type: ignore[no-untyped-call]
    count_batch([norm])
    return out


class _TritonBnRelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, norm: nn.BatchNorm2d, channel_sums: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        sums = launch.channel_sums(x) if channel_sums is None else channel_sums
        statistics = launch.bn_finalize(norm, weight, bias, sums, x.numel() // x.shape[1])
        ctx.save_for_backward(x, statistics, weight, bias)
        return launch.bn_relu_forward(x, statistics)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        x, statistics, weight, bias = ctx.saved_tensors
        da = da.to(x.dtype).contiguous(memory_format=torch.channels_last)
        _, partials = launch.relu_backward(da, x, statistics, stored=False)
        dweight, dbias = torch.empty_like(weight), torch.empty_like(bias)
        count = x.numel() // x.shape[1]
        coefficients = launch.bn_backward_finalize(partials, weight, statistics, dweight, dbias, count)
        return None, None, launch.bn_backward(da, x, coefficients, statistics=statistics), dweight, dbias
