"""The ensemble of paths: all of them together are the gradient, and lesions take out what they say."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from foreign_networks import original
from kilolayer.measure.analysis_input import AnalysisInput
from kilolayer.measure.lesions import LesionStudy, _LesionedNetwork, measure_lesions
from kilolayer.measure.path_ensemble import measure_paths
from kilolayer.measure.path_gradients import measure_path_gradients
from kilolayer.measure.unit_chain import UnitChain
from kilolayer.networks import cifar
from kilolayer.theory.path_statistics import path_length_shares, predict_path_norms
from kilolayer.units import BASIC, FULL_PREACT, ExclusiveGate, ResidualUnit, Scaled, Unit, Zero
from kilolayer.values import to_json
from subjects import foreign, row, subject, two_stages

PREACT = replace(BASIC, arrangement=FULL_PREACT)
PLAIN = replace(BASIC, h=Zero())


def test_paths_are_counted_binomially() -> None:
    """54 units: 2^54 paths, and 95 % of them through 19 to 35 branches (Veit et al. 2016, Sec. 4.1)."""
    counts = path_length_shares(54)
    assert counts == pytest.approx([math.comb(54, k) / 2**54 for k in range(55)], rel=1e-9)
    assert sum(counts[19:36]) > 0.95


def test_a_plain_net_has_one_path() -> None:
    assert path_length_shares(3, shortest=3) == (0, 0, 0, 1)
    found = measure_paths(subject(two_stages(PLAIN)))
    assert found.gradients.shortest == 4
    assert found.gradients.together == pytest.approx((1.0,))
    assert found.predicted == (1.0,)


@pytest.mark.parametrize("h", [BASIC.h, Scaled(0.5), ExclusiveGate(-1.0)], ids=lambda h: type(h).__name__)
@pytest.mark.parametrize("base", [BASIC, PREACT], ids=["original", "preact"])
def test_all_lengths_together_are_the_gradient(base: Unit, h: object) -> None:
    """∂ε/∂x_0 = Σ_k G_k to rounding, whatever stands on the shortcut."""
    one = subject(two_stages(replace(base, h=h)))
    found = measure_path_gradients(one.chain(), one.x, one.labels)
    assert len(found.together) == 5
    assert found.rest < 1e-12
    assert found.together[0] > 0


def test_paths_longer_than_asked_for_are_the_rest() -> None:
    one = subject(row(PREACT, 6))
    whole = measure_path_gradients(one.chain(), one.x, one.labels)
    short = measure_path_gradients(one.chain(), one.x, one.labels, longest=2)
    assert short.together == pytest.approx(whole.together[:3], rel=1e-12)
    assert short.rest > 0.1


def test_the_shortest_and_the_longest_path_are_single_ones() -> None:
    """Lengths 0 and L have one path each, so that one path and all of its length are the same."""
    one = subject(row(PREACT, 4))
    found = measure_path_gradients(one.chain(), one.x, one.labels)
    alone = dict(found.alone)
    assert (alone[0], alone[4]) == pytest.approx((found.together[0], found.together[4]), rel=1e-12)


def test_identity_shortcuts_pass_the_whole_gradient_of_x_L() -> None:
    """P2, Eq. 5: the path of length 0 brings ∂ε/∂x_L itself."""
    one = subject(row(PREACT, 5))
    last, first = None, 0.0
    for unit in one.chain().backward(one.x, one.labels):
        last = unit.output_gradient if last is None else last
        first = float(unit.input_gradient.norm())
    assert last is not None
    found = measure_path_gradients(one.chain(), one.x, one.labels)
    assert found.together[0] * first == pytest.approx(float(last.norm()), rel=1e-12)


def test_theory_predicts_gradients_by_length_over_orders_of_magnitude() -> None:
    network = cifar(32, PREACT, image_size=8)
    one = subject(network, size=16)
    found, said = measure_path_gradients(one.chain(), one.x, one.labels).together, predict_path_norms(network)
    assert max(found) > 100 * found[-1]
    assert [math.log10(value) for value in found] == pytest.approx([math.log10(v) for v in said], abs=0.35)


def whole(found: LesionStudy) -> tuple[float, float]:
    return found.error, found.loss


def examine(one: AnalysisInput, **options: int) -> LesionStudy:
    return measure_lesions(one.chain(training=False), one.x, one.labels, **options)


def silenced(one: AnalysisInput) -> AnalysisInput:
    """F = 0 everywhere: its last BN or convolution has no weights."""
    for module in one.model.modules():
        if isinstance(module, ResidualUnit):
            nn.init.zeros_([part for part in module.F.modules() if isinstance(part, nn.Conv2d)][-1].weight)
    return one


def test_what_adds_nothing_is_not_missed() -> None:
    found = examine(silenced(subject(two_stages(PREACT, units=3))))
    assert {(error, loss) for _, error, loss in found.single} == {whole(found)}
    assert len(found.single) == 6
    assert {error for _, error in (*found.deleted, *found.swapped)} == {found.error}


@pytest.mark.parametrize("h", [BASIC.h, ExclusiveGate(-1.0), Scaled(0.5)], ids=lambda h: type(h).__name__)
def test_a_deleted_unit_is_its_shortcut(h: object) -> None:
    """x' = f(h(x)), gates and factors on the shortcut included."""
    one = subject(row(replace(BASIC, h=h), 2))
    found = examine(one)
    unit = one.model.get_submodule("stage1.1")
    assert isinstance(unit, ResidualUnit)
    unit.F = nn.Sequential(unit.F, Times(0.0))
    assert found.single[1][2] == pytest.approx(examine(one).loss, rel=1e-12)


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x


def test_a_plain_nets_deleted_unit_is_the_identity() -> None:
    """As in Veit et al.; units that change shape stay."""
    one = subject(two_stages(PLAIN))
    found = examine(one)
    assert [index for index, _, _ in found.single] == [0, 1, 3]
    one.model.stage1[1] = nn.Identity()  # type: ignore[union-attr, operator]
    logits = one.model.eval()(one.x)
    assert found.single[1][2] == pytest.approx(nn.functional.cross_entropy(logits, one.labels).item())


def test_swapped_units_change_places() -> None:
    one = subject(row(PREACT, 2))
    before, patient = examine(one).loss, _LesionedNetwork(one.chain(training=False), one.x, one.labels)
    found = patient.error_swapped([(0, 1)])
    stage = one.model.stage1
    stage[0], stage[1] = stage[1], stage[0]  # type: ignore[operator, index]
    assert found == whole(examine(one))
    assert found[1] != before


@pytest.mark.parametrize(
    "make", [lambda: subject(two_stages(PREACT)), lambda: foreign(original(), "layer?.*")]
)
def test_the_network_is_left_as_it_was(make: Callable[[], AnalysisInput]) -> None:
    one = make()
    before = {key: value.clone() for key, value in one.model.state_dict().items()}
    modes = [module.training for module in one.model.modules()]
    examine(one)
    assert all(torch.equal(before[key], value) for key, value in one.model.state_dict().items())
    assert [module.training for module in one.model.modules()] == modes
    assert all("forward" not in module.__dict__ for module in one.model.modules())


def test_other_peoples_modules_have_paths_and_lesions() -> None:
    found = measure_paths(foreign(original(), "layer?.*"), images=4)
    assert found.gradients.rest < 1e-12
    assert found.lesions is not None
    assert [index for index, _, _ in found.lesions.single] == [0, 1, 3]


def test_only_trained_networks_have_something_to_lose() -> None:
    fresh, trained = (measure_paths(subject(two_stages(PREACT), trained=t)) for t in (False, True))
    assert fresh.lesions is None
    assert fresh.predicted is not None
    assert trained.lesions is not None
    assert trained.predicted is None
    assert len(trained.charts()) == 4
    assert "lesions" in to_json(trained)


def test_a_path_is_drawn_the_same_every_time() -> None:
    one = subject(row(PREACT, 4))
    chain = UnitChain(one.model)
    first, second = (measure_path_gradients(chain, one.x, one.labels) for _ in range(2))
    assert first == second
