"""A residual unit as a chain: F's convolutions, each with the BN-ReLU before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from kilolayer.kernels.arithmetic import multiplies_bf16_faster
from kilolayer.units.modules import BatchNorm, GatedUnit, PadChannels, ResidualUnit

LANES = 16
"""Channels in one vector register; the kernels take multiples of it."""
WIDEST = 256
"""Channels of a 3×3 convolution up to which the kernels are as fast as PyTorch's in bf16: beyond, its weights
leave the cache (benchmarks/unit_kernels.py). Where they multiply in fp32 they are faster all the same."""


@dataclass(frozen=True)
class Link:
    """One convolution of F, and the BN whose ReLU it reads; None where it reads its input as it is."""

    norm: BatchNorm | None
    conv: nn.Conv2d


@dataclass(frozen=True)
class Chain:
    """x' = h + F(x), or with a BN `end` behind the last convolution x' = ReLU(h + BN(t)): P1's unit.

    h is x. In a unit that changes shape it is x with its `padding` of zero channels, or x through a 1×1
    `projection`, with an `end` with the BN `behind` it, and F's first convolution reads x as it is. Of F
    then either the first convolution, if it is 1×1 and reads x as it is, has the shortcut's stride, or a
    3×3 one.
    """

    links: tuple[Link, ...]
    end: BatchNorm | None = None
    projection: nn.Conv2d | None = None
    behind: BatchNorm | None = None
    padding: PadChannels | None = None

    @property
    def identity(self) -> bool:
        """Whether h is x."""
        return self.projection is None and self.padding is None

    @property
    def stride(self) -> int:
        """The shortcut's."""
        if self.padding is not None:
            return self.padding.stride
        return 1 if self.projection is None else self.projection.stride[0]

    @property
    def skips(self) -> int:
        """The stride of F's first convolution, where it is 1×1: of fewer pixels it is one without."""
        first = self.links[0].conv
        return first.stride[0] if first.kernel_size == (1, 1) else 1

    def strides(self) -> list[int]:
        """Of every convolution of F behind those skipped pixels."""
        return [link.conv.stride[0] if link.conv.kernel_size == (3, 3) else 1 for link in self.links]

    @property
    def inner(self) -> tuple[Link, ...]:
        """The convolutions whose outputs the backward pass needs."""
        return self.links[: len(self.links) - (self.end is None)]

    def convs(self) -> list[nn.Conv2d]:
        own = [link.conv for link in self.links]
        return own if self.projection is None else [*own, self.projection]

    def norms(self) -> Iterator[BatchNorm]:
        yield from (link.norm for link in self.links if link.norm is not None)
        if self.end is not None:
            yield self.end
        if self.behind is not None:
            yield self.behind

    def parameters(self) -> list[Tensor]:
        """Of every convolution its weights, then of every BN weight and bias."""
        # By the modules' own tables: attributes of modules are slow to look up, a step asks for thousands.
        own = [conv._parameters["weight"] for conv in self.convs()]
        own += [norm._parameters[name] for norm in self.norms() for name in ("weight", "bias")]
        return [parameter for parameter in own if parameter is not None]


def chain_of(unit: nn.Module) -> Chain | str:
    """The chain that `unit` is, or in words why it is none."""
    if isinstance(unit, GatedUnit) or not isinstance(unit, ResidualUnit):
        return "its paths are gated"
    if len(unit.p) or len(unit.h):
        return "its shortcut is no identity" if len(unit.h) else "its paths share an activation"
    layers = list(unit.F)
    links = links_of(layers)
    if links is None:
        return "F is not BN-ReLU-convolution in turn"
    match [*layers, *unit.f]:
        case []:
            chain = Chain(tuple(links))
        case [BatchNorm() as end, nn.ReLU()] if links[0].norm is None and len(unit.f) == 1:
            chain = Chain(tuple(links), end)
        case _:
            return "of its arrangement"
    convs = [link.conv for link in chain.links]
    return (
        "it has a stride" if any(conv.stride != (1, 1) for conv in convs) else no_kernel_for(convs) or chain
    )


def transition_of(unit: nn.Module) -> Chain | str:
    """The chain that a unit which changes shape is, behind its `p`, or in words why it is none."""
    if isinstance(unit, GatedUnit) or not isinstance(unit, ResidualUnit):
        return "its paths are gated"
    layers = list(unit.F)
    links = links_of(layers)
    if links is None:
        return "F is not BN-ReLU-convolution in turn"
    raw = links[0].norm is None
    match [*unit.h], [*layers, *unit.f]:
        case [PadChannels() as padding], []:
            chain = Chain(tuple(links), padding=padding)
        case [PadChannels() as padding], [BatchNorm() as end, nn.ReLU()] if raw and len(unit.f) == 1:
            chain = Chain(tuple(links), end, padding=padding)
        case [nn.Conv2d() as projection], [] if raw:
            chain = Chain(tuple(links), None, projection)
        case [nn.Conv2d() as projection, BatchNorm() as behind], [BatchNorm() as end, nn.ReLU()] if (
            raw and len(unit.f) == 1
        ):
            chain = Chain(tuple(links), end, projection, behind)
        case [PadChannels()] | [nn.Conv2d(), *_], _:
            return "of its arrangement"
        case _:
            return "its shortcut is no projection and not padded"
    own = [link.conv.stride[0] for link in links if link.conv.stride != (1, 1)]
    if any(conv.stride[0] not in (1, 2) for conv in chain.convs() if conv.kernel_size == (3, 3)):
        return "the stride of its 3×3 convolution is not 2"
    if own != [chain.stride] * (chain.stride != 1) or chain.stride not in (chain.skips, *chain.strides()):
        return "its strides are not one of F's and the shortcut's"
    if chain.skips != 1 and not raw:
        return "its first BN counts pixels that no convolution reads"
    return no_kernel_for(chain.convs()) or chain


def any_chain_of(unit: nn.Module) -> Chain | str:
    """The chain that a unit is, whether it changes shape or not, or in words why it is none."""
    found = chain_of(unit)
    if isinstance(found, Chain):
        return found
    transition = transition_of(unit)
    return transition if isinstance(transition, Chain) else found


def links_of(layers: list[nn.Module]) -> list[Link] | None:
    """Takes the convolutions, with BN-ReLU before them, from the front of `layers`."""
    links: list[Link] = []
    while any(isinstance(layer, nn.Conv2d) for layer in layers):
        match layers:
            case [BatchNorm() as norm, nn.ReLU(), nn.Conv2d() as conv, *_]:
                links.append(Link(norm, conv))
                del layers[:3]
            case [nn.Conv2d() as conv, *_] if not links:
                links.append(Link(None, conv))
                del layers[:1]
            case _:
                return None
    return links or None


def no_kernel_for(convs: Sequence[nn.Conv2d]) -> str | None:
    """Why there is none for one of these convolutions, their strides apart."""
    if any(conv.groups != 1 for conv in convs):
        return "its convolution is grouped"
    if any(conv.bias is not None or conv.kernel_size not in ((1, 1), (3, 3)) for conv in convs):
        return "its convolutions are not 1×1 or 3×3 without bias"
    if any(conv.in_channels % LANES or conv.out_channels % LANES for conv in convs):
        return f"its channels are no multiples of {LANES}"
    if (
        any(conv.kernel_size == (3, 3) and conv.in_channels > WIDEST for conv in convs)
        and multiplies_bf16_faster()
    ):
        return f"PyTorch's 3×3 convolution is faster for more than {WIDEST} channels"
    return None
