"""A whole residual unit as one autograd function over the Triton kernels.

Only x and F's inner convolution outputs are kept, in bf16, with four numbers for each channel of each BN;
activations are computed again as they are read. `kernels.reference` has the same steps in plain PyTorch.
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
"""Who computes 3×3 convolutions: ours with BN and ReLU in its loads and stores, or cuDNN's between passes of
their own. To be chosen by measurement (benchmarks/gpu.py)."""


def run_triton_unit(chain: ConvChain, x: Tensor, parameters: list[Tensor]) -> Tensor:
    """x' of `x`, (N, C, H, W) in bf16 and channels last, in training: BN takes the batch's statistics.

    `parameters` are the chain's, in fp32. The running averages follow. The sums that the next unit's first
    BN needs go with the output, as `kernels.unit` has it.
    """
    found: list[Tensor] = []
    y: Tensor = _TritonUnitFunction.apply(chain, channel_sums_of(x), found, x, *parameters)  # type: ignore[no-untyped-call]
    count_batch(chain.norms())
    if found:
        attach_channel_sums(y, found[0])
    return y


class _TritonUnitFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, chain: ConvChain, known: Tensor | None, found: list[Tensor], x: Tensor, *parameters: Tensor
    ) -> Tensor:
        norms = _ChainNorms(chain, parameters)
        outputs, measured, t, partials = [x], [], x, known
        for i, link in enumerate(chain.links):
            read = identity_load(t)
            if link.norm is not None:
                measured.append(norms.finalize(link.norm, t, partials))
                read = bn_relu_load(t, measured[-1])
            last = chain.final_norm is None and i + 1 == len(chain.links)
            t, sums = _conv_forward(read, parameters[i], x if last else None)
            outputs.append(t)
            partials = sums
        if chain.final_norm is None:
            # x + F(x) is the last product itself, and nothing in the backward pass reads it.
            found.append(sums)
            y = outputs.pop()
        else:
            measured.append(norms.finalize(chain.final_norm, t, sums))
            y = launch.bn_relu(t, measured[-1], x)
        ctx.chain = chain
        ctx.sizes = len(outputs), len(measured)
        ctx.save_for_backward(*outputs, *measured, *parameters, *(() if chain.final_norm is None else (y,)))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        chain: ConvChain = ctx.chain
        saved = iter(ctx.saved_tensors)
        outputs, measured = (list(islice(saved, size)) for size in ctx.sizes)
        parameters = list(islice(saved, len(chain.parameters())))
        depth = len(chain.links)
        weights, affine = parameters[:depth], [torch.empty_like(p) for p in parameters[depth:]]
        norms = _ChainNorms(chain, parameters, affine)
        residual = dy.to(outputs[0].dtype).contiguous(memory_format=torch.channels_last)
        read = identity_load(residual)
        if chain.final_norm is not None:
            t, known = outputs.pop(), measured.pop()
            residual, partials = launch.relu_backward(residual, t, known, next(saved))
            read = bn_gradient_load(
                residual, t, norms.finalize_backward(chain.final_norm, known, partials, t)
            )
        changes: list[Tensor] = []
        for link, weight, t in zip(reversed(chain.links), reversed(weights), reversed(outputs), strict=True):
            if link.norm is None:
                change, dx, _ = _conv_backward(read, identity_load(t), weight, residual)
            else:
                known = measured.pop()
                change, g, partials = _conv_backward(read, bn_relu_load(t, known), weight)
                read = bn_gradient_load(g, t, norms.finalize_backward(link.norm, known, partials, t))
            changes.insert(0, change)
        if chain.links[0].norm is not None:
            dx = launch.materialize(read, residual)
        return None, None, None, dx, *changes, *affine


class _ChainNorms:
    """The BNs of a chain with their parameters, and in the backward pass the parameters' gradients."""

    def __init__(self, chain: ConvChain, parameters: Any, gradients: list[Tensor] | None = None) -> None:
        own = parameters[len(chain.links) :]
        self.parameter_index = {norm: 2 * i for i, norm in enumerate(chain.norms())}
        self.parameters, self.gradients = own, gradients or []

    def finalize(self, norm: nn.BatchNorm2d, t: Tensor, partials: Tensor | None) -> Tensor:
        at = self.parameter_index[norm]
        sums = launch.channel_sums(t) if partials is None else partials
        return launch.bn_finalize(norm, self.parameters[at], self.parameters[at + 1], sums, _count(t))

    def finalize_backward(
        self, norm: nn.BatchNorm2d, measured: Tensor, partials: Tensor, t: Tensor
    ) -> Tensor:
        at = self.parameter_index[norm]
        pair = self.gradients[at], self.gradients[at + 1]
        return launch.bn_backward_finalize(partials, self.parameters[at], measured, *pair, _count(t))


def _conv_forward(load: MapLoad, weight: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """The convolution's output, with x beside it where it is the unit's last, and its sums."""
    if CONV3X3_BACKEND == "cudnn" and weight.shape[2] == 3:
        return cudnn.cudnn_forward(load, weight, residual)
    return launch.conv_forward(load, weight, residual)


def _conv_backward(
    load: MapLoad, source: MapLoad, weight: Tensor, residual: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the weights and of what `source` reads (before its ReLU), and BN's backward sums."""
    if CONV3X3_BACKEND == "cudnn" and weight.shape[2] == 3:
        return cudnn.cudnn_backward(load, source, weight, residual)
    dweight = launch.conv_wgrad(load, source, weight)
    like = None if source.coefficients is None else source.first
    g, partials = launch.conv_dgrad(load, weight, like, source.coefficients, residual)
    return dweight, g, partials


def _count(t: Tensor) -> int:
    return t.numel() // t.shape[1]
