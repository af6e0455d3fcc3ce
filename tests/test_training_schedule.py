"""Learning rates as the papers state them, iteration for iteration, and the laws of schedules."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilolayer.errors import InputError
from kilolayer.training import (
    RECIPES,
    SGD,
    AdamW,
    OneCycle,
    Optimizer,
    Recipe,
    Schedule,
    Steps,
    Warmup,
    recipe_by_name,
    recipe_differences,
)
from kilolayer.values import from_json, to_json

CIFAR, IMAGENET = 50_000, 1_281_167

rates = st.floats(0, 10)
steps = st.lists(st.tuples(st.integers(1, 1000), rates), max_size=4).map(
    lambda drops: Steps(0.1, tuple(sorted(drops)))
)
schedules: st.SearchStrategy[Schedule] = st.one_of(
    steps,
    st.builds(Warmup, rates, st.integers(0, 50), steps),
    st.builds(OneCycle, rates, st.integers(1, 1000), st.floats(0.05, 0.95)),
)


def paper(t: int) -> float:
    """P2, Sec. 4."""
    if t < 400:
        return 0.01
    return 0.1 if t < 32_000 else 0.01 if t < 48_000 else 0.001


def test_the_papers_recipe_at_every_iteration() -> None:
    second, first = recipe_by_name("paper", CIFAR), recipe_by_name("paper-v1", CIFAR)
    assert [second.rate(t) for t in range(64_000)] == [paper(t) for t in range(64_000)]
    assert [first.rate(t) for t in range(64_000)] == [paper(max(t, 400)) for t in range(64_000)]
    for one in (first, second):
        assert (one.iterations, one.batch_size, one.optimizer, one.weight_decay) == (
            64_000,
            128,
            SGD(0.9),
            1e-4,
        )
        assert (one.decay, one.label_smoothing) == ("all", 0)
        assert (one.augmentation.pad, one.augmentation.flip) == (4, True)
        assert one.normalization == "per_pixel_mean"


def released(epoch: int) -> float:
    """fb.resnet.torch, train.lua, with its epochs counted from 1."""
    return 0.1 * 0.1 ** (2 if epoch >= 122 else 1 if epoch >= 81 else 0)


def resnext(epoch: int) -> float:
    return 0.1 * 0.1 ** sum(epoch > whole for whole in (150, 225))


def imagenet(epoch: int) -> float:
    return 0.1 * 0.1 ** ((epoch - 1) // 30)


@pytest.mark.parametrize(
    ("name", "images", "batch", "epochs", "rate", "decay"),
    [
        ("released", CIFAR, 64, 200, released, 1e-4),
        ("resnext", CIFAR, 128, 300, resnext, 5e-4),
        ("imagenet", IMAGENET, 256, 90, imagenet, 1e-4),
    ],
)
def test_recipes_in_epochs(
    name: str, images: int, batch: int, epochs: int, rate: Callable[[int], float], decay: float
) -> None:
    found, each = recipe_by_name(name, images), images // batch
    assert (found.batch_size, found.iterations, found.weight_decay) == (batch, epochs * each, decay)
    assert (found.decay, found.normalization) == ("all", "channel")
    assert found.optimizer == SGD(0.9, nesterov=name != "imagenet")
    for epoch in range(1, epochs + 1):
        for t in ((epoch - 1) * each, epoch * each - 1):
            assert found.rate(t) == pytest.approx(rate(epoch), rel=1e-12), f"epoch {epoch}"


PLAIN, NESTEROV = SGD(0.9), SGD(0.9, nesterov=True)
KNOWN = {
    # batch, epochs, optimiser, weight decay, what decays, normalisation
    "paper": (128, None, PLAIN, 1e-4, "all", "per_pixel_mean"),
    "paper-v1": (128, None, PLAIN, 1e-4, "all", "per_pixel_mean"),
    "released": (64, 200, NESTEROV, 1e-4, "all", "channel"),
    "resnext": (128, 300, NESTEROV, 5e-4, "all", "channel"),
    "resnext-256": (256, 300, NESTEROV, 5e-4, "all", "channel"),
    "resnext-released": (128, 300, NESTEROV, 5e-4, "all", "channel"),
    "resnext-imagenet": (256, 100, NESTEROV, 1e-4, "all", "channel"),
    "imagenet": (256, 90, PLAIN, 1e-4, "all", "channel"),
    "short": (128, 15, NESTEROV, 5e-4, "weights", "channel"),
    "sprint": (64, 5, NESTEROV, 5e-4, "weights", "channel"),
    "finetune": (64, 20, NESTEROV, 5e-4, "weights", "channel"),
    "smoke": (32, None, PLAIN, 1e-4, "all", "per_pixel_mean"),
}
"""Each recipe as its source or its own page has it; a recipe without an entry fails."""


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_recipe_is_beside_its_schedule(name: str) -> None:
    recipe, (batch, epochs, *others) = recipe_by_name(name, CIFAR), KNOWN[name]
    assert (recipe.name, recipe.batch_size) == (name, batch)
    assert [recipe.optimizer, recipe.weight_decay, recipe.decay, recipe.normalization] == others
    assert epochs is None or recipe.iterations == epochs * (CIFAR // batch)
    assert (recipe.label_smoothing, recipe.trunk_rate, recipe.ema) == (0.0, 1.0, 0.0)
    assert bool(recipe.progressive_resize.changes) == (name == "sprint")
    assert not recipe.progressive_depth.changes


@pytest.mark.parametrize(("images", "batch", "peak"), [(50_000, 128, 0.2), (1437, 64, 0.1), (10, 64, 0.1)])
def test_the_short_recipe_rises_once_and_falls_once(images: int, batch: int, peak: float) -> None:
    short = recipe_by_name("short", images)
    assert (short.batch_size, short.rate.peak) == (batch, peak)
    assert short.iterations == 15 * max(1, images // batch)
    values = [short.rate(t) for t in range(short.iterations)]
    top = values.index(max(values))
    assert values[:top] == sorted(values[:top])
    assert values[top:] == sorted(values[top:], reverse=True)
    assert 0 < min(values) <= max(values) <= peak
    assert top / short.iterations == pytest.approx(0.25, abs=0.07)


@given(schedules, st.integers(0, 3000))
def test_no_rate_is_above_the_peak_or_below_zero(schedule: Schedule, t: int) -> None:
    within = min(t, schedule.iterations) if isinstance(schedule, OneCycle) else t
    rate = schedule.then(t) if isinstance(schedule, Warmup) else schedule(within)
    assert 0 <= rate <= schedule.peak * (1 + 1e-12)


@given(schedules, st.floats(0, 100), st.integers(0, 1000))
def test_times_scales_every_rate(schedule: Schedule, factor: float, t: int) -> None:
    higher = schedule.scale_rate(factor)
    assert higher(t) == pytest.approx(factor * schedule(t), rel=1e-9, abs=1e-300)
    assert higher.peak == pytest.approx(factor * schedule.peak)


@given(steps, st.integers(0, 50), st.integers(1, 50), st.integers(0, 3000))
def test_stretched_by_a_whole_number_says_the_same_later(
    plain: Steps, until: int, factor: int, t: int
) -> None:
    for schedule in (plain, Warmup(0.01, until, plain)):
        assert schedule.scale_length(factor)(t) == schedule(t // factor)


@given(schedules)
def test_stretched_by_one_is_the_same(schedule: Schedule) -> None:
    assert schedule.scale_length(1) == schedule


@given(st.integers(2, 400), st.integers(1, 2000))
def test_a_cycle_stays_one_cycle_at_any_length(iterations: int, other: int) -> None:
    one = Recipe("one", iterations, OneCycle(0.1, iterations), 8)
    assert one.with_iterations(other) == Recipe(
        "one" if other == iterations else f"one@{other}", other, OneCycle(0.1, other), 8
    )


def test_a_shortened_recipe_drops_at_the_same_shares() -> None:
    short = recipe_by_name("paper", CIFAR).with_iterations(640)
    assert [t for t in range(1, 640) if short.rate(t) != short.rate(t - 1)] == [4, 320, 480]
    assert recipe_by_name("paper", CIFAR).with_iterations(64_000) == recipe_by_name("paper", CIFAR)
    assert recipe_by_name("paper", CIFAR).with_iterations(1).iterations == 1


LENGTHS = {
    "paper": (1, 399, 31_999, 47_999),
    "paper-v1": (1, 47_999),
    "short": (1, 100, 5_849, 5_851, 10**6),
    "sprint": (1, 10**6),
}


@pytest.mark.parametrize(("name", "length"), [(name, n) for name, each in LENGTHS.items() for n in each])
def test_a_recipe_of_another_length_than_its_schedule_is_refused(name: str, length: int) -> None:
    whole = recipe_by_name(name, CIFAR)
    with pytest.raises(
        InputError, match=r"the recipe has [\d,]+ iterations, but its .* use recipe.shortened"
    ):
        replace(whole, iterations=length)
    shorter = whole.with_iterations(length)
    assert (shorter.iterations, shorter.rate.last_change <= length) == (length, True)
    assert replace(shorter, batch_size=7, iterations=length).rate == shorter.rate


def test_a_rate_that_stays_has_any_length() -> None:
    assert replace(recipe_by_name("smoke", CIFAR), iterations=10**6).rate == Steps(0.05)
    assert replace(recipe_by_name("paper", CIFAR), iterations=48_000).iterations == 48_000


@pytest.mark.parametrize("length", [1, 100, 400, 32_000, 47_999, 64_000])
def test_older_recipes_with_changes_behind_their_end_are_read_as_they_ran(length: int) -> None:
    for name in ("paper", "paper-v1"):
        whole = recipe_by_name(name, CIFAR)
        older = json.loads(to_json(whole)) | {"iterations": length}
        read = from_json(json.dumps(older), Recipe)
        assert [read.rate(t) for t in range(length)] == [whole.rate(t) for t in range(length)]


@pytest.mark.parametrize("drops", [[["a", 1]], [[]], [3], [[None, 0.1]], "none"])
def test_drops_that_are_none_are_refused_by_name(drops: object) -> None:
    older = json.loads(to_json(recipe_by_name("paper-v1", CIFAR)))
    older["rate"]["drops"] = drops
    with pytest.raises(InputError, match="not a Recipe"):
        from_json(json.dumps(older), Recipe)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("images", [1, 50, 1437, CIFAR, IMAGENET])
def test_every_recipe_fits_any_data_and_survives_json(name: str, images: int) -> None:
    found = recipe_by_name(name, images)
    assert found.iterations >= 1
    assert found.rate(found.iterations - 1) > 0
    assert from_json(to_json(found), Recipe) == found


def test_an_unknown_recipe() -> None:
    with pytest.raises(
        InputError, match=r"unknown recipe 'papers'; nearest: paper; allowed: paper, paper-v1, [^\n]*$"
    ):
        recipe_by_name("papers", CIFAR)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("iterations", value) for value in (0, -1, 1.5, True, "7", None)),
        *(("batch_size", value) for value in (0, 2.0, False)),
        *(("label_smoothing", value) for value in (1.0, -0.1)),
        *(("weight_decay", value) for value in (-1e-4, math.inf, math.nan, None)),
        ("decay", "biases"),
    ],
)
def test_a_bad_value_is_named(field: str, value: Any) -> None:
    with pytest.raises(InputError) as refused:
        replace(recipe_by_name("paper", CIFAR), **{field: value})
    said = str(refused.value)
    assert "\n" not in said
    assert said.startswith(field)
    assert repr(value) in said
    assert "allowed" in said


@pytest.mark.parametrize(
    ("made", "says"),
    [
        *((lambda v=value: SGD(v), repr(value)) for value in (1.0, -0.1, math.nan, "0.9", True)),
        *((lambda v=value: AdamW((0.9, v)), repr(value)) for value in (1.0, -0.1, math.nan, None)),
        (lambda: AdamW((0.9,)), "(0.9,)"),
        (lambda: AdamW(eps=0.0), "eps is 0"),
        (lambda: AdamW(eps=math.inf), "eps is inf"),
    ],
)
def test_a_bad_value_of_an_optimiser_is_named(made: Callable[[], Any], says: str) -> None:
    with pytest.raises(InputError, match="allowed") as refused:
        made()
    assert says in str(refused.value)


@pytest.mark.parametrize("name", RECIPES)
def test_another_optimiser_shrinks_weights_by_the_same_share(name: str) -> None:
    first = recipe_by_name(name, CIFAR)
    other = first.with_optimizer(AdamW())
    assert other.rate.peak == pytest.approx(first.rate.peak / 100)
    shrinking = [one.rate(500) * one.weight_decay for one in (first, other)]
    assert shrinking[1] == pytest.approx(shrinking[0])
    back = other.with_optimizer(first.optimizer)
    assert back.rate.peak == pytest.approx(first.rate.peak)
    assert back.optimizer == first.optimizer


OLDER = {"name": "paper", "iterations": 9, "rate": {"type": "Steps", "start": 0.1, "drops": []}}


@pytest.mark.parametrize(
    ("fields", "optimizer"),
    [
        ({}, SGD()),
        ({"momentum": 0.5}, SGD(0.5)),
        ({"momentum": 0.9, "nesterov": True}, SGD(nesterov=True)),
        ({"optimizer": {"type": "AdamW", "betas": [0.9, 0.99], "eps": 1e-6}}, AdamW((0.9, 0.99), 1e-6)),
    ],
)
def test_recipes_of_older_releases_are_read(fields: dict[str, Any], optimizer: Optimizer) -> None:
    assert from_json(json.dumps(OLDER | fields), Recipe).optimizer == optimizer


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"optimizer": {"type": "SGD"}, "momentum": 0.9}, "no field 'momentum'"),
        ({"optimizer": {"type": "Adam"}}, "no type 'Adam', nearest: AdamW"),
        ({"momentum": 1.5}, "momentum is 1.5"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        from_json(json.dumps(OLDER | fields), Recipe)


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(InputError, match="momentum is 0"):
        SGD(0.0, nesterov=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Steps(-0.1),
        lambda: Steps(math.nan),
        lambda: Steps(True),
        lambda: Steps("0.1"),  # type: ignore[arg-type]
        lambda: Steps(0.1, ((10, math.inf),)),
        lambda: Steps(0.1, ((-10, 0.1),)),
        lambda: Steps(0.1, ((1.5, 0.1),)),  # type: ignore[arg-type]
        lambda: Steps(0.1, ((20, 0.1), (10, 0.1))),
        lambda: Warmup(-1.0, 5, Steps(0.1)),
        lambda: Warmup(0.1, -5, Steps(0.1)),
        lambda: Warmup(0.1, 5.5, Steps(0.1)),  # type: ignore[arg-type]
        lambda: OneCycle(0.1, 0),
        lambda: OneCycle(0.1, -1),
        lambda: OneCycle(0.1, 5, rise=0.0),
        lambda: OneCycle(0.1, 5, rise=1.0),
        lambda: OneCycle(math.inf, 5),
    ],
)
def test_a_schedule_that_is_none(make: Callable[[], Schedule]) -> None:
    with pytest.raises(InputError) as refused:
        make()
    assert "\n" not in str(refused.value)


def test_differences_are_the_fields_that_differ() -> None:
    first, second = recipe_by_name("paper-v1", CIFAR), recipe_by_name("paper", CIFAR)
    rows = recipe_differences(first, second)
    assert [row[0] for row in rows] == ["name", "rate"]
    assert rows[0] == ("name", "paper-v1", "paper")
    assert recipe_differences(first, first) == recipe_differences(first) == []
    assert [row[0] for row in recipe_differences(first, replace(first, optimizer=SGD(0.8)), first)] == [
        "optimizer"
    ]
