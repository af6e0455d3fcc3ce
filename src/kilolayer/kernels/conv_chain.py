"""A residual unit as a chain of convolutions, each with the BN-ReLU before it: what the kernels compute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import BatchNorm2d

from kilolayer.kernels.compute_dtype import multiplies_bf16_faster
from kilolayer.units.layer_modules import PadChannelsModule
from kilolayer.units.modules import GatedUnit, ResidualUnit

LANES = 16
"""Channels in one vector register; the kernels need multiples of it."""
MAX_3X3_CHANNELS = 256
"""The largest 3×3 convolution, in input channels, that the kernels compute as fast as PyTorch in bf16.

Beyond it the weights leave the cache (benchmarks/unit_kernels.py). Kernels that multiply in fp32 have no
limit.
"""


@dataclass(frozen=True)
class ConvLink:
    """One convolution of F and the BN before its ReLU; `norm` is None if it reads its input directly."""

    norm: BatchNorm2d | None
    conv: nn.Conv2d


@dataclass(frozen=True)
class ConvChain:
    """x' = h + F(x); in the original unit (P1), which has a `final_norm`, x' = ReLU(h + BN(t_L)).

    h is x. In a unit that changes shape, h is x padded with zero channels (`padding`) or a 1×1 `projection`
    of x, followed by `projection_norm` if there is a `final_norm`; F's first convolution then reads x
    directly. Exactly one convolution of F has the shortcut's stride: the first, if it is 1×1, or a 3×3 one.
    """

    links: tuple[ConvLink, ...]
    final_norm: BatchNorm2d | None = None
    projection: nn.Conv2d | None = None
    projection_norm: BatchNorm2d | None = None
    padding: PadChannelsModule | None = None

    @property
    def in_channels(self) -> int:
        """Channels of x."""
        return self.links[0].conv.in_channels

    @property
    def out_channels(self) -> int:
        """Channels of x'."""
        return self.links[-1].conv.out_channels

    @property
    def has_identity_shortcut(self) -> bool:
        """Whether h is x."""
        return self.projection is None and self.padding is None

    @property
    def shortcut_stride(self) -> int:
        """The stride of the shortcut."""
        if self.padding is not None:
            return self.padding.stride
        return 1 if self.projection is None else self.projection.stride[0]

    @property
    def input_stride(self) -> int:
        """The stride of F's first convolution if that is 1×1: it then reads a subsampled x with stride 1."""
        first = self.links[0].conv
        return first.stride[0] if first.kernel_size == (1, 1) else 1

    def conv_strides(self) -> list[int]:
        """The strides of F's convolutions after x has been subsampled by `input_stride`."""
        return [link.conv.stride[0] if link.conv.kernel_size == (3, 3) else 1 for link in self.links]

    @property
    def saved_links(self) -> tuple[ConvLink, ...]:
        """The convolutions whose outputs the backward pass needs."""
        return self.links[: len(self.links) - (self.final_norm is None)]

    def convs(self) -> list[nn.Conv2d]:
        """F's convolutions, then the projection."""
        all_convs = [link.conv for link in self.links]
        return all_convs if self.projection is None else [*all_convs, self.projection]

    def norms(self) -> Iterator[BatchNorm2d]:
        """The BNs in the order in which F uses them, then the final one, then the projection's."""
        yield from (link.norm for link in self.links if link.norm is not None)
        if self.final_norm is not None:
            yield self.final_norm
        if self.projection_norm is not None:
            yield self.projection_norm

    def parameters(self) -> list[Tensor]:
        """The weights of all convolutions, then weight and bias of every BN; missing ones are left out."""
        # Read from the modules' own tables: attribute look-up is slow, and a step needs thousands of these.
        tensors = [conv._parameters.get("weight") for conv in self.convs()]
        tensors += [norm._parameters.get(name) for norm in self.norms() for name in ("weight", "bias")]
        return [parameter for parameter in tensors if parameter is not None]

    def running_statistics(self) -> list[Tensor]:
        """The running mean and variance of every BN; missing ones are left out."""
        buffers = [
            norm._buffers.get(name) for norm in self.norms() for name in ("running_mean", "running_var")
        ]
        return [buffer for buffer in buffers if buffer is not None]

    def parameter_shapes(self) -> list[tuple[int, ...]]:
        """The shapes that the parameters must have for each layer to fit the next one."""
        outputs = self.in_channels if self.padding is None else self.in_channels + self.padding.extra
        if self.projection is not None:
            outputs = self.projection.out_channels
        branch = [link.conv for link in self.links]
        widths = [self.in_channels, *(conv.out_channels for conv in branch[:-1]), outputs]
        pairs = zip(branch, pairwise(widths), strict=True)
        convs = [(after, before, *conv.kernel_size) for conv, (before, after) in pairs]
        if self.projection is not None:
            convs.append((outputs, self.in_channels, 1, 1))
        norms = [width for link, width in zip(self.links, widths, strict=False) if link.norm is not None]
        norms += [outputs for norm in (self.final_norm, self.projection_norm) if norm is not None]
        return [*convs, *((width,) for width in norms for _ in ("weight", "bias"))]


def same_shape_chain(unit: nn.Module) -> ConvChain | str:
    """The chain of a unit that keeps its shape, or the reason why the unit is none."""
    if isinstance(unit, GatedUnit) or not isinstance(unit, ResidualUnit):
        return "its paths are gated"
    if len(unit.p) or len(unit.h):
        return "its shortcut is not the identity" if len(unit.h) else "its paths share an activation"
    layers = list(unit.F)
    links = take_links(layers)
    if links is None:
        return "F is not a sequence of BN-ReLU-convolution"
    match [*layers, *unit.f]:
        case []:
            chain = ConvChain(tuple(links))
        case [BatchNorm2d() as final_norm, nn.ReLU()] if links[0].norm is None and len(unit.f) == 1:
            chain = ConvChain(tuple(links), final_norm)
        case _:
            return "the kernels do not support its arrangement"
    if any(link.conv.stride != (1, 1) for link in chain.links):
        return "it has a stride"
    return _unsupported_reason(chain) or chain


def transition_chain(unit: nn.Module) -> ConvChain | str:
    """The chain of a unit that changes shape, without its activation `p`, or the reason why it is none."""
    if isinstance(unit, GatedUnit) or not isinstance(unit, ResidualUnit):
        return "its paths are gated"
    layers = list(unit.F)
    links = take_links(layers)
    if links is None:
        return "F is not a sequence of BN-ReLU-convolution"
    reads_raw_input = links[0].norm is None
    match [*unit.h], [*layers, *unit.f]:
        case [PadChannelsModule() as padding], []:
            chain = ConvChain(tuple(links), padding=padding)
        case [PadChannelsModule() as padding], [BatchNorm2d() as final_norm, nn.ReLU()] if (
            reads_raw_input and len(unit.f) == 1
        ):
            chain = ConvChain(tuple(links), final_norm, padding=padding)
        case [nn.Conv2d() as projection], [] if reads_raw_input:
            chain = ConvChain(tuple(links), None, projection)
        case [nn.Conv2d() as projection, BatchNorm2d() as projection_norm], [
            BatchNorm2d() as final_norm,
            nn.ReLU(),
        ] if reads_raw_input and len(unit.f) == 1:
            chain = ConvChain(tuple(links), final_norm, projection, projection_norm)
        case [PadChannelsModule()] | [nn.Conv2d(), *_], _:
            return "the kernels do not support its arrangement"
        case _:
            return "its shortcut is neither a projection nor padded"
    strides = [link.conv.stride[0] for link in links if link.conv.stride != (1, 1)]
    if any(conv.stride[0] not in (1, 2) for conv in chain.convs() if conv.kernel_size == (3, 3)):
        return "the stride of its 3×3 convolution is not 2"
    if strides != [chain.shortcut_stride] * (chain.shortcut_stride != 1) or chain.shortcut_stride not in (
        chain.input_stride,
        *chain.conv_strides(),
    ):
        return "its stride is not that of the shortcut and one convolution of F"
    if chain.input_stride != 1 and not reads_raw_input:
        return "its first BN includes pixels that no convolution reads"
    return _unsupported_reason(chain) or chain


def chain_of_unit(unit: nn.Module) -> ConvChain | str:
    """The chain of a unit, whether or not it changes shape, or the reason why the unit is none."""
    chain = same_shape_chain(unit)
    if isinstance(chain, ConvChain):
        return chain
    transition = transition_chain(unit)
    return transition if isinstance(transition, ConvChain) else chain


def take_links(layers: list[nn.Module]) -> list[ConvLink] | None:
    """Removes convolutions, each with the BN-ReLU before it, from the front of `layers` and returns them."""
    links: list[ConvLink] = []
    while any(isinstance(layer, nn.Conv2d) for layer in layers):
        match layers:
            case [BatchNorm2d() as norm, nn.ReLU(), nn.Conv2d() as conv, *_]:
                links.append(ConvLink(norm, conv))
                del layers[:3]
            case [nn.Conv2d() as conv, *_] if not links:
                links.append(ConvLink(None, conv))
                del layers[:1]
            case _:
                return None
    return links or None


def _unsupported_reason(chain: ConvChain) -> str | None:
    """Why the kernels cannot compute a chain, or None if they can."""
    if not all(has_forward_of(conv, nn.Conv2d) for conv in chain.convs()):
        return "its convolution has a custom forward"
    if not all(has_forward_of(norm, BatchNorm2d) for norm in chain.norms()):
        return "its BN has a custom forward"
    parameters_fit = [parameter.shape for parameter in chain.parameters()] == chain.parameter_shapes()
    return unsupported_convs_reason(chain.convs()) or (
        None if parameters_fit else "a parameter is missing or does not fit the others"
    )


def has_forward_of(layer: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether `layer` computes with the unchanged `forward` of one of the classes `kinds`.

    A subclass, or a `forward` set on the instance, may compute anything.
    """
    return type(layer).forward in [kind.forward for kind in kinds] and "forward" not in vars(layer)


def weight_shape(conv: nn.Conv2d) -> tuple[int, ...]:
    """The shape of a convolution's weights."""
    return (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)


def unsupported_convs_reason(convs: Sequence[nn.Conv2d]) -> str | None:
    """Why no kernel computes one of these convolutions, whatever their strides, or None."""
    if any(conv.groups != 1 for conv in convs):
        return "its convolution is grouped"
    if any(conv.bias is not None or conv.kernel_size not in ((1, 1), (3, 3)) for conv in convs):
        return "its convolutions are not 1×1 or 3×3 without bias"
    if any(
        conv.padding != tuple(side // 2 for side in conv.kernel_size)
        or conv.stride[0] != conv.stride[1]
        or conv.dilation != (1, 1)
        or conv.padding_mode != "zeros"
        for conv in convs
    ):
        return "the kernels do not support its padding, stride or dilation"
    if any(conv.in_channels % LANES or conv.out_channels % LANES for conv in convs):
        return f"its channels are not multiples of {LANES}"
    if (
        any(conv.kernel_size == (3, 3) and conv.in_channels > MAX_3X3_CHANNELS for conv in convs)
        and multiplies_bf16_faster()
    ):
        return f"PyTorch's 3×3 convolution is faster for more than {MAX_3X3_CHANNELS} channels"
    return None
