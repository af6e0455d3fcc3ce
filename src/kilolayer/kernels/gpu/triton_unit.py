"""A whole residual unit as one autograd function over the Triton kernels.

Only x and the outputs of F's inner convolutions are saved, in bf16, with four numbers per channel of each BN;
activations are recomputed as they are read. `kernels.reference` has the same steps in plain PyTorch.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kilolayer.kernels.conv_chain import ConvChain
from kilolayer.kernels.dispatch import attach_channel_sums, channel_sums_of, count_batch
from kilolayer.kernels.gpu import cudnn, launch
from kilolayer.kernels.gpu.launch import MapLoad, bn_gradient_load, bn_relu_load, identity_load

CONV3X3_BACKEND: Literal["triton", "cudnn"] = "triton"
"""What computes 3×3 convolutions: our kernel, with BN and ReLU in its loads and stores, or cuDNN between
separate passes. To be chosen by measurement (benchmarks/gpu.py).
"""


def run_triton_unit(chain: ConvChain, x: Tensor, parameters: list[Tensor]) -> Tensor:
    """x' of `x`, both (N, C, H, W) in bf16, channels last; in training, with the statistics of the batch.

    `parameters` are those of the chain, in fp32. The running averages are updated. The channel sums that the
    next unit's first BN needs are attached to x', as by `run_native_unit`.
    """
    output_sums: list[Tensor] = []
    y: Tensor = _TritonUnitFunction.apply(chain, channel_sums_of(x), output_sums, x, *parameters)  # type: ignore[no-untyped-call]
    count_batch(chain.norms())
    if output_sums:
        attach_channel_sums(y, output_sums[0])
    return y


class _TritonUnitFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        chain: ConvChain,
        channel_sums: Tensor | None,
        output_sums: list[Tensor],
        x: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        norms = _ChainNorms(chain, parameters)
        outputs, statistics, t, partials = [x], [], x, channel_sums
        for i, link in enumerate(chain.links):
            load = identity_load(t)
            if link.norm is not None:
                statistics.append(norms.finalize(link.norm, t, partials))
                load = bn_relu_load(t, statistics[-1])
            last = chain.final_norm is None and i + 1 == len(chain.links)
            t, sums = _conv_forward(load, parameters[i], x if last else None)
            outputs.append(t)
            partials = sums
        if chain.final_norm is None:
            # The last convolution stores x + F(x) itself, and the backward pass does not need it.
            output_sums.append(sums)
            y = outputs.pop()
        else:
            statistics.append(norms.finalize(chain.final_norm, t, sums))
            y = launch.bn_relu_forward(t, statistics[-1], x)
        ctx.chain = chain
        ctx.sizes = len(outputs), len(statistics)
        ctx.save_for_backward(*outputs, *statistics, *parameters, *(() if chain.final_norm is None else (y,)))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        chain: ConvChain = ctx.chain
        saved = iter(ctx.saved_tensors)
        outputs, statistics = (list(islice(saved, size)) for size in ctx.sizes)
        parameters = list(islice(saved, len(chain.parameters())))
        depth = len(chain.links)
        weights, norm_gradients = parameters[:depth], [torch.empty_like(p) for p in parameters[depth:]]
        norms = _ChainNorms(chain, parameters, norm_gradients)
        residual = dy.to(outputs[0].dtype).contiguous(memory_format=torch.channels_last)
        load = identity_load(residual)
        if chain.final_norm is not None:
            t, norm_statistics = outputs.pop(), statistics.pop()
            residual, partials = launch.relu_backward(residual, t, norm_statistics, next(saved))
            load = bn_gradient_load(
                residual, t, norms.finalize_backward(chain.final_norm, norm_statistics, partials, t)
            )
        weight_gradients: list[Tensor] = []
        for link, weight, t in zip(reversed(chain.links), reversed(weights), reversed(outputs), strict=True):
            if link.norm is None:
                weight_gradient, dx, _ = _conv_backward(load, identity_load(t), weight, residual)
            else:
                norm_statistics = statistics.pop()
                weight_gradient, g, partials = _conv_backward(load, bn_relu_load(t, norm_statistics), weight)
                load = bn_gradient_load(
                    g, t, norms.finalize_backward(link.norm, norm_statistics, partials, t)
                )
            weight_gradients.insert(0, weight_gradient)
        if chain.links[0].norm is not None:
            dx = launch.materialize(load, residual)
        return None, None, None, dx, *weight_gradients, *norm_gradients


class _ChainNorms:
    """The BNs of a chain with their parameters and, in the backward pass, the parameters' gradients."""

    def __init__(self, chain: ConvChain, parameters: Any, gradients: list[Tensor] | None = None) -> None:
        norm_parameters = parameters[len(chain.links) :]
        self.parameter_index = {norm: 2 * i for i, norm in enumerate(chain.norms())}
        self.parameters, self.gradients = norm_parameters, gradients or []

    def finalize(self, norm: nn.BatchNorm2d, t: Tensor, partials: Tensor | None) -> Tensor:
        index = self.parameter_index[norm]
        sums = launch.channel_sums(t) if partials is None else partials
        return launch.bn_finalize(norm, self.parameters[index], self.parameters[index + 1], sums, _count(t))

    def finalize_backward(
        self, norm: nn.BatchNorm2d, statistics: Tensor, partials: Tensor, t: Tensor
    ) -> Tensor:
        index = self.parameter_index[norm]
        pair = self.gradients[index], self.gradients[index + 1]
        return launch.bn_backward_finalize(partials, self.parameters[index], statistics, *pair, _count(t))


def _conv_forward(load: MapLoad, weight: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """The convolution's output, plus x if it is the unit's last, and its sums."""
    if CONV3X3_BACKEND == "cudnn" and weight.shape[2] == 3:
        return cudnn.cudnn_forward(load, weight, residual)
    return launch.conv_forward(load, weight, residual)


def _conv_backward(
    load: MapLoad, source: MapLoad, weight: Tensor, residual: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the weights and of what `source` loads (before its ReLU), and BN's backward sums."""
    if CONV3X3_BACKEND == "cudnn" and weight.shape[2] == 3:
        return cudnn.cudnn_backward(load, source, weight, residual)
    dweight = launch.conv_wgrad(load, source, weight)
    like = None if source.coefficients is None else source.first
    g, partials = launch.conv_dgrad(load, weight, like, source.coefficients, residual)
    return dweight, g, partials


def _count(t: Tensor) -> int:
    return t.numel() // t.shape[1]
