"""A residual unit as a chain: F's convolutions, each with the BN-ReLU before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import BatchNorm2d

from kilolayer.kernels.compute_dtype import multiplies_bf16_faster
from kilolayer.units.modules import GatedUnit, PadChannelsModule, ResidualUnit

LANES = 16
"""Channels in one vector register; the kernels take multiples of it."""
MAX_3X3_CHANNELS = 256
"""Channels of a 3×3 convolution up to which the kernels are as fast as PyTorch's in bf16: beyond, its weights
leave the cache (benchmarks/unit_kernels.py). Where they multiply in fp32 they are faster all the same."""


@dataclass(frozen=True)
class ConvLink:
    """One convolution of F, and the BN whose ReLU it reads; None where it reads its input as it is."""

    norm: BatchNorm2d | None
    conv: nn.Conv2d


@dataclass(frozen=True)
class ConvChain:
    """x' = h + F(x), or with a BN `end` behind the last convolution x' = ReLU(h + BN(t)): P1's unit.

    h is x. In a unit that changes shape it is x with its `padding` of zero channels, or x through a 1×1
    `projection`, with an `end` with the BN `behind` it, and F's first convolution reads x as it is. Of F
    then either the first convolution, if it is 1×1 and reads x as it is, has the shortcut's stride, or a
    3×3 one.
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
        """The shortcut's."""
        if self.padding is not None:
            return self.padding.stride
        return 1 if self.projection is None else self.projection.stride[0]

    @property
    def input_stride(self) -> int:
        """The stride of F's first convolution, where it is 1×1: of fewer pixels it is one without."""
        first = self.links[0].conv
        return first.stride[0] if first.kernel_size == (1, 1) else 1

    def conv_strides(self) -> list[int]:
        """Of every convolution of F behind those skipped pixels."""
        return [link.conv.stride[0] if link.conv.kernel_size == (3, 3) else 1 for link in self.links]

    @property
    def saved_links(self) -> tuple[ConvLink, ...]:
        """The convolutions whose outputs the backward pass needs."""
        return self.links[: len(self.links) - (self.final_norm is None)]

    def convs(self) -> list[nn.Conv2d]:
        all_convs = [link.conv for link in self.links]
        return all_convs if self.projection is None else [*all_convs, self.projection]

    def norms(self) -> Iterator[BatchNorm2d]:
        yield from (link.norm for link in self.links if link.norm is not None)
        if self.final_norm is not None:
            yield self.final_norm
        if self.projection_norm is not None:
            yield self.projection_norm

    def parameters(self) -> list[Tensor]:
        """Of every convolution its weights, then of every BN weight and bias; without what is missing."""
        # By the modules' own tables: attributes of modules are slow to look up, a step asks for thousands.
        tensors = [conv._parameters.get("weight") for conv in self.convs()]
        tensors += [norm._parameters.get(name) for norm in self.norms() for name in ("weight", "bias")]
        return [parameter for parameter in tensors if parameter is not None]

    def running_statistics(self) -> list[Tensor]:
        """Of every BN its running mean and variance; without what is missing."""
        buffers = [
            norm._buffers.get(name) for norm in self.norms() for name in ("running_mean", "running_var")
        ]
        return [buffer for buffer in buffers if buffer is not None]

    def parameter_shapes(self) -> list[tuple[int, ...]]:
        """Of the parameters, where each layer takes what the one before it gives."""
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
    """The chain that `unit` is, or in words why it is none."""
    if isinstance(unit, GatedUnit) or not isinstance(unit, ResidualUnit):
        return "its paths are gated"
    if len(unit.p) or len(unit.h):
        return "its shortcut is no identity" if len(unit.h) else "its paths share an activation"
    layers = list(unit.F)
    links = take_links(layers)
    if links is None:
        return "F is not BN-ReLU-convolution in turn"
    match [*layers, *unit.f]:
        case []:
            chain = ConvChain(tuple(links))
        case [BatchNorm2d() as end, nn.ReLU()] if links[0].norm is None and len(unit.f) == 1:
            chain = ConvChain(tuple(links), end)
        case _:
            return "of its arrangement"
    if any(link.conv.stride != (1, 1) for link in chain.links):
        return "it has a stride"
    return _unsupported_reason(chain) or chain


def transition_chain(unit: nn.Module) -> ConvChain | str:
    """The chain that a unit which changes shape is, behind its `p`, or in words why it is none."""
    if isinstance(unit, GatedUnit) or not isinstance(unit, ResidualUnit):
        return "its paths are gated"
    layers = list(unit.F)
    links = take_links(layers)
    if links is None:
        return "F is not BN-ReLU-convolution in turn"
    reads_raw_input = links[0].norm is None
    match [*unit.h], [*layers, *unit.f]:
        case [PadChannelsModule() as padding], []:
            chain = ConvChain(tuple(links), padding=padding)
        case [PadChannelsModule() as padding], [BatchNorm2d() as end, nn.ReLU()] if (
            reads_raw_input and len(unit.f) == 1
        ):
            chain = ConvChain(tuple(links), end, padding=padding)
        case [nn.Conv2d() as projection], [] if reads_raw_input:
            chain = ConvChain(tuple(links), None, projection)
        case [nn.Conv2d() as projection, BatchNorm2d() as behind], [
            BatchNorm2d() as end,
            nn.ReLU(),
        ] if reads_raw_input and len(unit.f) == 1:
            chain = ConvChain(tuple(links), end, projection, behind)
        case [PadChannelsModule()] | [nn.Conv2d(), *_], _:
            return "of its arrangement"
        case _:
            return "its shortcut is no projection and not padded"
    strides = [link.conv.stride[0] for link in links if link.conv.stride != (1, 1)]
    if any(conv.stride[0] not in (1, 2) for conv in chain.convs() if conv.kernel_size == (3, 3)):
        return "the stride of its 3×3 convolution is not 2"
    if strides != [chain.shortcut_stride] * (chain.shortcut_stride != 1) or chain.shortcut_stride not in (
        chain.input_stride,
        *chain.conv_strides(),
    ):
        return "its strides are not one of F's and the shortcut's"
    if chain.input_stride != 1 and not reads_raw_input:
        return "its first BN counts pixels that no convolution reads"
    return _unsupported_reason(chain) or chain


def unit_chain(unit: nn.Module) -> ConvChain | str:
    """The chain that a unit is, whether it changes shape or not, or in words why it is none."""
    chain = same_shape_chain(unit)
    if isinstance(chain, ConvChain):
        return chain
    transition = transition_chain(unit)
    return transition if isinstance(transition, ConvChain) else chain


def take_links(layers: list[nn.Module]) -> list[ConvLink] | None:
    """Takes the convolutions, with BN-ReLU before them, from the front of `layers`."""
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
    """Why kernels do not compute what is a chain by its form."""
    if not all(has_forward_of(conv, nn.Conv2d) for conv in chain.convs()):
        return "its convolution has a forward of its own"
    if not all(has_forward_of(norm, BatchNorm2d) for norm in chain.norms()):
        return "its BN has a forward of its own"
    parameters_fit = [parameter.shape for parameter in chain.parameters()] == chain.parameter_shapes()
    return unsupported_convs_reason(chain.convs()) or (
        None if parameters_fit else "a parameter is missing or does not fit the others"
    )


def has_forward_of(layer: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether `layer` has the forward of one of these classes; that of a class derived from them may do
    anything, and so may one that was put in its place."""
    return type(layer).forward in [kind.forward for kind in kinds] and "forward" not in vars(layer)


def weight_shape(conv: nn.Conv2d) -> tuple[int, ...]:
    """That of its weights."""
    return (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)


def unsupported_convs_reason(convs: Sequence[nn.Conv2d]) -> str | None:
    """Why there is none for one of these convolutions, of whatever stride."""
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
        return "its convolutions have another padding, stride or dilation than kernels know"
    if any(conv.in_channels % LANES or conv.out_channels % LANES for conv in convs):
        return f"its channels are no multiples of {LANES}"
    if (
        any(conv.kernel_size == (3, 3) and conv.in_channels > MAX_3X3_CHANNELS for conv in convs)
        and multiplies_bf16_faster()
    ):
        return f"PyTorch's 3×3 convolution is faster for more than {MAX_3X3_CHANNELS} channels"
    return None
