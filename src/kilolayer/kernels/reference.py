"""The steps of a fused unit in plain PyTorch, in any precision: to read, and to test the kernels against.

In the notation of native/forward.h: t₀ = x, tᵢ = convᵢ(aᵢ), aᵢ = ReLU(BNᵢ(tᵢ₋₁)), x' = h + t_L, and in the
original unit x' = ReLU(h + BN(t_L)). h is x; in a unit that changes shape, a projection of x, or x padded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d
from torch.nn.grad import conv2d_input, conv2d_weight

from kilolayer.kernels.conv_chain import ConvChain
from kilolayer.kernels.dispatch import scatter_strided, subsample

_ALL = (0, 2, 3)


@dataclass(frozen=True)
class SavedTensors:
    """What the forward pass saves for the backward pass: t₀ … t_L, x', the size of x.

    For a projection also its input and output.
    """

    outputs: tuple[Tensor, ...]
    y: Tensor
    size: torch.Size
    projection_input: Tensor
    projection_output: Tensor | None = None


def reference_forward(chain: ConvChain, x: Tensor) -> SavedTensors:
    """The unit's output and what it saves; BN uses the statistics of the batch."""
    size, projection_input, full_x, x = (
        x.shape,
        subsample(chain.shortcut_stride, x),
        x,
        subsample(chain.input_stride, x),
    )
    outputs = [x]
    for link, stride in zip(chain.links, chain.conv_strides(), strict=True):
        a = outputs[-1] if link.norm is None else _batch_norm(link.norm, outputs[-1]).relu()
        outputs.append(conv2d(a, link.conv.weight, None, stride, link.conv.padding))
    h = projection_output = (
        None if chain.projection is None else conv2d(projection_input, chain.projection.weight)
    )
    if h is None:
        h = x if chain.padding is None else chain.padding(full_x)
    elif chain.projection_norm is not None:
        h = _batch_norm(chain.projection_norm, h)
    y = (
        h + outputs[-1]
        if chain.final_norm is None
        else (h + _batch_norm(chain.final_norm, outputs[-1])).relu()
    )
    return SavedTensors(tuple(outputs), y, size, projection_input, projection_output)


def reference_backward(
    chain: ConvChain, saved: SavedTensors, dy: Tensor
) -> tuple[Tensor, dict[Tensor, Tensor]]:
    """The gradient of x and of every parameter, from `dy`, the gradient of x'."""
    gradients: dict[Tensor, Tensor] = {}
    if chain.final_norm is not None:
        dy = dy * (saved.y > 0)
    g = (
        dy
        if chain.final_norm is None
        else _batch_norm_backward(chain.final_norm, saved.outputs[-1], dy, gradients)
    )
    strides = reversed(chain.conv_strides())
    for link, t, stride in zip(reversed(chain.links), reversed(saved.outputs[:-1]), strides, strict=True):
        z = t if link.norm is None else _batch_norm(link.norm, t)
        a = t if link.norm is None else z.relu()
        weight, padding = link.conv.weight, link.conv.padding
        gradients[weight] = conv2d_weight(a, weight.shape, g, stride, padding)  # type: ignore[no-untyped-call]
        g = conv2d_input(t.shape, weight, g, stride, padding)  # type: ignore[no-untyped-call]
        if link.norm is not None:
            g = _batch_norm_backward(link.norm, t, g * (z > 0), gradients)
    if chain.padding is not None:
        return scatter_strided(chain.input_stride, g, saved.size) + scatter_strided(
            chain.shortcut_stride, dy[:, : saved.size[1]], saved.size
        ), gradients
    if chain.projection is None:
        return dy + g, gradients
    assert saved.projection_output is not None  # noqa: S101 - of the same chain
    dprojection = (
        dy
        if chain.projection_norm is None
        else _batch_norm_backward(chain.projection_norm, saved.projection_output, dy, gradients)
    )
    weight = chain.projection.weight
    gradients[weight] = conv2d_weight(saved.projection_input, weight.shape, dprojection)  # type: ignore[no-untyped-call]
    dread = conv2d_input(saved.projection_input.shape, weight, dprojection)  # type: ignore[no-untyped-call]
    dx = scatter_strided(chain.input_stride, g, saved.size) + scatter_strided(
        chain.shortcut_stride, dread, saved.size
    )
    return dx, gradients


def _statistics(norm: nn.BatchNorm2d, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and 1/√(var + ε) from Σ t and Σ t²."""
    count = t.numel() / t.shape[1]
    mean = t.sum(_ALL) / count
    var = t.square().sum(_ALL) / count - mean.square()
    return mean, torch.rsqrt(var + norm.eps)


def _batch_norm(norm: nn.BatchNorm2d, t: Tensor) -> Tensor:
    mean, inverse = _statistics(norm, t)
    scale = norm.weight * inverse
    return _per_channel(scale) * t + _per_channel(norm.bias - mean * scale)


def _batch_norm_backward(
    norm: nn.BatchNorm2d, t: Tensor, g: Tensor, gradients: dict[Tensor, Tensor]
) -> Tensor:
    """The gradient of t from g, that of BN(t): α·g + β·t + γ, with α, β and γ per channel."""
    mean, inverse = _statistics(norm, t)
    count = t.numel() / t.shape[1]
    total = g.sum(_ALL)
    product = (g * t).sum(_ALL) - mean * total
    alpha = norm.weight * inverse
    beta = -alpha * inverse.square() * product / count
    gamma = -alpha * total / count - beta * mean
    gradients[norm.weight], gradients[norm.bias] = product * inverse, total
    return _per_channel(alpha) * g + _per_channel(beta) * t + _per_channel(gamma)


def _per_channel(channels: Tensor) -> Tensor:
    return channels[:, None, None]
