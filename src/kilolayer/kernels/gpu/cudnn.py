"""3×3 convolutions by PyTorch (cuDNN on a GPU), with BN and ReLU as separate passes around them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from kilolayer.kernels.gpu import launch
from kilolayer.kernels.gpu.launch import MapLoad


def cudnn_forward(load: MapLoad, weight: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same as `launch.conv_forward`."""
    with torch.autocast(weight.device.type, enabled=False):
        t = _channels_last(
            conv2d(launch.materialize(load), weight.to(torch.bfloat16), padding=weight.shape[2] // 2)
        )
    return (t, launch.channel_sums(t)) if residual is None else launch.add_with_sums(residual, t)


def cudnn_backward(
    load: MapLoad, source: MapLoad, weight: Tensor, residual: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the weights and of what `source` loads (before its ReLU), and BN's backward sums."""
    padding = [weight.shape[2] // 2] * 2
    da, dweight, _ = torch.ops.aten.convolution_backward(
        launch.materialize(load), launch.materialize(source), weight.to(torch.bfloat16), None,
        [1, 1], padding, [1, 1], False, [0, 0], 1, [True, True, False],
    )  # fmt: skip
    da, dweight = _channels_last(da), dweight.to(weight.dtype)
    if source.coefficients is not None:
        return dweight, *launch.relu_backward(da, source.first, source.coefficients)
    g, partials = (da, da) if residual is None else launch.add_with_sums(residual, da)
    return dweight, g, partials


def _channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)
