"""Proxies keep a unit's depth rule, and never pass for the paper's own size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilolayer.data.config import Data
from kilolayer.errors import InputError
from kilolayer.papers import (
    FULL,
    Plan,
    Scale,
    bias_search_experiments,
    cell_experiment,
    find_table,
    proxy_sentence,
    training_flop,
)
from kilolayer.papers.scale import nearest_depth
from kilolayer.training import Experiment
from kilolayer.units import BASIC, BOTTLENECK, ONE_LAYER, ExclusiveGate
from kilolayer.values import from_json, to_json

SMALL = Scale("small", {110: 56, 164: 56, 1001: 164}, image_size=16, subset=2_000, iterations=400)
CELL = find_table("p2-table-1").cells[0]
PLAN = CELL.plans[0]


def test_a_proxy_says_what_it_leaves_out() -> None:
    sentence = "proxy: depth 56 instead of 110, 2,000 images, 400 iterations, 16×16 pixels"
    assert SMALL.describe(PLAN) == proxy_sentence(PLAN, None, SMALL) == sentence
    assert FULL.describe() == "full scale: the paper's own size"
    assert proxy_sentence(PLAN) == ""
    assert Scale("shallow", 20).describe() == "proxy: depth 20 instead of the paper's"


def test_other_images_are_a_proxy_too() -> None:
    assert proxy_sentence(PLAN, Data("digits")) == "proxy: digits instead of cifar10"
    assert proxy_sentence(PLAN, Data("cifar10", subset=500)) == "proxy: 500 images"
    assert proxy_sentence(PLAN, Data("cifar10", image_size=32)) == ""
    assert proxy_sentence(PLAN, None, Scale("shallow", 110)) == "proxy: at the paper's own size"


def test_a_proxy_is_an_experiment_and_its_recipe_bears_the_name() -> None:
    one = cell_experiment(CELL, 4, scale=SMALL, precision="bf16")
    assert one.recipe.name == "proxy of paper@400"
    assert (one.network.depth, one.network.image_size, one.data.subset) == (56, 16, 2_000)
    assert (one.recipe.iterations, one.recipe.rate(399), one.precision) == (400, pytest.approx(0.001), "bf16")
    assert from_json(to_json(one), Experiment) == one


def test_digits_have_their_own_shape() -> None:
    one = cell_experiment(
        CELL, data=Data("digits"), scale=Scale("tiny", 20, width=8, iterations=50, batch_size=32)
    )
    assert (one.network.in_chans, one.network.image_size, one.recipe.batch_size) == (1, 8, 32)
    assert [stage.width for stage in one.network.stages] == [8, 16, 32]
    assert one.network.stem.channels == 8
    assert not one.recipe.augmentation.flip


@pytest.mark.parametrize(
    ("unit", "wanted", "depth"),
    [
        (BASIC, 56, 56), (BASIC, 29, 26), (BASIC, 30, 32), (BASIC, 1, 8),
        (BOTTLENECK, 56, 56), (BOTTLENECK, 110, 110), (BOTTLENECK, 20, 20), (BOTTLENECK, 26, 29),
        (ONE_LAYER, 20, 20), (ONE_LAYER, 56, 56), (ONE_LAYER, 57, 56),
    ],
)  # fmt: skip
def test_depths_keep_the_units_rule(unit: object, wanted: int, depth: int) -> None:
    assert nearest_depth(PLAN.with_changes(unit=unit), wanted) == depth


def test_imagenet_depths_come_from_its_list() -> None:
    plan = Plan("imagenet", 152, BOTTLENECK)
    assert [nearest_depth(plan, wanted) for wanted in (20, 101, 190)] == [50, 101, 200]
    assert nearest_depth(plan.with_changes(unit=BASIC), 20) == 18


@given(wanted=st.integers(1, 2_000), unit=st.sampled_from([BASIC, BOTTLENECK, ONE_LAYER]))
def test_every_depth_becomes_an_admissible_one(wanted: int, unit: object) -> None:
    depth = nearest_depth(PLAN.with_changes(unit=unit), wanted)
    step = 3 * PLAN.with_changes(unit=unit).unit.branch.layers
    assert (depth - 2) % step == 0
    assert depth > 2
    assert abs(depth - wanted) <= max(step / 2, step + 2 - wanted)


def test_scales_are_validated() -> None:
    with pytest.raises(InputError, match="scale iterations is 0"):
        Scale("none", iterations=0)


def test_cost_is_three_passes_of_two_operations() -> None:
    one = cell_experiment(CELL)
    assert training_flop(one) == 3 * 2 * 252_887_680 * 128 * 64_000
    assert training_flop(cell_experiment(CELL, scale=SMALL)) < training_flop(one) / 1_000


def test_the_bias_is_selected_on_held_out_training_images() -> None:
    searched = bias_search_experiments(
        find_table("p2-table-1").cell("exclusive gating: b_g = −6", "error"), seed=1, fold=2
    )
    assert list(searched) == [-float(b) for b in range(11)]
    for bias, one in searched.items():
        assert one.network.unit.h == ExclusiveGate(bias)
        assert (one.data.validation, one.data.split_seed, one.seed) == (5_000, 2, 1)
    with pytest.raises(InputError, match="nothing was selected"):
        bias_search_experiments(CELL)
