"""A network's units on the fast path where it applies, and what was chosen for each, in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor, nn

from kilolayer.kernels import im2col, native_conv, upcast_conv
from kilolayer.kernels.backend import Backend, backend_for, unavailable_reason
from kilolayer.kernels.bn_relu import FusedSequence, has_bn_relu
from kilolayer.kernels.conv_chain import ConvChain, same_shape_chain, unit_chain
from kilolayer.kernels.dispatch import can_run, fits_kernel, is_transformed
from kilolayer.kernels.native_unit import run_native_unit
from kilolayer.networks import Network, saved_activations
from kilolayer.networks.model import ResidualNetwork
from kilolayer.networks.saved_activations import SavedActivations
from kilolayer.units import Layout, build_unit
from kilolayer.units.modules import ResidualUnit

WHOLE_UNIT = "whole unit in one kernel"
BN_RELU = "BN and ReLU in one kernel"
PLAIN_LAYERS = "plain layers"
IMPLEMENTATIONS: dict[Backend, tuple[str, str]] = {
    "native": (WHOLE_UNIT, BN_RELU),
    "triton": ("whole unit in Triton kernels", "BN and ReLU in Triton kernels"),
}
"""Of a whole unit, and of its activations alone."""


@dataclass(frozen=True)
class KernelChoice:
    """What the units from `first` to `last`, neighbours in one stage, are computed with, and why."""

    first: str
    last: str
    units: int
    implementation: str
    reason: str

    def __str__(self) -> str:
        names = self.first if self.first == self.last else f"{self.first} … {self.last}"
        return f"{names}: {self.implementation}" + (f", {self.reason}" if self.reason else "")


@dataclass(frozen=True)
class FusionReport:
    """The choices of a network, in its order."""

    choices: tuple[KernelChoice, ...]

    @property
    def fused_units(self) -> int:
        """How many units are fused."""
        whole_unit_names = {words for words, _ in IMPLEMENTATIONS.values()}
        return sum(choice.units for choice in self.choices if choice.implementation in whole_unit_names)

    def __str__(self) -> str:
        return "; ".join(map(str, self.choices))


class FusedUnit(ResidualUnit):
    """A residual unit that is one operation in training, in bf16 autocast, on a channels-last bf16 input.

    Everywhere else it is the unit that it was: in evaluation, a layer's own too, on another device or in
    another precision, in a compiler, while hooks listen to its layers, which a kernel would not call, and
    when its layers or their parameters are no longer those that the kernel knows.
    """

    chain: ConvChain
    inside: tuple[nn.Module, ...]
    """The modules that the chain was made of."""
    shapes: list[tuple[int, ...]]
    """Of the chain's parameters, then of its running averages."""
    way: Backend = "native"

    def forward(self, x: Tensor) -> Tensor:
        if (
            self.training
            and not is_transformed()
            and can_run(self.way, x, self.inside, self.chain.shortcut_stride)
            and _child_modules(self) == self.inside
        ):
            chain, parameters = self.chain, self.chain.parameters()
            if fits_kernel(x, chain.in_channels, [*parameters, *chain.running_statistics()], self.shapes):
                if self.way == "native":
                    return run_native_unit(chain, self.p(x), parameters)
                from kilolayer.kernels.gpu.triton_unit import (
                    run_triton_unit as of_gpu,  # Triton need not be there
                )

                return of_gpu(chain, x, parameters)
        return super().forward(x)


def _child_modules(unit: ResidualUnit) -> tuple[nn.Module, ...]:
    """Its paths and their layers."""
    # By the modules' own tables, for a step asks for every unit's.
    paths = unit._modules.values()
    return (*paths, *(layer for path in paths for layer in path._modules.values()))  # type: ignore[arg-type, union-attr]


def fuse(model: ResidualNetwork, backend: Backend | None = None) -> FusionReport:
    """Puts every unit of `model` that can be on the fast path of its device, and says what was chosen.

    Where a unit cannot be computed whole, its BNs are computed together with their ReLUs, and so are those
    of the stem and of the final activation. Modules, parameters and state dict stay what they are. Layers
    that have been replaced since the last time are taken as they are now.
    """
    unfuse(model)
    device = next(model.parameters()).device
    backend = backend or backend_for(device)
    unavailable = unavailable_reason(device, backend)
    parts = [(name, *fuse_part(module, backend, unavailable)) for name, module in _parts(model)]
    return FusionReport(tuple(_group_choices(parts)))


def fused_share(network: Network) -> float:
    """Which share of the units' multiply-adds the kernels compute in whole units."""
    is_fused: dict[Layout, bool] = {}
    fused_count = total = 0
    for placed in network.units():
        if placed.layout not in is_fused:
            with torch.device("meta"):
                is_fused[placed.layout] = isinstance(
                    _supported_chain(build_unit(placed.layout), "native"), ConvChain
                )
        count = placed.layout.multiply_adds(placed.side)
        total += count
        fused_count += count * is_fused[placed.layout]
    return fused_count / total


def fused_saved_activations(model: ResidualNetwork) -> Iterator[SavedActivations]:
    """What every unit of `model` keeps for its backward pass: a fused one x and F's inner outputs."""
    plain = saved_activations.network_activations(model.description)
    for placed, saved, (_, module) in zip(model.description.units(), plain, _units(model), strict=True):
        yield _saved_by_fused_unit(module, saved, placed.side) if isinstance(module, FusedUnit) else saved


def _saved_by_fused_unit(module: FusedUnit, plain: SavedActivations, side: int) -> SavedActivations:
    chain = module.chain
    inputs, side_of_read = chain.in_channels, -(-side // chain.shortcut_stride)
    inside, activated = 0, len(module.p) > 0
    # Pixels that a stride leaves are copied; where there is none, what is read is x or its activation.
    if chain.input_stride != 1 or (chain.projection is not None and chain.shortcut_stride != 1):
        inside += inputs * side_of_read**2
    if activated and chain.input_stride == 1:
        inside += inputs * side**2
    side = -(-side // chain.input_stride)
    for link, stride in zip(chain.links, chain.conv_strides(), strict=True):
        side = -(-side // stride)
        if link in chain.saved_links:
            inside += link.conv.out_channels * side**2
    if chain.projection_norm is not None:
        inside += chain.projection_norm.num_features * side**2
    return replace(plain, saves_input=activated or chain.input_stride == 1, inside=inside)


def _supported_chain(unit: nn.Module, backend: Backend) -> ConvChain | str:
    """The chain that kernels of this family compute whole, or in words why there is none."""
    return same_shape_chain(unit) if backend == "triton" else unit_chain(unit)


def unfuse(model: ResidualNetwork) -> None:
    """Takes every part of `model` back to plain layers, but for convolutions that have been parametrized."""
    for module in model.modules():
        if isinstance(module, FusedUnit):
            module.__class__ = ResidualUnit  # type: ignore[assignment]
        elif isinstance(module, FusedSequence):
            module.__class__ = nn.Sequential  # type: ignore[assignment]
        # A parametrization has put a class of its own in place of one of these.
        elif type(module) in (native_conv.NativeConv, im2col.Im2colConv, upcast_conv.UpcastConv):
            module.__class__ = nn.Conv2d


def _parts(model: ResidualNetwork) -> Iterator[tuple[str, nn.Module]]:
    yield "stem", model.stem
    yield from _units(model)
    if len(model.final):
        yield "final", model.final


def _units(model: ResidualNetwork) -> Iterator[tuple[str, nn.Module]]:
    for stage in model.stage_names:
        for name, module in model.get_submodule(stage).named_children():
            yield f"{stage}.{name}", module


def fuse_part(module: nn.Module, backend: Backend, unavailable: str | None) -> tuple[str, str]:
    if unavailable is not None:
        return PLAIN_LAYERS, unavailable
    chain = _supported_chain(module, backend) if isinstance(module, ResidualUnit) else ""
    # A class decides only what forward() does: children, parameters and pickles stay.
    if isinstance(chain, ConvChain):
        module.__class__ = FusedUnit
        module.way = backend  # type: ignore[assignment]
        module.chain = chain  # type: ignore[assignment]
        module.inside = _child_modules(module)  # type: ignore[assignment, arg-type]
        shapes = chain.parameter_shapes()
        module.shapes = [*shapes, *shapes[len(chain.convs()) :]]  # type: ignore[assignment]
        _fuse_bn_relu(module.get_submodule("p"), backend)
        return IMPLEMENTATIONS[backend][0], ""
    if backend == "native":
        for conv in module.modules():
            if type(conv) is nn.Conv2d:
                conv.__class__ = _fastest_conv_class(conv)
    return (IMPLEMENTATIONS[backend][1] if _fuse_bn_relu(module, backend) else PLAIN_LAYERS), chain


def _fuse_bn_relu(module: nn.Module, backend: Backend) -> bool:
    """Puts BNs in `module` together with their ReLUs, where there are any."""
    sequences = list(filter(has_bn_relu, module.modules()))
    for sequence in sequences:
        sequence.__class__ = FusedSequence
        sequence.way = backend  # type: ignore[assignment]
    return bool(sequences)


def _fastest_conv_class(conv: nn.Conv2d) -> type[nn.Conv2d]:
    """What a convolution outside of whole units is computed by."""
    if native_conv.pays(conv):
        return native_conv.NativeConv
    if im2col.pays(conv):
        return im2col.Im2colConv
    return upcast_conv.UpcastConv if upcast_conv.pays(conv) else nn.Conv2d


def _group_choices(parts: list[tuple[str, str, str]]) -> Iterator[KernelChoice]:
    def choice_key(part: tuple[str, str, str]) -> tuple[str, str, str]:
        name, implementation, reason = part
        return name.split(".")[0], implementation, reason

    for (_, implementation, reason), group in groupby(parts, choice_key):
        names = [name for name, *_ in group]
        yield KernelChoice(names[0], names[-1], len(names), implementation, reason)
