"""P2's equations, measured by the analyses: exact where the paper says exact."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kilolayer.errors import InputError
from kilolayer.measure.decomposition import measure_decomposition
from kilolayer.measure.gradient import measure_gradient, unit_gradient_norms
from kilolayer.measure.layer_responses import measure_layer_responses, measure_run_responses
from kilolayer.measure.shortcut_factors import measure_shortcut_factors
from kilolayer.measure.snapshot_trends import collect_trends
from kilolayer.measure.unit_chain import UnitChain
from kilolayer.networks import Network, ResidualNetwork, Stage, Stem, build
from kilolayer.units import (
    ARRANGEMENTS,
    BASIC,
    FULL_PREACT,
    RELU_ONLY_PREACT,
    BatchNorm,
    Dropout,
    ExclusiveGate,
    Projection,
    Scaled,
    ShortcutGate,
    Unit,
    Zero,
)
from tiny_runs import PREACT, tiny, train

PLAIN = replace(BASIC, h=Zero())


def chain(unit: Unit, units: int = 6, stages: int = 1, width: int = 4) -> ResidualNetwork:
    """Units of one width in a row, or stages of them, in float64."""
    torch.manual_seed(0)
    described = tuple(Stage(units, width * 2**i, 1 if i == 0 else 2) for i in range(stages))
    return build(Network(Stem(width), described, unit, num_classes=3, in_chans=1, image_size=4)).double()


def batch(size: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 1, 4, 4, generator=generator, dtype=torch.float64), torch.arange(size) % 3


@pytest.mark.parametrize("arrangement", [FULL_PREACT, RELU_ONLY_PREACT])
def test_identity_networks_add_up(arrangement: object) -> None:
    """Eq. 4 over 40 units and two stages, to the rounding of float64; and nothing is truncated."""
    found = measure_decomposition(chain(replace(BASIC, arrangement=arrangement), 20, stages=2), batch()[0])
    assert len(found.stages) == 2
    assert found.residual < 1e-12
    assert all(unit.truncated == unit.truncation == 0 for unit in found.units)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS.values(), ids=ARRANGEMENTS)
@pytest.mark.parametrize("h", [BASIC.h, Zero(), Scaled(0.5), ShortcutGate(-1), Projection()], ids=str)
def test_what_eq_4_leaves_out_is_h_and_f(arrangement: object, h: object) -> None:
    """x_L = h(x_1) + ΣF + Σ(h(x) − x) + Σ(f(y) − y), whatever h and f are."""
    found = measure_decomposition(
        chain(replace(BASIC, h=h, arrangement=arrangement), 5, stages=2), batch()[0]
    )
    assert found.rounding < 1e-12


def test_the_shares_of_an_identity_network_add_up_to_one() -> None:
    found = measure_decomposition(chain(PREACT), batch()[0])
    (stage,) = found.stages
    shares = [unit.norm * unit.cosine for unit in found.units]
    assert sum(shares) + stage.start * stage.start_cosine == pytest.approx(1, rel=1e-12)


def test_relu_cuts_what_is_below_zero() -> None:
    model, x = chain(BASIC), batch()[0]
    found = measure_decomposition(model, x)
    expected = [(unit.y < 0).double().mean().item() for unit in UnitChain(model).forward(x)]
    assert [unit.truncated for unit in found.units] == expected
    assert min(expected) > 0
    assert found.residual == pytest.approx(found.stages[0].from_f, rel=1e-9)


def test_the_direct_term_is_exactly_the_incoming_gradient() -> None:
    """Eq. 5, h = f = identity: bit for bit, at every unit of the stage."""
    model, (x, labels) = chain(PREACT, 10), batch()
    end: Tensor | None = None
    direct = x
    for unit in UnitChain(model).backward(x, labels):
        end = unit.output_gradient if end is None else end
        direct = unit.shortcut(end if unit.index == 9 else direct)
        assert torch.equal(direct, end)
    found = measure_gradient(model, x, labels)
    assert {unit.direct for unit in found.units} == {found.ends[0]}
    assert {unit.predicted for unit in found.units} == {found.ends[0]}


@pytest.mark.parametrize("unit", [BASIC, PREACT, PLAIN, replace(BASIC, h=ShortcutGate(-1))], ids=str)
def test_the_two_terms_make_the_whole(unit: Unit) -> None:
    """‖whole‖² = ‖direct‖² + ‖weights‖² + 2⟨direct, weights⟩."""
    for one in measure_gradient(chain(unit), *batch()).units:
        both = one.direct**2 + one.weights**2 + 2 * one.cosine * one.direct * one.weights
        assert both == pytest.approx(one.norm**2, rel=1e-9)


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1])
def test_scaled_shortcuts_leave_their_product(factor: float) -> None:
    """Eq. 7 and 8: λ^L to four digits, of signal and gradient, measured as predicted."""
    length = 60
    model, (x, labels) = chain(replace(PREACT, h=Scaled(factor)), length), batch()
    expected = factor**length
    back = measure_gradient(model, x, labels)
    assert back.units[0].direct / back.ends[0] == pytest.approx(expected, rel=1e-4)
    assert back.units[0].predicted == pytest.approx(back.units[0].direct, rel=1e-9)
    forward = measure_shortcut_factors(model, x)
    assert forward.product == pytest.approx(expected, rel=1e-4)
    assert [unit.predicted for unit in forward.units] == [factor] * length


def test_nine_tenths_a_hundred_times_leave_the_papers_figure() -> None:
    assert math.isclose(0.9**100, 2.66e-5, rel_tol=5e-3)


def test_a_plain_net_has_no_direct_term() -> None:
    found = measure_gradient(chain(PLAIN), *batch())
    assert {unit.direct for unit in found.units} == {0.0}
    assert {unit.predicted for unit in found.units} == {0.0}
    assert measure_shortcut_factors(chain(PLAIN), batch()[0]).product == 0


@pytest.mark.parametrize("kind", [ExclusiveGate, ShortcutGate])
def test_gates_that_know_nothing_of_x_scale_by_their_openness(kind: type[ExclusiveGate]) -> None:
    """W_g = 0: 1−g = σ(−b_g) everywhere, a λ; then Eq. 8 is exact."""
    model, (x, labels) = chain(replace(PREACT, h=kind(-1)), 8), batch()
    for name, parameter in model.named_parameters():
        if ".g.conv1.weight" in name:
            nn.init.zeros_(parameter)
    openness = 1 / (1 + math.exp(-1))
    found = measure_shortcut_factors(model, x)
    assert [unit.openness for unit in found.units] == pytest.approx([openness] * 8, rel=1e-12)
    assert [unit.predicted for unit in found.units] == pytest.approx([openness] * 8, rel=1e-12)
    back = measure_gradient(model, x, labels)
    assert back.units[0].direct / back.ends[0] == pytest.approx(openness**8, rel=1e-9)
    assert back.units[0].predicted == pytest.approx(back.units[0].direct, rel=1e-9)


def test_gates_are_predicted_element_by_element() -> None:
    """At the start g depends on x a little; Eq. 8 with Π(1−g) is near, and nearer for gates almost shut."""
    gaps = []
    for bias in (-6.0, -1.0):
        back = measure_gradient(chain(replace(PREACT, h=ShortcutGate(bias)), 8), *batch())
        first = back.units[0]
        assert first.predicted is not None
        gaps.append(abs(first.direct / first.predicted - 1))
    assert gaps[0] < 0.1
    assert gaps[0] < gaps[1] < 1


def test_dropout_lets_an_expectation_pass() -> None:
    """E‖mask/(1−p) v‖² = ‖v‖²/(1−p) if v knew nothing of the mask.

    It does: what was dropped is 0, the next ReLU is more often shut for it, so the rest weighs more.
    """
    found = measure_gradient(chain(replace(PREACT, h=Dropout(0.5)), 2, width=32), *batch(32))
    first = found.units[0]
    assert first.predicted == pytest.approx(found.ends[0] * 2, rel=1e-9)
    assert 1 < first.direct / first.predicted < 1.35


def test_one_by_one_shortcuts_keep_what_random_matrices_keep() -> None:
    """‖Wᵀv‖ ≈ ‖W‖_F/√m ‖v‖, and ‖W‖₂ ≈ s(√n + √m), for fresh weights."""
    unit = replace(BASIC, h=Projection(), arrangement=replace(FULL_PREACT))
    model, (x, labels) = chain(unit, 4, width=64), batch(16)
    back = measure_gradient(model, x, labels)
    assert back.units[1].predicted == pytest.approx(back.units[1].direct, rel=0.5)
    for one in measure_shortcut_factors(model, x).units:
        weight = model.get_submodule(one.name).h.conv1.weight.detach().flatten(1)
        assert one.spectral == pytest.approx(torch.linalg.svdvals(weight)[0].item(), rel=1e-9)
        assert one.spectral == pytest.approx(one.predicted_spectral, rel=0.1)


def test_unit_gradients_are_the_norms_of_the_analysis() -> None:
    model, (x, labels) = chain(BASIC), batch()
    assert unit_gradient_norms(model, x, labels) == [
        unit.norm for unit in measure_gradient(model, x, labels).units
    ]


def test_responses_behind_bn_have_its_deviation() -> None:
    """γ = 1, β = 0 at the start: every response is of deviation 1; trained BN is predicted too."""
    model, x = chain(BASIC, stages=2), batch()[0]
    found = measure_layer_responses(model, x)
    assert len(found.spatial_layers()) == 25
    assert all(layer.normalised for layer in found.layers)
    assert [layer.std for layer in found.layers] == pytest.approx([1.0] * 25, abs=5e-4)
    for module in model.modules():
        if isinstance(module, BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    for layer in measure_layer_responses(model, x).layers:
        assert layer.std == pytest.approx(layer.predicted, rel=2e-3)


def test_raw_responses_are_predicted_from_what_they_read() -> None:
    """Pre-activation: F's last convolution meets no BN before the addition."""
    found = measure_layer_responses(chain(PREACT, width=32), batch(32)[0])
    raw = [layer for layer in found.layers if not layer.normalised]
    assert len(raw) == 6
    for layer in raw:
        assert layer.std == pytest.approx(layer.predicted, rel=0.15)


def test_dead_channels_are_counted() -> None:
    model, x = chain(BASIC), batch()[0]
    assert measure_layer_responses(model, x).dead == 0
    with torch.no_grad():
        model.get_submodule("stage1.2.F.bn1").bias[:2] = -100
    found = measure_layer_responses(model, x)
    assert max(relu.dead for relu in found.relus) == 0.5
    assert found.dead == pytest.approx(2 / (13 * 4))


def test_what_has_no_convolution_has_no_responses() -> None:
    with pytest.raises(InputError, match="runs no convolution"):
        measure_layer_responses(nn.Flatten(), batch()[0])


def test_trends_follow_an_analysis() -> None:
    model, x = chain(BASIC), batch()[0]
    moments = [(at, measure_decomposition(model, x, network="n")) for at in (0, 5)]
    found = collect_trends("decomposition", moments)
    assert found is not None
    assert found.iterations == (0, 5)
    assert found.values[0] == (moments[0][1].truncated,) * 2
    assert collect_trends("decomposition", moments[:1]) is None


@pytest.mark.parametrize(
    "analysis", [measure_decomposition, measure_shortcut_factors, measure_layer_responses]
)
def test_charts_are_of_one_length_and_json_can_hold_them(analysis: object) -> None:
    from kilolayer.values import to_json

    found = analysis(chain(replace(PREACT, h=ShortcutGate(-1)), stages=2), batch()[0])  # type: ignore[operator]
    assert to_json(found)
    for chart in found.charts():
        assert all(len(series.x) == len(series.y) for series in chart.series)
    assert all(isinstance(text, str) for row in found.summary() for text in row)


def test_a_trained_run_has_the_responses_of_figure_7(tmp_path: Path) -> None:
    train(tmp_path / "run", tiny(BASIC))
    found = measure_run_responses(tmp_path / "run")
    assert [layer.name for layer in found.spatial_layers()][:3] == [
        "stem.conv1",
        "stage1.0.F.conv1",
        "stage1.0.F.conv2",
    ]
    assert 0.5 < found.mean_std < 1.5
