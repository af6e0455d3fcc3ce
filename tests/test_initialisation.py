"""Signal and gradient at initialisation, measured, and what is concluded from them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from foreign_networks import original
from kilolayer.measure.initialisation import measure_initialisation, measure_propagation
from kilolayer.measure.overfit_probe import OverfitProbe, label_entropy, probe_overfit
from kilolayer.measure.trainability import judge_trainability
from kilolayer.networks import cifar
from kilolayer.theory.mean_field import MeanFieldPrediction, predict_propagation
from kilolayer.units import BASIC, FULL_PREACT, Scaled, Zero
from kilolayer.values import to_json
from subjects import foreign, row, subject, two_stages

PREACT = replace(BASIC, arrangement=FULL_PREACT)
NO_STEP = OverfitProbe((2.4, 2.3, 2.3, 2.3), entropy=2.25)


def test_signal_and_gradient_are_those_of_every_units_input() -> None:
    one = subject(two_stages(PREACT))
    found = measure_propagation(one.model, one.x, one.labels)
    inputs: list[torch.Tensor] = []
    for name in ("stage1.0", "stage1.1", "stage2.0", "stage2.1", "final"):
        one.model.get_submodule(name).register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    loss = torch.nn.functional.cross_entropy(one.model(one.x), one.labels)
    norms = [float(each.norm()) for each in torch.autograd.grad(loss, inputs)]
    assert found.signal == pytest.approx([float(x.detach().square().mean()) for x in inputs])
    assert found.gradient == pytest.approx([norm / norms[-1] for norm in norms])
    means = [x.detach().mean((0, 2, 3)).square().mean() / x.detach().square().mean() for x in inputs]
    assert found.common == pytest.approx([float(mean) for mean in means])


def test_seeds_are_initialisations() -> None:
    one = replace(subject(two_stages(PREACT)), seeds=(0, 1, 2))
    found = measure_initialisation(one, steps=2)
    assert [start.seed for start in found.starts] == [0, 1, 2]
    expected = math.prod(start.signal[3] for start in found.starts) ** (1 / 3)
    assert found.geometric_mean("signal")[3] == pytest.approx(expected)
    assert found.theory_factor("signal") > 1
    assert {chart.name for chart in found.charts()} == {"signal", "gradient", "common", "first-steps"}
    assert "reasons" in to_json(found)


def test_the_networks_own_weights_are_left_alone() -> None:
    one = subject(two_stages(PREACT))
    before = {key: value.clone() for key, value in one.model.state_dict().items()}
    measure_initialisation(one, steps=2)
    assert all(torch.equal(before[key], value) for key, value in one.model.state_dict().items())


def test_other_peoples_modules_are_measured_without_a_theory() -> None:
    found = measure_initialisation(foreign(original(), "layer?.*"), steps=2)
    assert found.prediction is None
    assert len(found.starts[0].signal) == 5
    assert dict(found.summary())["E[x_L²], predicted"] == "no prediction"


def test_entropy_of_labels() -> None:
    assert label_entropy([0, 1, 2, 3]) == pytest.approx(math.log(4))
    assert label_entropy([1, 1]) == 0


def test_first_steps_learn_a_batch() -> None:
    one = subject(row(PREACT, 1), size=8)
    taken = probe_overfit(one.build_fresh(0), one.x, one.labels, steps=25, rate=0.1)
    assert len(taken.losses) == 25
    assert taken.learns
    assert not probe_overfit(one.build_fresh(0), one.x, one.labels, steps=3, rate=0.0).learns


def test_a_loss_that_is_not_finite_ends_the_steps() -> None:
    one = subject(row(PREACT, 1))
    broken = one.build_fresh(0)
    torch.nn.init.constant_(broken.get_submodule("classifier").weight, math.nan)  # type: ignore[arg-type]
    taken = probe_overfit(broken, one.x, one.labels)
    assert len(taken.losses) == 1
    assert not taken.learns


def flat(units: int, *, direct: float = 1.0) -> MeanFieldPrediction:
    ones = (1.0,) * (units + 1)
    return MeanFieldPrediction(("u",) * units, ones, ones, ones, (direct, *ones[1:]), (ones, ones))


def test_reasons_are_said_in_words() -> None:
    shrinks = judge_trainability((1, 1), (1, 1), flat(1, direct=2.66e-5), NO_STEP)
    assert shrinks.word == "fails"
    assert shrinks.reasons[0] == "the gradient shrinks to 3e-05 through the shortcuts"
    grows = judge_trainability((1, 1), (1e5, 1), flat(1), NO_STEP)
    assert grows.reasons[0] == "gradients grow by 1e+05 on their way to the first unit"
    swells = judge_trainability((1, 2e4), (1, 1), None, NO_STEP)
    assert swells.reasons[0] == "the signal's second moment grows by 2e+04"
    assert "no better than guessing by the classes' frequencies (2.25)" in swells.reasons[-1]


def test_what_passes_unharmed_or_learns_at_once_trains() -> None:
    assert judge_trainability((1, 1), (1, 1), flat(1), NO_STEP).trains
    learns = OverfitProbe((2.4, 1.0, 1.0, 1.0), entropy=2.25)
    assert judge_trainability((1, 1), (1e9, 1), flat(1), learns).trains
    assert not judge_trainability((1, math.inf), (math.nan, 1), None, NO_STEP).trains


def test_a_network_whose_first_steps_diverge_fails() -> None:
    rises = OverfitProbe((2.4, 3.0, 6.0, 6.5), entropy=2.25)
    verdict = judge_trainability((1, 1), (1, 1), flat(1), rises)
    assert (verdict.word, verdict.reasons[0]) == ("fails", "the loss rises in the first steps")


def test_half_on_the_shortcut_is_the_same_function_with_half_on_f_or_without() -> None:
    """P2's Table 1 has them apart (fail, 12.35): no verdict from the initialisation can know, BN hides it."""
    one, both = (cifar(20, replace(BASIC, h=h), image_size=16) for h in (Scaled(0.5), Scaled(0.5, 0.5)))
    said = predict_propagation(one).gradient, predict_propagation(both).gradient
    ratios = [a / b for a, b in zip(*said, strict=True)]
    assert ratios[3:] == pytest.approx([1.0] * len(ratios[3:]), rel=0.15)


@pytest.mark.slow
def test_a_deep_plain_net_does_not_start_and_a_residual_one_does() -> None:
    plain, residual = (
        measure_initialisation(subject(cifar(110, unit, image_size=8), size=16))
        for unit in (replace(BASIC, h=Zero()), BASIC)
    )
    assert not plain.verdict.trains
    assert "no gradient passes through shortcuts" in plain.verdict.reasons
    assert residual.verdict.trains
