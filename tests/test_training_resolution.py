"""Images that grow over a run: at which step they have which size, what that costs, and what cannot be."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kilolayer.__main__ import main
from kilolayer.cli.assemble import assemble_experiment
from kilolayer.cli.options import DataOptions, ExperimentOptions, RecipeOptions
from kilolayer.data import Augmentation, Data, resize_batch
from kilolayer.errors import InputError
from kilolayer.networks import cifar, describe
from kilolayer.report.recipe_text import field_text
from kilolayer.training import (
    Experiment,
    OneCycle,
    ProgressiveResize,
    Recipe,
    recipe_by_name,
    recipe_for_data,
)
from kilolayer.values import from_json, to_json
from tiny_runs import tiny, training_of, with_recipe

GROWING = ProgressiveResize(0.5, ((0.4, 0.75), (0.7, 1.0)))


def test_the_side_at_every_step() -> None:
    sides = [GROWING.side_at(32, t, 10) for t in range(10)]
    assert sides == [16] * 4 + [24] * 3 + [32] * 3
    assert [ProgressiveResize().side_at(32, t, 10) for t in range(10)] == [32] * 10
    assert list(GROWING.phase_sides(30, 1000)) == [(0, 15), (400, 22), (700, 30)]


@given(st.integers(1, 300), st.integers(1, 100), st.sampled_from([8, 16, 30, 32]))
def test_the_cost_is_the_sum_over_the_steps(iterations: int, batch: int, full: int) -> None:
    network = replace(cifar(20), image_size=full)
    chosen = Recipe("one", iterations, OneCycle(0.1, iterations), batch, progressive_resize=GROWING)
    experiment = Experiment(network, tiny().data, chosen)
    steps = Counter(GROWING.side_at(full, t, iterations) for t in range(iterations))
    each = {side: replace(network, image_size=side).multiply_adds for side in steps}
    assert experiment.multiply_adds == batch * sum(steps[side] * each[side] for side in steps)


def test_half_the_side_costs_a_quarter() -> None:
    network = cifar(110)
    classifier = network.channels * network.num_classes
    half, whole = (replace(network, image_size=side).multiply_adds - classifier for side in (16, 32))
    assert 4 * half == whole
    # 0.4 · 1/4 + 0.3 · 9/16 + 0.3
    growing = Experiment(
        network, tiny().data, Recipe("g", 1000, OneCycle(0.1, 1000), progressive_resize=GROWING)
    )
    plain = replace(growing, recipe=replace(growing.recipe, progressive_resize=ProgressiveResize()))
    assert growing.multiply_adds / plain.multiply_adds == pytest.approx(0.56875, abs=1e-4)


def test_a_resampled_picture_keeps_its_mean_and_its_slope() -> None:
    x = torch.rand(3, 2, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(resize_batch(x, 16).shape, torch.Size([3, 2, 16, 16]))
    assert resize_batch(x, 32) is x
    flat = torch.full((1, 1, 32, 32), 0.3, dtype=torch.float64)
    torch.testing.assert_close(resize_batch(flat, 24), torch.full((1, 1, 24, 24), 0.3, dtype=torch.float64))
    # A ramp stays one away from the edges, each pixel at the middle of those that it covers.
    ramp = torch.arange(32, dtype=torch.float64).expand(1, 1, 32, 32)
    middle = 2 * torch.arange(16, dtype=torch.float64) + 0.5
    torch.testing.assert_close(resize_batch(ramp, 16)[0, 0, 0, 1:-1], middle[1:-1])


def test_training_sees_the_sizes_and_evaluation_the_full_one() -> None:
    experiment = with_recipe(tiny(), progressive_resize=ProgressiveResize(0.5, ((0.5, 1.0),)))
    training, seen = training_of(experiment), list[tuple[bool, int]]()

    def note(module: Any, inputs: tuple[Tensor, ...]) -> None:
        seen.append((module.training, inputs[0].shape[-1]))

    training.model.register_forward_pre_hook(note)
    for _ in training.steps():
        pass
    assert [side for trains, side in seen if trains] == [4, 4, 4, 4, 8, 8, 8]
    assert {side for trains, side in seen if not trains} == {8}


def test_the_sprint_grows_and_keeps_its_small_crops_where_they_suit() -> None:
    found = recipe_by_name("sprint", 45_000)
    assert (found.iterations, found.batch_size, found.rate.peak) == (5 * 703, 64, 0.1)
    assert found.progressive_resize == GROWING
    assert recipe_for_data(found, Data("cifar10")).augmentation == Augmentation(pad=2)
    assert recipe_for_data(found, Data("digits")).augmentation == Augmentation(pad=1, flip=False)
    assert recipe_for_data(recipe_by_name("paper", 45_000), Data("cifar10")).augmentation == Augmentation(
        pad=4
    )


def test_the_command_line_says_it_in_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    options = RecipeOptions(progressive_resize="0.5,0.75@0.4,1@0.7", ema=0.1, label_smoothing=0.2)
    made = assemble_experiment(ExperimentOptions(recipe=options, data=DataOptions(subset=200)))[0].recipe
    assert (made.progressive_resize, made.ema, made.label_smoothing) == (GROWING, 0.1, 0.2)
    assert field_text(GROWING) == "0.5, 0.75 from 40% of the steps, 1 from 70% of the steps"
    assert main(["recipes", "short"]) == 0
    shown = capsys.readouterr().out
    assert "progressive resize" in shown
    assert "ema" in shown


def test_a_recipe_of_an_older_run_has_full_images_and_no_mean() -> None:
    text = to_json(tiny().recipe).replace('"ema": 0.0,', "")
    start, end = text.index('"progressive_resize"'), text.index('"augmentation"')
    assert from_json(text[:start] + text[end:], Recipe) == tiny().recipe
    growing = replace(tiny().recipe, progressive_resize=GROWING, ema=0.1)
    assert from_json(to_json(growing), Recipe) == growing


@pytest.mark.parametrize(
    ("start", "changes", "said"),
    [
        (0.0, (), "a scale of ProgressiveResize is 0.0; allowed: above 0, up to 1"),
        (1.5, (), "a scale of ProgressiveResize is 1.5"),
        (float("nan"), (), "a scale of ProgressiveResize is nan"),
        (True, (), "a scale of ProgressiveResize is True"),
        (0.5, ((0.5, 2),), "a scale of ProgressiveResize is 2"),
        (0.5, ((0.0, 1),), "a share of ProgressiveResize.changes is 0.0; allowed: between 0 and 1"),
        (0.5, ((1.0, 1),), "a share of ProgressiveResize.changes is 1.0"),
        (0.5, ((0.5, 0.75), (0.5, 1)), "ProgressiveResize.changes are not in the order of their shares"),
    ],
)
def test_sizes_that_are_none(start: Any, changes: Any, said: str) -> None:
    with pytest.raises(InputError) as refused:
        ProgressiveResize(start, changes)
    assert str(refused.value).startswith(said)


def test_a_size_that_the_network_cannot_take_is_named() -> None:
    small = Recipe("small", 10, OneCycle(0.1, 10), progressive_resize=ProgressiveResize(0.05, ((0.5, 1.0),)))
    with pytest.raises(InputError) as refused:
        Experiment(describe("resnet18"), tiny().data, small)
    assert str(refused.value) == (
        "progressive_resize: images of 11 of 224 pixels a side are too small for a network that "
        "divides them by 32; "
        "allowed: scales from 0.143"
    )
