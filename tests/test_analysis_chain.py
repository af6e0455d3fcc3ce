"""A network cut at its units: the pieces compute what the whole computes, and nothing is left behind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from foreign_networks import UNITS, names_of, original, pooled, preactivation
from kilolayer.chart import Chart
from kilolayer.errors import InputError
from kilolayer.measure.decomposition import measure_decomposition
from kilolayer.measure.gradient import measure_gradient
from kilolayer.measure.layer_responses import measure_layer_responses
from kilolayer.measure.shortcut_factors import measure_shortcut_factors
from kilolayer.measure.unit_chain import UnitChain
from kilolayer.networks import Network, ResidualNetwork, Stage, Stem, build
from kilolayer.units import (
    ARRANGEMENTS,
    BASIC,
    FULL_PREACT,
    ORIGINAL,
    Aggregated,
    Bottleneck,
    Dropout,
    ExclusiveGate,
    OneLayer,
    Projection,
    Scaled,
    ShortcutGate,
    Unit,
    Zero,
)

ANALYSES = {
    "decomposition": lambda model, x, labels, **k: measure_decomposition(model, x, **k),
    "gradient": measure_gradient,
    "shortcut": lambda model, x, labels, **k: measure_shortcut_factors(model, x, **k),
    "responses": lambda model, x, labels, units=(), **k: measure_layer_responses(model, x, **k),
}
SHORTCUTS = {
    "identity": BASIC,
    "zero": replace(BASIC, h=Zero()),
    "scaled": replace(BASIC, h=Scaled(0.5, 0.5)),
    "exclusive gate": replace(BASIC, h=ExclusiveGate(-1)),
    "shortcut-only gate": replace(BASIC, h=ShortcutGate(-1)),
    "1×1": replace(BASIC, h=Projection(), downsample=Projection()),
    "dropout": replace(BASIC, h=Dropout(0.5)),
    "one layer with 1×1": Unit(OneLayer(), h=Projection(), downsample=Projection()),
    "bottleneck": Unit(Bottleneck(), downsample=Projection()),
    "split": Unit(Aggregated(2, 16, form="split"), downsample=Projection()),
}
FOREIGN: dict[str, Callable[[], nn.Module]] = {
    "original": original, "pre-activation": preactivation, "pooling between": pooled,
}  # fmt: skip


def batch(size: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 1, 8, 8, generator=generator, dtype=torch.float64), torch.arange(size)


def ours(unit: Unit = BASIC, units: int = 2) -> ResidualNetwork:
    torch.manual_seed(0)
    width = 64 if isinstance(unit.branch, Aggregated) else 8
    stages = (Stage(units, width), Stage(units, 2 * width, stride=2))
    return build(
        Network(Stem(8), stages, replace(unit, downsample=Projection()), in_chans=1, image_size=8)
    ).double()


def foreign(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return FOREIGN[kind]().double()


def cases() -> list[object]:
    units = [
        pytest.param(replace(unit, arrangement=arrangement), id=f"{name}, {kind}")
        for name, unit in SHORTCUTS.items()
        for kind, arrangement in (("original", ORIGINAL), ("pre-activation", FULL_PREACT))
    ]
    others = [pytest.param(replace(BASIC, arrangement=each), id=name) for name, each in ARRANGEMENTS.items()]
    return units + others


def autograd(chain: UnitChain, x: Tensor, labels: Tensor) -> list[Tensor]:
    """∂ε/∂x_l of all units at once, by ordinary means."""
    inputs: list[Tensor] = []
    order, model = chain.execution_order(x), copy.deepcopy(chain.model).train()
    for name in order.names:
        model.get_submodule(name).register_forward_pre_hook(_reading(inputs))
    loss = functional.cross_entropy(model(x.clone().requires_grad_()), labels)
    return list(torch.autograd.grad(loss, inputs))


def _reading(inputs: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        read = args[0].clone()
        inputs.append(read)
        return (read,)

    return hook


def deterministic(unit: Unit) -> bool:
    return not isinstance(unit.h, Dropout)


@pytest.mark.parametrize("unit", cases())
def test_y_is_h_plus_f_in_every_unit(unit: Unit) -> None:
    """P2, Eq. 1: whatever h and F are, the two sides of the addition that was found make y."""
    model, (x, _) = ours(unit), batch()
    for one in UnitChain(model).forward(x):
        total = one.F if one.h is None else one.h + one.F
        assert torch.equal(total, one.y)
        if unit.arrangement == FULL_PREACT:
            assert torch.equal(one.y, one.out)


@pytest.mark.parametrize("unit", cases())
def test_pieces_give_the_gradient_of_the_whole(unit: Unit) -> None:
    model, (x, labels) = ours(unit), batch()
    chain = UnitChain(model)
    expected = autograd(chain, x, labels) if deterministic(unit) else None
    for one in chain.backward(x, labels):
        if expected is not None:
            torch.testing.assert_close(one.input_gradient, expected[one.index])
        both = one.shortcut(one.output_gradient) + one.branch(one.output_gradient)
        torch.testing.assert_close(both, one.input_gradient)


@pytest.mark.parametrize("kind", FOREIGN)
def test_pieces_of_a_foreign_network_give_its_gradient(kind: str) -> None:
    model, (x, labels) = foreign(kind), batch()
    chain = UnitChain(model, UNITS)
    expected = autograd(chain, x, labels)
    seen = []
    for one in chain.backward(x, labels):
        seen.append(one.name)
        torch.testing.assert_close(one.input_gradient, expected[one.index])
    assert seen == ["layer2.1", "layer2.0", "layer1.1", "layer1.0"]


def measured(chart: Chart) -> list[list[float]]:
    """Of every series its values by size: our units run h first, theirs F."""
    series = [series for series in chart.series if series.kind == "measured"]
    return [sorted(y for y in each.y if y is not None) for each in series]


@pytest.mark.parametrize("what", ANALYSES)
@pytest.mark.parametrize("preact", [False, True], ids=["original", "pre-activation"])
def test_a_foreign_network_with_our_weights_has_our_figures(what: str, preact: bool) -> None:
    unit = replace(BASIC, arrangement=FULL_PREACT if preact else ORIGINAL, downsample=Projection())
    model, (x, labels) = ours(unit), batch()
    twin = (preactivation() if preact else original()).double()
    renamed = {names_of(key, preact): value for key, value in model.state_dict().items()}
    if preact:
        # In ours the stem's BN-ReLU is the first unit's own.
        twin.layer1[0].bn1 = twin.layer1[0].act = nn.Identity()
    missing, unexpected = twin.load_state_dict(renamed, strict=False)
    assert not unexpected
    assert all("num_batches_tracked" in key for key in missing)
    mine = ANALYSES[what](model, x, labels, network="one")
    theirs = ANALYSES[what](twin, x, labels, network="one", units=UNITS)
    for a, b in zip(mine.charts(), theirs.charts(), strict=True):
        for one, other in zip(measured(a), measured(b), strict=True):
            assert one == pytest.approx(other, rel=1e-9, abs=1e-12), a.name


@pytest.mark.parametrize("what", ANALYSES)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["ours", *FOREIGN])
def test_the_network_is_left_bit_for_bit_as_it_was(what: str, training: bool, kind: str) -> None:
    model = (ours(replace(BASIC, h=Dropout(0.5))) if kind == "ours" else foreign(kind)).train(training)
    model.register_buffer("counted", torch.zeros(1))
    x, labels = batch()
    before = copy.deepcopy(model.state_dict())
    hooks = [hook for part in model.modules() for hook in (*part._forward_hooks, *part._forward_pre_hooks)]
    generator = torch.get_rng_state()
    ANALYSES[what](model, x, labels, units=() if kind == "ours" else UNITS)
    assert torch.equal(torch.get_rng_state(), generator)
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(part.training is training for part in model.modules())
    assert hooks == [
        hook for part in model.modules() for hook in (*part._forward_hooks, *part._forward_pre_hooks)
    ]
    assert all("forward" not in vars(part) for part in model.modules())
    assert torch.is_grad_enabled()
    assert not x.requires_grad


def test_two_passes_with_dropout_see_the_same_masks() -> None:
    model, (x, labels) = ours(replace(BASIC, h=Dropout(0.5))), batch()
    assert measure_gradient(model, x, labels) == measure_gradient(model, x, labels)
    torch.manual_seed(5)
    assert measure_decomposition(model, x) == measure_decomposition(model, x)


def test_an_analysis_that_fails_leaves_the_network_whole() -> None:
    model, (x, labels) = foreign("pooling between"), batch()
    with pytest.raises(RuntimeError):
        measure_gradient(model, x, labels, units=UNITS, loss=lambda logits, labels: logits @ labels.double())
    assert all("forward" not in vars(part) for part in model.modules())
    assert model(x).shape == (4, 10)


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU())
        self.b = nn.Conv2d(1, 1, 1)
        self.unused = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.b(self.a(x)))


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ((), "no residual units of Kilolayer's"),
        (("layer9",), "no module 'layer9'; nearest: "),
        (("a", "a.0"), "'a.0' lies inside 'a'"),
        (("b",), "'b' is used twice"),
        (("a", "unused"), "does not use 'unused'"),
    ],
)
def test_what_is_no_chain_of_units_is_refused(units: tuple[str, ...], message: str) -> None:
    x, labels = batch()
    with pytest.raises(InputError, match=message):
        measure_gradient(Nested().double(), x, labels, units=units)


def test_patterns_match_part_by_part() -> None:
    chain = UnitChain(original(), ["layer?.*"])
    assert chain.names == ("layer1.0", "layer1.1", "layer2.0", "layer2.1")


class Live(TorchDispatchMode):
    """The most bytes that were alive at once of all that operations made within, looked at now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.most, self._operations, self._held = 0, 0, {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._held[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._operations += 1
        if self._operations % 4 == 0:
            self._held = {key: held for key, held in self._held.items() if not held[0].expired()}
            self.most = max(self.most, sum(size for _, size in self._held.values()))
        return out


@pytest.mark.parametrize("what", ANALYSES)
def test_memory_does_not_grow_with_depth_as_training_does(what: str) -> None:
    """Four times the depth costs at most twice the memory: one unit at a time, √L inputs going back."""
    assert peak(what, 36) <= 2 * peak(what, 9)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["decomposition", "gradient"])
def test_a_thousand_layers_take_a_few_dozen_signals(what: str) -> None:
    """500 units of two layers: at the most 2√L inputs and one unit's activations; training holds 5,000."""
    signal = 8 * 8 * 8 * 8 * 8
    assert peak(what, 500) < (2 * 23 + 40) * signal


def test_training_does() -> None:
    """The measure sees what it should: all of autograd's activations."""
    assert peak("training", 36) > 3.5 * peak("training", 9)


def train(model: nn.Module, x: Tensor, labels: Tensor) -> None:
    functional.cross_entropy(model(x), labels).backward()


def peak(what: str, units: int) -> int:
    torch.manual_seed(0)
    model = build(Network(Stem(8), (Stage(units, 8),), BASIC, in_chans=1, image_size=8)).double()
    x, labels = batch(8)
    with Live() as live:
        (ANALYSES | {"training": train})[what](model, x, labels % 10)
    return live.most
