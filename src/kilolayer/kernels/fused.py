"""A network's units on the fast path where it applies, and what was chosen for each, in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor, nn

from kilolayer.kernels import convolution, patches, widened
from kilolayer.kernels.activation import FusedSequence, has_activation
from kilolayer.kernels.calls import applies, fits, transformed
from kilolayer.kernels.chain import Chain, any_chain_of, chain_of
from kilolayer.kernels.unit import unit
from kilolayer.kernels.ways import Way, refusal, way_for
from kilolayer.networks import Network, activations
from kilolayer.networks.activations import Kept
from kilolayer.networks.model import ResidualNetwork
from kilolayer.units import Layout, build_unit
from kilolayer.units.modules import ResidualUnit

FUSED = "whole unit in one kernel"
ACTIVATIONS = "BN and ReLU in one kernel"
PLAIN = "plain layers"
WORDS: dict[Way, tuple[str, str]] = {
    "native": (FUSED, ACTIVATIONS),
    "triton": ("whole unit in Triton kernels", "BN and ReLU in Triton kernels"),
}
"""Of a whole unit, and of its activations alone."""


@dataclass(frozen=True)
class Choice:
    """What the units from `first` to `last`, neighbours in one stage, are computed with, and why."""

    first: str
    last: str
    units: int
    what: str
    why: str

    def __str__(self) -> str:
        names = self.first if self.first == self.last else f"{self.first} … {self.last}"
        return f"{names}: {self.what}" + (f", {self.why}" if self.why else "")


@dataclass(frozen=True)
class Explanation:
    """The choices of a network, in its order."""

    choices: tuple[Choice, ...]

    @property
    def fused(self) -> int:
        """How many units are fused."""
        whole = {words for words, _ in WORDS.values()}
        return sum(choice.units for choice in self.choices if choice.what in whole)

    def __str__(self) -> str:
        return "; ".join(map(str, self.choices))


class FusedUnit(ResidualUnit):
    """A residual unit that is one operation in training, in bf16 autocast, on a channels-last bf16 input.

    Everywhere else it is the unit that it was: in evaluation, a layer's own too, on another device or in
    another precision, in a compiler, while hooks listen to its layers, which a kernel would not call, and
    when its layers or their parameters are no longer those that the kernel knows.
    """

    chain: Chain
    inside: tuple[nn.Module, ...]
    """The modules that the chain was made of."""
    shapes: list[tuple[int, ...]]
    """Of the chain's parameters, then of its running averages."""
    way: Way = "native"

    def forward(self, x: Tensor) -> Tensor:
        if (
            self.training
            and not transformed()
            and applies(self.way, x, self.inside, self.chain.stride)
            and _inside(self) == self.inside
        ):
            chain, parameters = self.chain, self.chain.parameters()
            if fits(x, chain.inputs, [*parameters, *chain.running()], self.shapes):
                if self.way == "native":
                    return unit(chain, self.p(x), parameters)
                from kilolayer.kernels.gpu.unit import unit as of_gpu  # Triton need not be there

                return of_gpu(chain, x, parameters)
        return super().forward(x)


def _inside(unit: ResidualUnit) -> tuple[nn.Module, ...]:
    """Its paths and their layers."""
    # By the modules' own tables, for a step asks for every unit's.
    paths = unit._modules.values()
    return (*paths, *(layer for path in paths for layer in path._modules.values()))  # type: ignore[arg-type, union-attr]


def fuse(model: ResidualNetwork, way: Way | None = None) -> Explanation:
    """Puts every unit of `model` that can be on the fast path of its device, and says what was chosen.

    Where a unit cannot be computed whole, its BNs are computed together with their ReLUs, and so are those
    of the stem and of the final activation. Modules, parameters and state dict stay what they are. Layers
    that have been replaced since the last time are taken as they are now.
    """
    unfuse(model)
    device = next(model.parameters()).device
    way = way or way_for(device)
    missing = refusal(device, way)
    found = [(name, *fuse_part(module, way, missing)) for name, module in _parts(model)]
    return Explanation(tuple(_grouped(found)))


def fused_share(network: Network) -> float:
    """Which share of the units' multiply-adds the kernels compute in whole units."""
    fused: dict[Layout, bool] = {}
    done = total = 0
    for placed in network.units():
        if placed.layout not in fused:
            with torch.device("meta"):
                fused[placed.layout] = isinstance(_whole(build_unit(placed.layout), "native"), Chain)
        count = placed.layout.multiply_adds(placed.side)
        total += count
        done += count * fused[placed.layout]
    return done / total


def kept_by_units(model: ResidualNetwork) -> Iterator[Kept]:
    """What every unit of `model` keeps for its backward pass: a fused one x and F's inner outputs."""
    plain = activations.kept_by_units(model.description)
    for placed, kept, (_, module) in zip(model.description.units(), plain, _units(model), strict=True):
        yield _kept(module, kept, placed.side) if isinstance(module, FusedUnit) else kept


def _kept(module: FusedUnit, plain: Kept, side: int) -> Kept:
    chain = module.chain
    inputs, side_of_read = chain.inputs, -(-side // chain.stride)
    inside, activated = 0, len(module.p) > 0
    # Pixels that a stride leaves are copied; where there is none, what is read is x or its activation.
    if chain.skips != 1 or (chain.projection is not None and chain.stride != 1):
        inside += inputs * side_of_read**2
    if activated and chain.skips == 1:
        inside += inputs * side**2
    side = -(-side // chain.skips)
    for link, stride in zip(chain.links, chain.strides(), strict=True):
        side = -(-side // stride)
        if link in chain.inner:
            inside += link.conv.out_channels * side**2
    if chain.behind is not None:
        inside += chain.behind.num_features * side**2
    return replace(plain, keeps_input=activated or chain.skips == 1, inside=inside)


def _whole(unit: nn.Module, way: Way) -> Chain | str:
    """The chain that kernels of this family compute whole, or in words why there is none."""
    return chain_of(unit) if way == "triton" else any_chain_of(unit)


def unfuse(model: ResidualNetwork) -> None:
    """Takes every part of `model` back to plain layers, but for convolutions that have been parametrized."""
    for module in model.modules():
        if isinstance(module, FusedUnit):
            module.__class__ = ResidualUnit  # type: ignore[assignment]
        elif isinstance(module, FusedSequence):
            module.__class__ = nn.Sequential  # type: ignore[assignment]
        # A parametrization has put a class of its own in place of one of these.
        elif type(module) in (convolution.NativeConv, patches.PatchConv, widened.WidenedConv):
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


def fuse_part(module: nn.Module, way: Way, missing: str | None) -> tuple[str, str]:
    if missing is not None:
        return PLAIN, missing
    chain = _whole(module, way) if isinstance(module, ResidualUnit) else ""
    # A class decides only what forward() does: children, parameters and pickles stay.
    if isinstance(chain, Chain):
        module.__class__ = FusedUnit
        module.way = way  # type: ignore[assignment]
        module.chain = chain  # type: ignore[assignment]
        module.inside = _inside(module)  # type: ignore[assignment, arg-type]
        shapes = chain.shapes()
        module.shapes = [*shapes, *shapes[len(chain.convs()) :]]  # type: ignore[assignment]
        _activations_fused(module.get_submodule("p"), way)
        return WORDS[way][0], ""
    if way == "native":
        for conv in module.modules():
            if type(conv) is nn.Conv2d:
                conv.__class__ = _alone(conv)
    return (WORDS[way][1] if _activations_fused(module, way) else PLAIN), chain


def _activations_fused(module: nn.Module, way: Way) -> bool:
    """Puts BNs in `module` together with their ReLUs, where there are any."""
    sequences = list(filter(has_activation, module.modules()))
    for sequence in sequences:
        sequence.__class__ = FusedSequence
        sequence.way = way  # type: ignore[assignment]
    return bool(sequences)


def _alone(conv: nn.Conv2d) -> type[nn.Conv2d]:
    """What a convolution outside of whole units is computed by."""
    if convolution.pays(conv):
        return convolution.NativeConv
    if patches.pays(conv):
        return patches.PatchConv
    return widened.WidenedConv if widened.pays(conv) else nn.Conv2d


def _grouped(found: list[tuple[str, str, str]]) -> Iterator[Choice]:
    def same(one: tuple[str, str, str]) -> tuple[str, str, str]:
        name, what, why = one
        return name.split(".")[0], what, why

    for (_, what, why), group in groupby(found, same):
        names = [name for name, *_ in group]
        yield Choice(names[0], names[-1], len(names), what, why)
