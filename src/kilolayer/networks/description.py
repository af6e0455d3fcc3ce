"""A residual network as a value: a stem, stages of units, a classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from kilolayer.errors import InputError
from kilolayer.units import ops as op
from kilolayer.units.arrangement import activation_ops
from kilolayer.units.branch import Basic
from kilolayer.units.field_checks import check_choice, check_count, check_field, is_count
from kilolayer.units.ops import Ops
from kilolayer.units.unit import Layout, Unit, layout

MAX_UNITS = 100_000
"""Enough for 200,001 layers. With more, by mistake or malice, the description alone would fill the memory."""


MAX_STAGES = 1_000
MAX_LAYERS = 5_000_000
MAX_IMAGE_SIZE = 4_096
"""The side in pixels of the largest images, in a description, in a data set and on the command line."""


@dataclass(frozen=True)
class Stem:
    """The first convolution, BN and ReLU; `pool` adds 3×3 max pooling with stride 2 (P1, Table 1).

    (N, in_chans, H, W) → (N, channels, H/s, W/s), where s is the stride, doubled by `pool`. In a
    pre-activation network this BN and ReLU are those of the first unit, ahead of the split into two paths
    (P2, Sec. 4).

    >>> Stem(64, kernel=7, stride=2, pool=True)
    Stem(channels=64, kernel=7, stride=2, pool=True)

    Raises:
        InputError: a field is no whole number from 1, or `kernel` is even.
    """

    channels: int = 16
    kernel: int = 3
    stride: int = 1
    pool: bool = False

    def __post_init__(self) -> None:
        check_count("Stem", channels=self.channels, kernel=self.kernel, stride=self.stride)
        # Padding by ⌊kernel/2⌋ keeps the image's size only for an odd kernel.
        check_field("Stem", "kernel", self.kernel, self.kernel % 2 == 1, "an odd number")


@dataclass(frozen=True)
class Stage:
    """`units` residual units of one `width`; the first of them has the `stride`.

    >>> Stage(units=9, width=32, stride=2)
    Stage(units=9, width=32, stride=2)

    Raises:
        InputError: a field is no whole number from 1.
    """

    units: int
    width: int
    stride: int = 1

    def __post_init__(self) -> None:
        check_count("Stage", units=self.units, width=self.width, stride=self.stride)


def outer_layers(unit: Unit) -> int:
    """The number of layers outside of F that count for a network's depth."""
    return 4 if isinstance(unit.branch, Basic) and unit.branch.widen > 1 else 2


@dataclass(frozen=True)
class PlacedUnit:
    """A unit at its place in a network: its name in the state dict, its layers, and the side of its input.

    >>> from kilolayer.networks import cifar
    >>> first = cifar(20).units()[0]
    >>> first.name, first.side, first.layout.parameters
    ('stage1.0', 32, 4672)
    """

    name: str
    layout: Layout
    side: int


@dataclass(frozen=True)
class _Run:
    """`count` equal units of a stage, from its unit `first` on."""

    first: int
    count: int
    layout: Layout
    channels: int
    side: int


def _check_shapes(name: str, layout: Layout, channels: int, side: int) -> None:
    """Raise `InputError` where a user's layers give h(x) and F(x) shapes that cannot be added."""
    parts = {"h": layout.h, "F": layout.F}
    if all(type(layer).output is not op.Op.output for ops in parts.values() for layer in op.leaves(ops)):
        return
    shapes = {part: op.output(ops, channels, side) for part, ops in parts.items() if op.ZeroOp() not in ops}
    if len(set(shapes.values())) > 1:
        text = ", ".join(f"{part}(x) has {out}×{height}×{height}" for part, (out, height) in shapes.items())
        raise InputError(f"{name}: {text}; allowed: the same channels, height and width")


@dataclass(frozen=True)
class Network:
    """A whole network as a value; its module, its counts and its drawings are computed from it.

    `image_size` is the side of the square input that the counts refer to; the module takes any size.
    `initialisation` is He's normal initialisation, with the fan of a convolution's output ("fan_out", the
    default and the choice of P2's released code) or of its input ("fan_in", which the paper allows too).

    >>> from kilolayer.units import BASIC
    >>> network = Network(Stem(16), (Stage(3, 16), Stage(3, 32, 2), Stage(3, 64, 2)), BASIC)
    >>> network.depth, network.parameters, network.multiply_adds
    (20, 269722, 40551040)

    Raises:
        InputError: a field is out of its range, or the image is smaller than the product of all strides.
    """

    stem: Stem
    stages: tuple[Stage, ...]
    unit: Unit
    num_classes: int = 10
    in_chans: int = 3
    image_size: int = 32
    initialisation: Literal["fan_out", "fan_in"] = "fan_out"

    def __post_init__(self) -> None:
        check_count("Network", num_classes=self.num_classes, in_chans=self.in_chans)
        check_field("Network", "stages", self.stages, bool(self.stages), "at least one stage")
        units = sum(stage.units for stage in self.stages)
        check_field("Network", "units", units, units <= MAX_UNITS, f"at most {MAX_UNITS:,} in all stages")
        check_field(
            "Network", "stages", len(self.stages), len(self.stages) <= MAX_STAGES, f"at most {MAX_STAGES:,}"
        )
        check_choice("Network", "initialisation", self.initialisation, "fan_out", "fan_in")
        self._check_image_size()
        for number, run in self._runs():
            _check_shapes(f"stage{number}.{run.first}", run.layout, run.channels, run.side)
        layers = self.num_layers
        check_field("Network", "layers", layers, layers <= MAX_LAYERS, f"at most {MAX_LAYERS:,} of all kinds")

    def _check_image_size(self) -> None:
        if not is_count(self.image_size) or self.image_size < self.total_stride:
            raise InputError(
                f"image size {self.image_size!r} is too small for a network that divides it by "
                f"{self.total_stride}; allowed: a whole number from {self.total_stride}"
            )
        allowed = f"a whole number up to {MAX_IMAGE_SIZE:,}"
        check_field("Network", "image_size", self.image_size, self.image_size <= MAX_IMAGE_SIZE, allowed)

    @property
    def total_stride(self) -> int:
        """The product of all strides: the side of the input over the side of the last feature map."""
        stride = self.stem.stride * (2 if self.stem.pool else 1)
        for stage in self.stages:
            stride *= stage.stride
        return stride

    @property
    def depth(self) -> int:
        """Number of weight layers: the stem's convolution, F's convolutions and the classifier.

        For wide networks, the three projections count and the classifier does not, as their authors count.
        """
        return outer_layers(self.unit) + self.unit.branch.layers * sum(stage.units for stage in self.stages)

    @property
    def channels(self) -> int:
        """Channels of the last feature map."""
        return self.unit.branch.out_channels(self.stages[-1].width)

    @property
    def stem_ops(self) -> Ops:
        """The layers of the stem."""
        conv = op.Conv(self.in_chans, self.stem.channels, self.stem.kernel, self.stem.stride)
        pool = (op.MaxPool(),) if self.stem.pool else ()
        arrangement = self.unit.arrangement
        layers = arrangement.normaliser, arrangement.nonlinearity
        return (conv, *activation_ops(layers, self.stem.channels), *pool)

    @property
    def final_ops(self) -> Ops:
        """The activation after the last addition: `before` of a pre-activation, repeated (P2, Sec. 4)."""
        return activation_ops(self.unit.arrangement.before, self.channels)

    def units(self) -> tuple[PlacedUnit, ...]:
        """Every unit at its place, in order."""
        return tuple(
            PlacedUnit(f"stage{number}.{index}", run.layout, run.side)
            for number, run in self._runs()
            for index in range(run.first, run.first + run.count)
        )

    def _runs(self) -> Iterator[tuple[int, _Run]]:
        """The runs of equal units, with the number of their stage. A description of a few bytes may have
        100,000 units, but only a few runs, so everything is counted from these."""
        channels, side = self.stem.channels, op.output_side(self.stem_ops, self.image_size)
        activated = True
        for number, stage in enumerate(self.stages, 1):
            index = 0
            while index < stage.units:
                if index < 2:  # the units behind the first have one layout
                    stride = stage.stride if index == 0 else 1
                    unit_layout = layout(self.unit, channels, stage.width, stride, activated=activated)
                side_after = unit_layout.output_side(side)
                count = stage.units - index if index and side_after == side else 1
                yield number, _Run(index, count, unit_layout, channels, side)
                channels, side = self.unit.branch.out_channels(stage.width), side_after
                activated = False
                index += count

    def normalised_sides(self) -> Iterator[tuple[str, int]]:
        """For every BN, the part of the network that holds it, and the side of its input."""
        side = self.image_size
        yield from (("stem", read) for read in op.normalised_sides(self.stem_ops, side))
        for placed in self.units():
            unit_layout, side = placed.layout, placed.layout.output_side(placed.side)
            inside = op.output_side(unit_layout.p, placed.side)
            begins = (
                (unit_layout.p, placed.side),
                (unit_layout.h, inside),
                (unit_layout.F, inside),
                (unit_layout.g, inside),
                (unit_layout.f, side),
            )
            for ops, start in begins:
                yield from ((placed.name, read) for read in op.normalised_sides(ops, start))
        yield from (("final", read) for read in op.normalised_sides(self.final_ops, side))

    @property
    def parameters(self) -> int:
        """Number of trainable parameters, exact."""
        units = sum(run.count * run.layout.parameters for _, run in self._runs())
        edges = op.parameters(self.stem_ops) + op.parameters(self.final_ops)
        return edges + units + (self.channels + 1) * self.num_classes

    @property
    def num_layers(self) -> int:
        """Number of layers of all kinds, activations and the layers of parallel paths among them."""
        return self._count_layers(lambda layer: 1)

    @property
    def num_learned_layers(self) -> int:
        """Number of layers with parameters. The state dict has at least as many tensors."""
        return self._count_layers(lambda layer: int(layer.parameters > 0))

    def _count_layers(self, weight: Callable[[op.Op], int]) -> int:
        def count(*parts: Ops) -> int:
            return sum(weight(layer) for ops in parts for layer in op.leaves(ops))

        units = (run.count * count(*run.layout.parts) for _, run in self._runs())
        return sum(units) + count(self.stem_ops, self.final_ops) + 1

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of convolutions and classifier for one image of `image_size` (P1's "FLOPs")."""
        units = sum(run.count * run.layout.multiply_adds(run.side) for _, run in self._runs())
        return op.multiply_adds(self.stem_ops, self.image_size) + units + self.channels * self.num_classes
