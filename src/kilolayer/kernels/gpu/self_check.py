"""Whether the Triton kernels compute on this device what PyTorch's layers compute, unit by unit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from kilolayer.errors import InputError
from kilolayer.kernels.conv_chain import ConvChain, same_shape_chain
from kilolayer.kernels.fused_unit import FusedUnit
from kilolayer.kernels.gpu.triton_unit import run_triton_unit as fused_unit
from kilolayer.networks.model import ResidualNetwork
from kilolayer.units.modules import ResidualUnit

IMAGES = 4
MEAN_ERROR_RATIO = 1.25
"""How far the kernels may deviate from double precision, relative to PyTorch's bf16 layers: on average."""
MAX_ERROR_RATIO = 2.0
"""The same for a single tensor."""
SLACK = 2e-3
"""Added to the limit of a single tensor."""

Computation = Callable[[Tensor], Tensor]


def check_units(model: ResidualNetwork) -> list[str]:
    """Compares the first unit of each kind, at its own image size, and returns the units' names.

    Raises `InputError` if the kernels deviate more from double precision than PyTorch's bf16 layers do.
    """
    checked = []
    for name, module, side in distinct_units(model):
        layers, kernels = relative_errors(module, (IMAGES, side, side))
        if exceeds_tolerance(layers, kernels):
            pairs = ", ".join(
                f"{kernel_error:.2g} ({layer_error:.2g})"
                for kernel_error, layer_error in zip(kernels, layers, strict=True)
            )
            raise InputError(
                f"the Triton kernels err in {name} more than PyTorch's bf16 layers do: relative errors of "
                f"output and gradients are {pairs}; use --kernels plain"
            )
        checked.append(name)
    return checked


def exceeds_tolerance(layers: list[float], kernels: list[float]) -> bool:
    """Whether the kernels' errors exceed what those of the layers allow. NaN exceeds it."""
    pairs = zip(kernels, layers, strict=True)
    return not (
        sum(kernels) <= MEAN_ERROR_RATIO * sum(layers)
        # A single tensor may deviate more: near zero, a ReLU can be open in one of the computations only.
        and all(kernel_error <= MAX_ERROR_RATIO * layer_error + SLACK for kernel_error, layer_error in pairs)
    )


def triton_forward(unit: ResidualUnit) -> Computation:
    """The Triton kernels of a unit as a function of its input."""
    chain = _chain_or_error(unit)
    return lambda x: fused_unit(chain, x, chain.parameters())


def relative_errors(
    module: ResidualUnit,
    shape: tuple[int, ...],
    implementation: Callable[[ResidualUnit], Computation] = triton_forward,
) -> tuple[list[float], list[float]]:
    """The relative errors ‖y − exact‖ / ‖exact‖ of PyTorch's bf16 layers, and of `implementation`.

    The default implementation is the Triton kernels.

    Each list holds the errors of the output, of the gradient of x and of every parameter's gradient; exact is
    double precision. `shape`: images, height, width. Identity shortcuts are subtracted: they are as large and
    as exact in both. BN's running averages stay as they are.
    """
    parameter = next(module.parameters())
    plain = _plain_copy(module)
    channels = _chain_or_error(plain).in_channels
    generator = torch.Generator().manual_seed(1)
    x, dy = (
        torch.randn((shape[0], channels, *shape[1:]), generator=generator)
        .to(parameter.device, torch.bfloat16, memory_format=torch.channels_last)
        for _ in range(2)
    )  # fmt: skip
    exact = _output_and_gradients(_plain_copy(module).double(), x.double(), dy.double())
    results = (
        _output_and_gradients(plain, x, dy),
        _output_and_gradients(plain, x, dy, implementation(plain)),
    )
    layers, kernels = (
        [relative_error(*pair) for pair in zip(result, exact, strict=True)] for result in results
    )
    return layers, kernels


def _chain_or_error(module: ResidualUnit) -> ConvChain:
    chain = same_shape_chain(module)
    if isinstance(chain, str):
        raise ValueError(f"the kernels cannot compute this unit: {chain}")
    return chain


def _plain_copy(module: ResidualUnit) -> ResidualUnit:
    """A copy of the unit with plain layers, in training."""
    copied = copy.deepcopy(module).train()
    copied.__class__ = ResidualUnit
    return copied


def _output_and_gradients(
    module: nn.Module, x: Tensor, dy: Tensor, implementation: Computation | None = None
) -> list[Tensor]:
    x = x.detach().requires_grad_()
    with torch.autocast(x.device.type, torch.bfloat16, x.dtype is torch.bfloat16, cache_enabled=False):
        y: Tensor = (implementation or module)(x)
    dx, *parameter_gradients = torch.autograd.grad(y, [x, *module.parameters()], dy)
    if not module.f:
        y, dx = y.double() - x.double(), dx.double() - dy.double()
    return [y.detach(), dx, *parameter_gradients]


def relative_error(computed: Tensor, exact: Tensor) -> float:
    """‖computed − exact‖ / ‖exact‖."""
    return float((computed.detach().double() - exact).norm() / exact.norm())


def distinct_units(model: ResidualNetwork) -> Iterator[tuple[str, FusedUnit, int]]:
    """The name, the module and the image size of the first fused unit of each kind."""
    yielded = set()
    for placed in model.description.units():
        module = model.get_submodule(placed.name)
        if isinstance(module, FusedUnit):
            links = ((link.norm is None, link.conv.weight.shape) for link in module.chain.links)
            kind = (placed.side, module.chain.final_norm is None, *links)
            if kind not in yielded:
                yielded.add(kind)
                yield placed.name, module, placed.side
