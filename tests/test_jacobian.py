"""∂x_L/∂x_l by products alone, against all of its entries."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from foreign_networks import original
from kilolayer.measure.analysis_input import AnalysisInput
from kilolayer.measure.jacobian import measure_jacobian
from kilolayer.measure.jacobian_products import JacobianProducts
from kilolayer.measure.lanczos import lanczos_singular_values, weighted_quantile
from kilolayer.measure.unit_chain import UnitChain
from kilolayer.units import ARRANGEMENTS, BASIC, FULL_PREACT, ResidualUnit, Scaled, Zero
from subjects import foreign, row, subject, two_stages

PREACT = replace(BASIC, arrangement=FULL_PREACT)


def dense(one: AnalysisInput, place: int, images: int = 2) -> Tensor:
    """∂x_L/∂x_l, entry by entry, as autograd computes it through all units at once."""
    chain, x = one.chain(), one.x[:images]
    signal = chain.first_input(x)
    for index in range(place):
        signal = chain.run_unit(x, index, signal)

    def end(flat: Tensor) -> Tensor:
        out = flat.view(signal.shape)
        for index in range(place, len(chain)):
            out = chain.run_unit(x, index, out)
        return out.flatten()

    found = torch.autograd.functional.jacobian(end, signal.detach().flatten())
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("arrangement", ARRANGEMENTS.values(), ids=ARRANGEMENTS)
def test_products_are_those_of_the_dense_jacobian(arrangement: object) -> None:
    one = subject(two_stages(replace(BASIC, arrangement=arrangement), side=4))
    tangents = JacobianProducts(one.chain(), one.x[:2])
    for place in (0, 1, 3):
        whole = dense(one, place)
        v = torch.randn(tangents.shapes[place], dtype=torch.float64)
        u = torch.randn_like(tangents.out)
        torch.testing.assert_close(tangents.jvp(place, [v])[0].flatten(), whole @ v.flatten())
        torch.testing.assert_close(tangents.vjp(place, [u])[0].flatten(), whole.T @ u.flatten())


@pytest.mark.parametrize("unit", [BASIC, PREACT, replace(BASIC, h=Zero())])
def test_singular_values_are_those_of_the_dense_jacobian(unit: object) -> None:
    """The largest to four digits after 30 steps of 64, and the Frobenius norm by random probes."""
    one = subject(two_stages(unit, side=4))
    found = measure_jacobian(one, images=2, steps=30, points=2, probes=200)
    for spectrum in found.spectra:
        whole = dense(one, spectrum.place)
        expected = torch.linalg.svdvals(whole)
        assert spectrum.leading == pytest.approx(expected[:3].tolist(), rel=1e-4)
        growth = float(whole.square().sum() / len(whole)) ** 0.5
        assert found.growth[spectrum.place] == pytest.approx(growth, rel=0.1)


def without_branches(one: AnalysisInput) -> AnalysisInput:
    for module in one.model.modules():
        if isinstance(module, ResidualUnit):
            nn.init.zeros_([part for part in module.F.modules() if isinstance(part, nn.Conv2d)][-1].weight)
    return one


def test_units_that_add_nothing_have_singular_values_of_one() -> None:
    found = measure_jacobian(without_branches(subject(row(PREACT, 5))))
    for spectrum in found.spectra:
        assert (*spectrum.leading[:1], *spectrum.quantiles) == pytest.approx([1.0] * 4, rel=1e-12)
    assert found.growth == pytest.approx([1.0] * 6, rel=1e-12)


@pytest.mark.parametrize(("factor", "units"), [(0.9, 100), (0.5, 20), (1.1, 30)])
def test_scaled_shortcuts_multiply_them(factor: float, units: int) -> None:
    """P2, Eq. 8: λ^(L−l), 0.9^100 = 2.656e-5."""
    found = measure_jacobian(
        without_branches(subject(row(replace(PREACT, h=Scaled(factor)), units))),
        points=2,
        steps=3,
        probes=1,
        images=1,
    )
    for spectrum in found.spectra:
        assert spectrum.leading[0] == pytest.approx(factor ** (units - spectrum.place), rel=1e-10)
    assert found.direct is not None
    assert found.growth[0] == pytest.approx(found.direct[0], rel=1e-10)


def test_lanczos_finds_every_value_of_a_small_matrix() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(9, 6, dtype=torch.float64)
    values, weights = lanczos_singular_values(
        lambda v: matrix @ v, lambda u: matrix.T @ u, torch.randn(6).double(), 20
    )
    assert values == pytest.approx(torch.linalg.svdvals(matrix).tolist(), rel=1e-10)
    assert sum(weights) == pytest.approx(1)


def test_lanczos_stops_where_nothing_is_left() -> None:
    start = torch.ones(5, dtype=torch.float64)
    values, _ = lanczos_singular_values(lambda v: 3 * v, lambda u: 3 * u, start, 20)
    assert values == pytest.approx([3])
    assert lanczos_singular_values(lambda v: 0 * v, lambda u: 0 * u, start, 20)[0] == (0,)


def test_quantiles_weigh() -> None:
    assert weighted_quantile([5.0, 1.0, 3.0], [0.2, 0.5, 0.3], 0.5) == 1
    assert weighted_quantile([5.0, 1.0, 3.0], [0.2, 0.5, 0.3], 0.6) == 3
    assert weighted_quantile([5.0, 1.0, 3.0], [0.2, 0.5, 0.3], 1.0) == 5


def test_of_many_units_only_the_square_root_is_kept() -> None:
    one = subject(row(PREACT, 50))
    assert len(JacobianProducts(one.chain(), one.x)._checkpoints) == 7


def test_it_works_on_other_peoples_modules_and_leaves_them_alone() -> None:
    one = foreign(original(), "layer?.*")
    before = {key: value.clone() for key, value in one.model.state_dict().items()}
    found = measure_jacobian(one, images=2, steps=30, points=1, probes=2)
    assert found.predicted is None
    assert found.units == ("layer1.0", "layer1.1", "layer2.0", "layer2.1")
    expected = torch.linalg.svdvals(dense(one, 0))
    assert found.spectra[0].leading == pytest.approx(expected[:3].tolist(), rel=1e-4)
    assert all(torch.equal(before[key], value) for key, value in one.model.state_dict().items())
    assert all(weight.grad is None for weight in one.model.parameters())


def test_a_trained_networks_bn_uses_its_running_statistics() -> None:
    """Then an image's features do not depend on the others': no entry of the Jacobian crosses images."""
    one = subject(two_stages(PREACT), trained=True)
    found = measure_jacobian(one, images=2, points=1)
    assert (found.mode, found.predicted) == ("running", None)
    tangents = JacobianProducts(UnitChain(one.model, training=False), one.x[:2])
    u = torch.zeros_like(tangents.out)
    u[0] = 1
    assert not tangents.vjp(0, [u])[0][1].any()
