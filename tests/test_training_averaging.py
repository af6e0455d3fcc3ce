"""The running mean of the weights: its equation, its part in the state, and that it is what is reported."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kilolayer.errors import InputError
from kilolayer.runs import Run, read_weights
from kilolayer.training import Recipe, Steps, recipe_by_name
from kilolayer.training.ema import WeightEMA
from tiny_runs import splits_of, tiny, train, training_of, with_recipe

AVERAGED = with_recipe(tiny(), ema=0.5)


def toy(value: float) -> nn.Module:
    """A weight, a bias, and BN's running figures, all of one value."""
    module = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm2d(1))
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.fill_(value)
    module[1].num_batches_tracked = None  # type: ignore[assignment] # ours have none
    return module


@given(st.floats(0, 0.999), st.lists(st.floats(-10, 10), min_size=1, max_size=30))
def test_the_mean_is_the_closed_form(beta: float, weights: list[float]) -> None:
    average = WeightEMA(toy(1e6), beta)  # the initial weights have no part in it
    for step, value in enumerate(weights, 1):
        average.update(toy(value), step)
    shares = [beta ** (len(weights) - t) for t in range(1, len(weights) + 1)]
    expected = sum(share * value for share, value in zip(shares, weights, strict=True)) / sum(shares)
    assert set(average.state) == set(toy(0).state_dict())
    for key, value in average.state.items():
        assert value.mean().item() == pytest.approx(expected, abs=1e-4), key


@given(st.floats(0, 0.9999), st.floats(-1e3, 1e3), st.integers(1, 20))
def test_the_mean_of_constant_weights_is_the_weights(beta: float, value: float, steps: int) -> None:
    average = WeightEMA(toy(0), beta)
    for step in range(1, steps + 1):
        average.update(toy(value), step)
    assert all(torch.equal(mean, toy(value).state_dict()[key]) for key, mean in average.state.items())


def test_beta_is_the_share_of_the_run_that_is_looked_back_upon() -> None:
    one = Recipe("one", 1000, Steps(0.1), ema=0.05)
    assert one.ema_beta == pytest.approx(1 - 1 / 50)
    assert one.with_iterations(100).ema_beta == pytest.approx(1 - 1 / 5)
    assert replace(one, ema=0.0005).ema_beta == 0  # less than a step: the last weights
    assert recipe_by_name("paper", 50_000).ema_beta == 0


def test_training_goes_the_same_way_with_and_without_a_mean() -> None:
    plain, averaged = training_of(tiny()), training_of(AVERAGED)
    for training in (plain, averaged):
        list(islice(training.steps(), 3))
    own, other = plain.model.state_dict(), averaged.model.state_dict()
    assert all(torch.equal(own[key], other[key]) for key in own)
    assert not all(torch.equal(averaged.state.reported_weights[key], other[key]) for key in other)


def test_what_is_evaluated_is_the_mean_with_its_running_statistics() -> None:
    training = training_of(AVERAGED)
    means: list[dict[str, Tensor]] = []
    for _ in islice(training.steps(), 3):
        means.append({key: value.clone() for key, value in training.model.state_dict().items()})
    beta, expected = AVERAGED.recipe.ema_beta, {}
    for key in means[0]:
        weighted = sum(beta ** (2 - t) * means[t][key].double() for t in range(3))
        expected[key] = (weighted / sum(beta ** (2 - t) for t in range(3))).float()
        torch.testing.assert_close(training.state.reported_weights[key], expected[key], rtol=1e-5, atol=1e-6)
    before = {key: value.clone() for key, value in training.model.state_dict().items()}
    measured = training.evaluate(training.splits.test)
    other = training_of(tiny())
    other.model.load_state_dict(training.state.reported_weights)
    assert measured == other.evaluate(training.splits.test)
    assert all(torch.equal(value, before[key]) for key, value in training.model.state_dict().items())


def test_a_run_saves_and_repeats_the_weights_whose_error_it_tells(tmp_path: Path) -> None:
    experiment = replace(AVERAGED, data=replace(AVERAGED.data, validation=20))
    training = train(tmp_path / "run", experiment)
    saved = read_weights(tmp_path / "run" / "weights.safetensors").model.state_dict()
    assert all(torch.equal(value, saved[key]) for key, value in training.state.reported_weights.items())
    assert not all(torch.equal(value, saved[key]) for key, value in training.model.state_dict().items())
    plain = training_of(replace(experiment, recipe=tiny().recipe))
    plain.model.load_state_dict(saved)
    again, told = plain.evaluate(splits_of(experiment).test), Run(tmp_path / "run").result()
    assert told is not None
    assert again is not None
    assert (again.error, again.loss) == (told["test_error"], told["test_loss"])


def test_a_state_without_the_mean_does_not_fit() -> None:
    training, other = training_of(AVERAGED), training_of(tiny())
    with pytest.raises(InputError, match="do not fit"):
        training.restore(other.tensors(), other.counters())
    with pytest.raises(InputError, match="do not fit"):
        other.restore(training.tensors(), training.counters())
