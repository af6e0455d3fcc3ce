"""The layers of a folded network: convolution and activation in one pass over memory.

On a CPU they are oneDNN's convolutions with what follows them joined on, as PyTorch's own compiler calls
them; elsewhere, and where this PyTorch has no such call, the same is computed layer by layer.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from kilolayer.kernels.native_run import folded_weights


class FoldedConv(nn.Module):
    """y = relu(W∗x + b), or without the ReLU; `add` puts y on top of another tensor."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None, relu: bool) -> None:
        super().__init__()
        weight, bias = folded_weights(conv, norm)
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias)
        self.relu = relu
        self.sizes = _int_list(conv.padding), _int_list(conv.stride), _int_list(conv.dilation)
        self.groups = conv.groups

    weight: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        if _has_fused_kernel(x, self.weight):
            output: Tensor = torch.ops.mkldnn._convolution_pointwise(
                x, self.weight, self.bias, *self.sizes, self.groups, "relu" if self.relu else "none", [], ""
            )
            return output
        y = self._convolved(x)
        return y.relu_() if self.relu else y

    def add(self, x: Tensor, summand: Tensor) -> Tensor:
        """other + W∗x + b, then the ReLU where there is one."""
        if _has_fused_kernel(x, self.weight) and summand.shape[1] == self.weight.shape[0]:
            output: Tensor = torch.ops.mkldnn._convolution_pointwise.binary(
                x,
                summand,
                self.weight,
                self.bias,
                *self.sizes,
                self.groups,
                "add",
                1.0,
                "relu" if self.relu else None,
                [],
                None,
            )
            return output
        y = summand + self._convolved(x)
        return y.relu_() if self.relu else y

    def _convolved(self, x: Tensor) -> Tensor:
        padding, stride, dilation = self.sizes
        return functional.conv2d(x, self.weight, self.bias, stride, padding, dilation, self.groups)


class FoldedNorm(FoldedConv):
    """BN, and ReLU where one follows, as a 1×1 convolution of each channel by itself: one pass, not two."""

    def __init__(self, norm: nn.BatchNorm2d, relu: bool) -> None:
        channels = norm.num_features
        depthwise = nn.Conv2d(channels, channels, 1, groups=channels, bias=False)
        nn.init.ones_(depthwise.weight)
        super().__init__(depthwise.to(norm.running_mean), norm, relu)


def _int_list(sizes: object) -> list[int]:
    return [int(size) for size in cast(tuple[int, ...], sizes)]


def _has_fused_kernel(x: Tensor, weight: Tensor) -> bool:
    # An exporter knows no such call, and types that do not fit are for PyTorch's own to refuse or convert.
    return (
        _HAS_MKLDNN_POINTWISE
        and not torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        and x.device.type == "cpu"
        and x.dtype is weight.dtype
        and x.dtype in (torch.bfloat16, torch.float32)
    )


def _has_mkldnn_pointwise() -> bool:
    names: Any = getattr(torch.ops, "mkldnn", None)
    has_mkldnn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    has_pointwise = has_mkldnn and hasattr(names, "_convolution_pointwise")
    return has_pointwise and "binary" in names._convolution_pointwise.overloads()


_HAS_MKLDNN_POINTWISE = _has_mkldnn_pointwise()
