"""Laws of every kind of layer: what a kind states of itself is what its module does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from kilolayer.networks import describe
from kilolayer.units import ARRANGEMENTS, ExclusiveGate, Scaled, Unit, layout, ops
from kilolayer.units import Dropout as DropoutShortcut
from kilolayer.units import Zero as ZeroShortcut
from kilolayer.units.branch import Aggregated, Basic, Bottleneck, OneLayer
from kilolayer.units.measured_readings import measure_layer
from kilolayer.units.ops import CustomLayer, Op, Ops, ParallelPaths
from kilolayer.units.readings import NoReading, SavedForBackward

BRANCHES = (Basic(dropout=0.3), OneLayer(), Bottleneck(), Aggregated(form="split"), Aggregated())
SHORTCUTS = (Scaled(0.5), ZeroShortcut(), DropoutShortcut(0.5), ExclusiveGate(-1, batch_norm=True))


WITHOUT_READINGS = (ParallelPaths, CustomLayer)
"""A way to put layers together, and layers that are measured."""
EXAMPLE_VALUES = {"int": 4, "float": 0.5, "bool": True, "str": ""}
"""What a field without a default holds in the example of a kind, by the field's type."""


def kinds(base: type[Op] = Op) -> Iterator[type[Op]]:
    """Every kind of layer of the package: those that can be built, and are no way to put layers together."""
    for kind in base.__subclasses__():
        if (
            kind.__module__.startswith("kilolayer")
            and "module" in vars(kind)
            and kind not in WITHOUT_READINGS
        ):
            yield kind
        yield from kinds(kind)


def walk(layers: Ops, channels: int, side: int) -> Iterator[tuple[Op, int, int]]:
    """Every layer with what it reads."""
    for layer in layers:
        if isinstance(layer, ParallelPaths):
            yield from walk(layer.paths[0], channels, side)
        else:
            yield layer, channels, side
        channels, side = layer.output(channels, side)


def occurring() -> dict[type[Op], list[tuple[Op, int, int]]]:
    """Layers of every kind where they stand in units and in the stem of ImageNet."""
    found: dict[type[Op], set[tuple[Op, int, int]]] = {}
    stem = describe("resnet18").stem_ops
    places = [*walk(stem, 3, 16)]
    for branch, h, arrangement in product(BRANCHES, SHORTCUTS, ARRANGEMENTS.values()):
        made = layout(Unit(branch, h, arrangement), 64, 64, 2)
        for letter in (made.p, made.h, made.g, made.F):
            places += walk(letter, 64, 8)
        places += walk(made.f, branch.out_channels(64), 4)
    for layer, channels, side in places:
        found.setdefault(type(layer), set()).add((layer, channels, side))
    cases = {kind: sorted(cases, key=repr)[:6] for kind, cases in found.items()}
    return {kind: cases.get(kind) or [(example(kind), 4, 8)] for kind in kinds()}


def example(kind: type[Op]) -> Op:
    """A layer of a kind that stands in no unit of these tests, for an input of 4 channels."""
    required = (field for field in fields(kind) if field.default is MISSING)
    return kind(**{field.name: EXAMPLE_VALUES[str(field.type)] for field in required})


OCCURRING = occurring()
CASES = [case for cases in OCCURRING.values() for case in cases]


@pytest.mark.parametrize(("layer", "channels", "side"), CASES, ids=repr)
def test_what_a_kind_states_is_what_its_module_does(layer: Op, channels: int, side: int) -> None:
    assert layer.parameters == sum(each.numel() for each in layer.module().parameters())
    if not isinstance(layer, ops.ZeroOp):  # its output is one number, which measuring refuses
        found = measure_layer(layer, channels, side)
        assert layer.output(channels, side) == found.output
        assert layer.multiply_adds(side) == found.multiply_adds
        assert layer.saved(channels, side) == found.saved


@pytest.mark.parametrize("kind", list(kinds()), ids=lambda kind: kind.__name__)
def test_every_reading_of_a_kind_has_a_value(kind: type[Op]) -> None:
    """A kind states its readings, or they are measured on its module."""
    for layer, channels, side in OCCURRING[kind]:
        assert layer.label
        assert layer.parameters >= 0
        assert layer.multiply_adds(side) >= 0
        assert layer.output(channels, side)
        assert layer.saved(channels, side)


def test_a_new_kind_needs_no_entry_in_this_file() -> None:
    @dataclass(frozen=True)
    class Sharpen(Op):
        channels: int
        factor: float
        steps: int = 2

        def module(self) -> nn.Module:
            return nn.Identity()

    assert example(Sharpen) == Sharpen(4, 0.5)
    for kind in OCCURRING:  # also those that stand in units now
        assert isinstance(example(kind).module(), nn.Module)


def test_names_in_state_dicts_are_one_kinds_each() -> None:
    names = [kind.name or kind.__name__.lower() for kind in kinds()]
    assert len(names) == len(set(names))


class Gain(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


@dataclass(frozen=True)
class LearnedGain(Op):
    channels: int
    start: float = 1.0

    def module(self) -> nn.Module:
        return Gain(self.channels)


def test_a_kind_from_outside_is_read_from_its_module() -> None:
    layer = LearnedGain(8)
    assert layer.parameters == 8
    assert layer.output(8, 5) == (8, 5)
    assert layer.multiply_adds(5) == 0
    assert layer.saved(8, 5) == SavedForBackward(input=True)
    assert layer.label == "LearnedGain, start 1.0"
    with pytest.raises(NoReading, match="theory has no rule for a layer of kind LearnedGain"):
        layer.carry(None, None)  # type: ignore[arg-type]


def test_a_kind_that_cannot_be_read_is_refused_by_name() -> None:
    @dataclass(frozen=True)
    class Unknown(Op):
        pass

    with pytest.raises(NoReading, match="kind Unknown does not define its module"):
        Unknown().module()
    with pytest.raises(NoReading, match="kind Unknown has no field `channels`"):
        Unknown().output(3, 8)


def test_paths_that_are_concatenated_put_out_the_channels_of_all() -> None:
    paths = (ops.Conv(4, 3, 1),), (ops.Conv(4, 5, 1),), (ops.Conv(4, 6, 1),)
    assert ParallelPaths(paths, "concatenate").output(4, 8) == (14, 8)
    equal = (ops.Conv(4, 5, 1),), (ops.Conv(4, 5, 3),)
    assert ParallelPaths(equal, "sum").output(4, 8) == (5, 8)


def test_only_a_shortcut_that_keeps_the_shape_and_reads_x_has_a_factor() -> None:
    unit = Unit(Basic(), Scaled(0.5), ARRANGEMENTS["full_preactivation"])
    assert layout(unit, 16, 16, stride=1).shortcut_factor == 0.5
    assert layout(unit, 16, 32, stride=2).shortcut_factor is None
