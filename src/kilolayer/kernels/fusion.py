"""Fusing a network: which of its parts the kernels compute, and why the others stay plain layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal, cast

import torch
from torch import nn

from kilolayer.kernels.backend import Backend, backend_for, unavailable_reason
from kilolayer.kernels.bn_relu import FusedSequence, has_bn_relu
from kilolayer.kernels.compute_dtype import mul_dtype, multiplies_bf16_faster
from kilolayer.kernels.conv_chain import ConvChain, chain_of_unit, same_shape_chain
from kilolayer.kernels.fused_unit import FusedUnit
from kilolayer.kernels.im2col import Im2colConv
from kilolayer.kernels.native_conv import NativeConv
from kilolayer.kernels.upcast_conv import UpcastConv
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
"""For every backend: the words for a whole unit, and for BN-ReLU alone."""
CONV_CLASSES = (NativeConv, Im2colConv, UpcastConv)
"""The classes of a convolution outside fused units, in order of preference."""


@dataclass(frozen=True)
class KernelChoice:
    """How neighbouring units of one stage, from `first` to `last`, are computed, and why.

    >>> print(KernelChoice("stage1.0", "stage1.8", 9, "plain layers", "its paths are gated"))
    stage1.0 … stage1.8: plain layers, its paths are gated
    """

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
    """What `fuse` chose for the parts of a network, in their order."""

    choices: tuple[KernelChoice, ...]
    backend: Backend

    @property
    def fused_units(self) -> int:
        """The number of units that are computed as a whole."""
        whole_unit_names = {words for words, _ in IMPLEMENTATIONS.values()}
        return sum(choice.units for choice in self.choices if choice.implementation in whole_unit_names)

    @property
    def is_plain(self) -> bool:
        """Whether no part of the network is fused."""
        return all(choice.implementation == PLAIN_LAYERS for choice in self.choices)

    @property
    def unit_choices(self) -> tuple[KernelChoice, ...]:
        """The choices for residual units, without those for the stem and the final activation."""
        return tuple(choice for choice in self.choices if choice.first not in ("stem", "final"))

    @property
    def multiplies_in(self) -> str:
        """The dtype in which whole units multiply."""
        return mul_dtype() if self.backend == "native" and self.fused_units else "bf16"

    def __str__(self) -> str:
        return "; ".join(map(str, self.choices))


def fuse(model: ResidualNetwork, backend: Backend | None = None, *, verify: bool = True) -> FusionReport:
    """Fuses every unit of `model` that the kernels of its device support, and reports the choices.

    Of a unit that cannot be computed as a whole, and of the stem and the final activation, each BN is fused
    with the ReLU behind it. Only the classes of modules change: modules, parameters and the state dict stay.
    Call it again after layers have been replaced.

    `verify` compares Triton's kernels with PyTorch's layers on this GPU, one unit of each kind.

    Raises:
        InputError: with `verify`, the kernels' errors are larger than those of PyTorch's bf16 layers.

    >>> from kilolayer.networks import build, describe
    >>> model = build(describe("preact_resnet20_cifar"))
    >>> report = fuse(model)
    >>> unfuse(model)
    """
    unfuse(model)
    device = next(model.parameters()).device
    backend = backend or backend_for(device)
    unavailable = unavailable_reason(device, backend)
    parts = [(name, *fuse_part(module, backend, unavailable)) for name, module in _parts(model)]
    report = FusionReport(tuple(_group_choices(parts)), backend)
    if verify and report.fused_units and device.type == "cuda":
        from kilolayer.kernels.gpu.self_check import check_units  # Triton may be missing

        check_units(model)
    return report


def fastest_precision(device: torch.device, network: Network | None = None) -> Literal["bf16", "fp32"]:
    """The faster of bf16 and fp32 on `device`, for training.

    On a GPU it is bf16 if the hardware has it. On a CPU it is bf16 if the processor multiplies bf16 faster,
    and for a `network` most of which the native kernels compute, in whatever dtype they multiply.

    >>> fastest_precision(torch.device("cpu")) in ("bf16", "fp32")
    True
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if network is not None and unavailable_reason(device) is None and fused_share(network) > 0.5:
        return "bf16"
    return "bf16" if multiplies_bf16_faster() else "fp32"


def fused_share(network: Network) -> float:
    """The share of the multiply-adds in residual units that the native kernels compute as whole units."""
    is_fused: dict[Layout, bool] = {}
    fused_count = total_count = 0
    for placed in network.units():
        if placed.layout not in is_fused:
            with torch.device("meta"):
                is_fused[placed.layout] = isinstance(
                    _supported_chain(build_unit(placed.layout), "native"), ConvChain
                )
        count = placed.layout.multiply_adds(placed.side)
        total_count += count
        fused_count += count * is_fused[placed.layout]
    return fused_count / total_count


def fused_saved_activations(model: ResidualNetwork) -> Iterator[SavedActivations]:
    """What every unit of `model` saves for its backward pass, as it is computed now.

    A fused unit saves x and the outputs of F's inner convolutions; a plain one what autograd saves for its
    layers. The sizes are numbers for one image.

    >>> from kilolayer.networks import build, describe
    >>> saved = list(fused_saved_activations(build(describe("resnet20_cifar"))))
    >>> len(saved), saved[0].input
    (9, 16384)
    """
    plain = saved_activations.network_activations(model.description)
    for placed, saved, (_, module) in zip(model.description.units(), plain, _units(model), strict=True):
        yield _saved_by_fused_unit(module, saved, placed.side) if isinstance(module, FusedUnit) else saved


def _saved_by_fused_unit(module: FusedUnit, plain: SavedActivations, side: int) -> SavedActivations:
    chain = module.chain
    inputs, side_of_read = chain.in_channels, -(-side // chain.shortcut_stride)
    inside, activated = 0, len(module.p) > 0
    # Subsampled pixels are copied; without a stride the unit reads x or its activation directly.
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
    """The chain that the kernels of this backend compute as a whole, or the reason why there is none."""
    return same_shape_chain(unit) if backend == "triton" else chain_of_unit(unit)


def unfuse(model: ResidualNetwork) -> None:
    """Turns every part of `model` back into plain layers.

    Convolutions that have been parametrized since stay as they are.
    """
    for module in model.modules():
        if isinstance(module, FusedUnit):
            module.__class__ = ResidualUnit  # type: ignore[assignment]
        elif isinstance(module, FusedSequence):
            module.__class__ = nn.Sequential  # type: ignore[assignment]
        # A parametrised convolution has a generated class; leave it alone.
        elif type(module) in CONV_CLASSES:
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
    """Fuses one part of a network; returns how it is computed and why."""
    if unavailable is not None:
        return PLAIN_LAYERS, unavailable
    chain = _supported_chain(module, backend) if isinstance(module, ResidualUnit) else ""
    if isinstance(chain, ConvChain):
        FusedUnit.convert(cast(ResidualUnit, module), chain, backend)
        _fuse_bn_relu(module.get_submodule("p"), backend)
        return IMPLEMENTATIONS[backend][0], ""
    if backend == "native":
        for conv in module.modules():
            if type(conv) is nn.Conv2d:
                conv.__class__ = _fastest_conv_class(conv)
    return (IMPLEMENTATIONS[backend][1] if _fuse_bn_relu(module, backend) else PLAIN_LAYERS), chain


def _fuse_bn_relu(module: nn.Module, backend: Backend) -> bool:
    """Fuses every BN in `module` with the ReLU behind it; returns whether there was any."""
    sequences = list(filter(has_bn_relu, module.modules()))
    for sequence in sequences:
        sequence.__class__ = FusedSequence
        sequence.backend = backend  # type: ignore[assignment]
    return bool(sequences)


def _fastest_conv_class(conv: nn.Conv2d) -> type[nn.Conv2d]:
    """The class that computes a convolution outside a fused unit fastest."""
    return next((kind for kind in CONV_CLASSES if kind.is_faster(conv)), nn.Conv2d)


def _group_choices(parts: list[tuple[str, str, str]]) -> Iterator[KernelChoice]:
    def choice_key(part: tuple[str, str, str]) -> tuple[str, str, str]:
        name, implementation, reason = part
        return name.split(".")[0], implementation, reason

    for (_, implementation, reason), group in groupby(parts, choice_key):
        names = [name for name, *_ in group]
        yield KernelChoice(names[0], names[-1], len(names), implementation, reason)
