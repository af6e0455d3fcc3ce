"""Units that rest: identities without cost, and then units like the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernel_cases import needs_kernels
from kilolayer.cli.assemble import assemble_experiment
from kilolayer.cli.options import DataOptions, ExperimentOptions, RecipeOptions
from kilolayer.errors import InputError
from kilolayer.kernels.folding import fold
from kilolayer.networks import Network, build, cifar
from kilolayer.networks.model import ResidualNetwork
from kilolayer.networks.progressive_depth import active_network
from kilolayer.report.recipe_text import field_text
from kilolayer.training import Experiment, OneCycle, ProgressiveDepth, ProgressiveResize, Recipe, Trainer
from kilolayer.training.experiment import InitialWeights
from kilolayer.units import (
    ARRANGEMENTS,
    FULL_PREACT,
    Aggregated,
    Basic,
    Bottleneck,
    Dropout,
    ExclusiveGate,
    Projection,
    Scaled,
    Unit,
    Zero,
)
from kilolayer.values import from_json, to_json
from tiny_runs import PREACT, network, tiny, training_of, with_recipe

THIRDS = ProgressiveDepth(1 / 3, ((0.4, 2 / 3), (0.7, 1.0)))
HALF = ProgressiveDepth(0.5, ((0.5, 1.0),))
ENDS_OTHERWISE = "F ends neither in a convolution nor in a BN"
CAN_REST = {
    "original": Unit(),
    "full pre-activation": PREACT,
    "ReLU-only pre-activation": Unit(arrangement=ARRANGEMENTS["relu_only_preactivation"]),
    "bottleneck": Unit(Bottleneck(), downsample=Projection()),
    "pre-activation bottleneck": Unit(Bottleneck(), downsample=Projection(), arrangement=FULL_PREACT),
    "ResNeXt": Unit(Aggregated(cardinality=2, d=16), downsample=Projection()),
    "dropout in F": replace(PREACT, branch=Basic(dropout=0.5)),
}


def growing(unit: Unit = PREACT, units: int = 4, **changes: Any) -> Experiment:
    """Half of the units at work in the first four of seven steps."""
    return with_recipe(tiny(unit, network=network(unit, units), **changes), progressive_depth=HALF)


def taken(training: Trainer) -> Iterator[dict[str, torch.Tensor]]:
    """The weights after each step."""
    for _ in training.steps():
        yield {name: value.detach().clone() for name, value in training.model.named_parameters()}


def late(training: Trainer) -> list[str]:
    """The weights of the units that rest at first."""
    first = tuple(f"stage{stage}.{unit}." for stage in (1, 2) for unit in (2, 3))
    return [name for name, _ in training.model.named_parameters() if name.startswith(first)]


def shallow(model: ResidualNetwork, share: float) -> ResidualNetwork:
    """The network of the units at work alone, with their weights."""
    found = build(active_network(model.description, share)).to(next(model.parameters()).dtype)
    state = model.state_dict()
    found.load_state_dict({name: state[name] for name in found.state_dict()})
    return found


def test_the_share_at_every_step() -> None:
    assert [THIRDS.share_at(t, 10) for t in range(10)] == [1 / 3] * 4 + [2 / 3] * 3 + [1.0] * 3
    assert ProgressiveDepth().share_at(5, 10) == 1.0


@given(st.integers(1, 40), st.floats(0.001, 1), st.floats(0.001, 1))
def test_what_works_goes_on_working(units: int, one: float, other: float) -> None:
    stages = (
        active_network(network(units=units), min(one, other)),
        active_network(network(units=units), max(one, other)),
    )
    for first, second in zip(*(each.stages for each in stages), strict=True):
        assert 1 <= first.units <= second.units <= units
    assert active_network(network(units=units), 1.0) == network(units=units)


@pytest.mark.parametrize("unit", CAN_REST.values(), ids=CAN_REST.keys())
def test_the_function_is_that_of_the_units_at_work(unit: Unit) -> None:
    """Whether the others are left out (in training), computed, or computed with their BN folded."""
    training = training_of(growing(unit))
    for _, _ in zip(range(3), training.steps(), strict=False):
        pass
    model = training.model.double().eval()
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    wanted = shallow(model, 0.5).eval()(x)
    assert torch.equal(model(x), wanted)
    torch.testing.assert_close(fold(model)(x), wanted)


def test_the_gradients_are_those_of_the_units_at_work() -> None:
    model = training_of(growing()).model.double()
    alone, x = shallow(model, 0.5), torch.rand(3, 1, 8, 8, dtype=torch.float64)
    for each in (model, alone):
        each.train()(x).square().sum().backward()
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).grad, parameter.grad, rtol=0, atol=0)
    own, working = dict(model.named_parameters()), dict(alone.named_parameters())
    assert {name for name, value in own.items() if value.grad is None} == own.keys() - working.keys()


@pytest.mark.parametrize("unit", CAN_REST.values(), ids=CAN_REST.keys())
def test_who_rests_does_not_change_and_who_works_learns(unit: Unit) -> None:
    training = training_of(growing(unit))
    before = {name: value.detach().clone() for name, value in training.model.named_parameters()}
    steps = [before, *taken(training)]
    changed = [
        {name for name, value in after.items() if not torch.equal(value, earlier[name])}
        for earlier, after in pairwise(steps)
    ]
    resting = set(late(training))
    assert resting
    for step in changed[:4]:
        assert step == before.keys() - resting
    # At first nothing but F's last layer has a gradient; a β behind it too.
    assert changed[4] & resting
    assert changed[5] == changed[6] == before.keys()


def test_the_step_in_which_units_begin_sees_the_loss_of_the_network_before() -> None:
    training = training_of(growing())
    for _, _ in zip(range(4), training.steps(), strict=False):
        pass
    x, labels, losses = torch.rand(8, 1, 8, 8), torch.arange(8), list[float]()
    for working in (0.5, 1.0):
        training.model.set_active_units(working)
        losses.append(torch.nn.functional.cross_entropy(training.model(x), labels).item())
    assert losses[0] == losses[1]


def test_recomputation_changes_no_bit() -> None:
    plain, balanced, smallest = (
        training_of(growing(activation_memory=m)) for m in ("fastest", "balanced", "smallest")
    )
    assert balanced.model.segments
    for first, second, third in zip(taken(plain), taken(balanced), taken(smallest), strict=True):
        for name, value in first.items():
            assert torch.equal(second[name], value)
            assert torch.equal(third[name], value)


@needs_kernels
def test_whole_units_of_the_kernels_begin_at_zero_too() -> None:
    """F's last weights are 0 there: nothing to scale by, and still a gradient."""
    unit = replace(PREACT, branch=Basic())
    wide = Network(
        replace(network(unit).stem, channels=16),
        tuple(replace(stage, units=3, width=16) for stage in network(unit).stages),
        unit,
        in_chans=1,
        image_size=8,
    )
    chosen = tiny(unit, network=wide, precision="bf16", memory_format="channels_last", kernels="fused")
    training = training_of(with_recipe(chosen, progressive_depth=HALF))
    assert training.kernels
    assert training.kernels.fused_units == 6
    *_, last = taken(training)
    for name, value in last.items():
        assert value.isfinite().all(), name
        assert value.any(), name


def test_the_cost_is_that_of_the_units_at_work() -> None:
    """At 110 layers a third, two thirds and all of the units; each step at its images' side."""
    chosen = Recipe("g", 1000, OneCycle(0.1, 1000), progressive_depth=THIRDS)
    experiment = Experiment(cifar(110), tiny().data, chosen)
    each = [cifar(depth).multiply_adds for depth in (38, 74, 110)]
    assert experiment.multiply_adds == 128 * (400 * each[0] + 300 * each[1] + 300 * each[2])
    assert experiment.multiply_adds_until(500) == 128 * (400 * each[0] + 100 * each[1])
    both = replace(chosen, progressive_resize=ProgressiveResize(0.5, ((0.2, 1.0),)))
    small = replace(cifar(38), image_size=16).multiply_adds
    wanted = 128 * (200 * small + 200 * each[0] + 300 * each[1] + 300 * each[2])
    assert replace(experiment, recipe=both).multiply_adds == wanted


def test_the_command_line_says_it_in_a_word() -> None:
    options = RecipeOptions(progressive_depth="0.5,1@0.5")
    settings = ExperimentOptions(recipe=options, data=DataOptions(subset=200), model="preact_resnet20_cifar")
    assert assemble_experiment(settings)[0].recipe.progressive_depth == HALF
    assert field_text(HALF) == "0.5, 1 from 50% of the steps"


def test_a_recipe_of_an_older_run_has_all_units() -> None:
    text = to_json(tiny().recipe)
    start, end = text.index('"progressive_depth"'), text.index('"augmentation"')
    assert from_json(text[:start] + text[end:], Recipe) == tiny().recipe
    assert from_json(to_json(growing().recipe), Recipe) == growing().recipe


@pytest.mark.parametrize(
    ("start", "changes", "said"),
    [
        (0.5, (), "the scales of ProgressiveDepth are [0.5]; allowed: rising, to 1 at the end"),
        (
            0.5,
            ((0.3, 0.25), (0.5, 1.0)),
            "the scales of ProgressiveDepth are [0.5, 0.25, 1.0]; allowed: rising",
        ),
        (0.0, ((0.5, 1.0),), "a scale of ProgressiveDepth is 0.0; allowed: above 0, up to 1"),
        (0.5, ((1.0, 1.0),), "a share of ProgressiveDepth.changes is 1.0; allowed: between 0 and 1"),
    ],
)
def test_growths_that_are_none(start: Any, changes: Any, said: str) -> None:
    with pytest.raises(InputError) as refused:
        ProgressiveDepth(start, changes)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    ("unit", "why"),
    [
        (replace(PREACT, h=Zero()), "their shortcut is not the identity"),
        (replace(PREACT, h=Dropout(0.5)), "their shortcut is not the identity"),
        (replace(PREACT, h=Projection()), "their shortcut is not the identity"),
        (replace(PREACT, h=ExclusiveGate()), "their shortcut is not the identity"),
        (Unit(arrangement=ARRANGEMENTS["bn_after_addition"]), "a BN stands behind their addition"),
        (
            Unit(arrangement=ARRANGEMENTS["relu_before_addition"]),
            ENDS_OTHERWISE,
        ),
        (replace(PREACT, h=Scaled(1.0, 0.5)), ENDS_OTHERWISE),
    ],
)
def test_units_that_cannot_rest_are_refused(unit: Unit, why: str) -> None:
    with pytest.raises(InputError) as refused:
        growing(unit)
    assert str(refused.value).startswith(
        f"progressive depth: units of this network cannot be inactive, because {why}; allowed"
    )
    assert growing(PREACT)


def test_weights_from_a_file_do_not_begin_at_zero() -> None:
    with pytest.raises(InputError) as refused:
        growing(init=InitialWeights("weights.safetensors", ""))
    assert (
        str(refused.value) == "progressive_depth begins with F = 0, and init gives weights; use one of them"
    )
