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

from kilolayer.kernels.calls import count_batch, known_sums, leave_sums
from kilolayer.kernels.chain import Chain
from kilolayer.kernels.gpu import cudnn, launch
from kilolayer.kernels.gpu.launch import Read, activated, as_it_is, gradient_of

THREE_BY_THREE: Literal["triton", "cudnn"] = "triton"
"""Who computes 3×3 convolutions: ours with BN and ReLU in its loads and stores, or cuDNN's between passes of
their own. To be chosen by measurement (benchmarks/gpu.py)."""


def unit(chain: Chain, x: Tensor, parameters: list[Tensor]) -> Tensor:
    """x' of `x`, (N, C, H, W) in bf16 and channels last, in training: BN takes the batch's statistics.

    `parameters` are the chain's, in fp32. The running averages follow. The sums that the next unit's first
    BN needs go with the output, as `kernels.unit` has it.
    """
    found: list[Tensor] = []
    y: Tensor = _Unit.apply(chain, known_sums(x), found, x, *parameters)  # type: ignore[no-untyped-call]
    count_batch(chain.norms())
    if found:
        leave_sums(y, found[0])
    return y


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, chain: Chain, known: Tensor | None, found: list[Tensor], x: Tensor, *parameters: Tensor
    ) -> Tensor:
        norms = _Norms(chain, parameters)
        outputs, measured, t, partials = [x], [], x, known
        for i, link in enumerate(chain.links):
            read = as_it_is(t)
            if link.norm is not None:
                measured.append(norms.settle(link.norm, t, partials))
                read = activated(t, measured[-1])
            last = chain.end is None and i + 1 == len(chain.links)
            t, sums = _forward(read, parameters[i], x if last else None)
            outputs.append(t)
            partials = sums
        if chain.end is None:
            # x + F(x) is the last product itself, and nothing in the backward pass reads it.
            found.append(sums)
            y = outputs.pop()
        else:
            measured.append(norms.settle(chain.end, t, sums))
            y = launch.activate(t, measured[-1], x)
        ctx.chain = chain
        ctx.sizes = len(outputs), len(measured)
        ctx.save_for_backward(*outputs, *measured, *parameters, *(() if chain.end is None else (y,)))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        chain: Chain = ctx.chain
        saved = iter(ctx.saved_tensors)
        outputs, measured = (list(islice(saved, size)) for size in ctx.sizes)
        parameters = list(islice(saved, len(chain.parameters())))
        depth = len(chain.links)
        weights, affine = parameters[:depth], [torch.empty_like(p) for p in parameters[depth:]]
        norms = _Norms(chain, parameters, affine)
        residual = dy.to(outputs[0].dtype).contiguous(memory_format=torch.channels_last)
        read = as_it_is(residual)
        if chain.end is not None:
            t, known = outputs.pop(), measured.pop()
            residual, partials = launch.mask(residual, t, known, next(saved))
            read = gradient_of(residual, t, norms.back(chain.end, known, partials, t))
        changes: list[Tensor] = []
        for link, weight, t in zip(reversed(chain.links), reversed(weights), reversed(outputs), strict=True):
            if link.norm is None:
                change, dx, _ = _backward(read, as_it_is(t), weight, residual)
            else:
                known = measured.pop()
                change, g, partials = _backward(read, activated(t, known), weight)
                read = gradient_of(g, t, norms.back(link.norm, known, partials, t))
            changes.insert(0, change)
        if chain.links[0].norm is not None:
            dx = launch.written(read, residual)
        return None, None, None, dx, *changes, *affine


class _Norms:
    """The BNs of a chain with their parameters, and in the backward pass the parameters' gradients."""

    def __init__(self, chain: Chain, parameters: Any, gradients: list[Tensor] | None = None) -> None:
        own = parameters[len(chain.links) :]
        self.places = {norm: 2 * i for i, norm in enumerate(chain.norms())}
        self.parameters, self.gradients = own, gradients or []

    def settle(self, norm: nn.BatchNorm2d, t: Tensor, partials: Tensor | None) -> Tensor:
        at = self.places[norm]
        sums = launch.measure(t) if partials is None else partials
        return launch.settle(norm, self.parameters[at], self.parameters[at + 1], sums, _count(t))

    def back(self, norm: nn.BatchNorm2d, measured: Tensor, partials: Tensor, t: Tensor) -> Tensor:
        at = self.places[norm]
        pair = self.gradients[at], self.gradients[at + 1]
        return launch.settle_backward(partials, self.parameters[at], measured, *pair, _count(t))


def _forward(read: Read, weight: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """The convolution's output, with x beside it where it is the unit's last, and its sums."""
    if THREE_BY_THREE == "cudnn" and weight.shape[2] == 3:
        return cudnn.convolve(read, weight, residual)
    return launch.convolve(read, weight, residual)


def _backward(
    read: Read, source: Read, weight: Tensor, residual: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the weights and of what `source` reads (before its ReLU), and BN's backward sums."""
    if THREE_BY_THREE == "cudnn" and weight.shape[2] == 3:
        return cudnn.backward(read, source, weight, residual)
    dweight = launch.weigh(read, source, weight)
    like = None if source.coefficients is None else source.first
    g, partials = launch.convolve_back(read, weight, like, source.coefficients, residual)
    return dweight, g, partials


def _count(t: Tensor) -> int:
    return t.numel() // t.shape[1]
