"""Other people's designs: every analysis agrees with autograd to 1e-6 in float64, or refuses by name.

The designs and what their authors mean by h and F stand in `foreign_designs`; the analyses are those of the
registry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from foreign_designs import DESIGNS, TRUTH, batch, build_design
from kilolayer.errors import InputError
from kilolayer.measure import ANALYSES
from kilolayer.measure.analysis_input import AnalysisInput
from kilolayer.measure.jacobian_products import JacobianProducts
from kilolayer.measure.lesions import measure_lesions
from kilolayer.measure.residual_reading import ResidualReading
from kilolayer.measure.self_checks import check_gradient, check_stage, check_sum

UNITS = ("blocks.*",)
CLOSE = 1e-6
SLOW = {"initialisation", "paths", "jacobian", "landscape", "responses"}


def subject(name: str) -> AnalysisInput:
    x, labels = batch()
    return AnalysisInput(
        name,
        build_design(name),
        x,
        labels,
        lambda seed: build_design(name),
        lambda n: (x, labels),
        units=UNITS,
    )


class Told:
    """What a design's author means, computed by autograd in one pass of the whole network."""

    def __init__(self, given: AnalysisInput) -> None:
        TRUTH.on, TRUTH.sums = True, []
        ends: list[Tensor] = []
        hook = given.model.blocks[-1].register_forward_hook(lambda module, args, out: ends.append(out))
        try:
            loss = functional.cross_entropy(given.model.train()(given.x), given.labels)
        finally:
            TRUTH.on = False
            hook.remove()
        self.sums, TRUTH.sums = TRUTH.sums, []
        self.points = [x for x, _, _, _ in self.sums] + ends
        (end,) = torch.autograd.grad(loss, ends, retain_graph=True)
        self.end = end
        self.gradients = [pull(loss, x, None) for x in self.points]
        self.direct = [end]
        for (x, h, _, y), out in zip(reversed(self.sums), reversed(self.points), strict=False):
            self.direct.insert(0, pull(h, x, pull(out, y, self.direct[0])))


def pull(out: Tensor, x: Tensor, vector: Tensor | None) -> Tensor:
    if out is x:
        assert vector is not None
        return vector
    if not out.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(out, x, vector, retain_graph=True, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient


def close(found: float, expected: float | Tensor) -> None:
    value = float(expected.norm()) if isinstance(expected, Tensor) else expected
    assert found == pytest.approx(value, rel=CLOSE, abs=1e-12)


def check_decomposition(found: Any, told: Told, given: AnalysisInput) -> None:
    (stage,) = found.stages
    last = told.points[-1]
    missing = last - told.sums[0][1] - sum(F for _, _, F, _ in told.sums)
    assert stage.residual == pytest.approx(float(missing.norm() / last.norm()), rel=CLOSE, abs=1e-12)
    for unit, (_, _, F, _) in zip(found.units, told.sums, strict=True):
        close(unit.norm, float(F.norm() / last.norm()))


def check_gradient_terms(found: Any, told: Told, given: AnalysisInput) -> None:
    for unit, whole, direct in zip(found.units, told.gradients, told.direct, strict=False):
        close(unit.norm, whole)
        close(unit.direct, direct)
        close(unit.weights, whole - direct)
    assert len(found.units) == len(told.sums)


def check_factors(found: Any, told: Told, given: AnalysisInput) -> None:
    for unit, (x, h, _, _) in zip(found.units, told.sums, strict=True):
        close(unit.factor, float((h * x).sum() / (x * x).sum()))


def check_propagation(found: Any, told: Told, given: AnalysisInput) -> None:
    (start,) = found.starts
    for signal, gradient, x, whole in zip(
        start.signal, start.gradient, told.points, told.gradients, strict=True
    ):
        close(signal, float(x.square().mean()))
        close(gradient, float(whole.norm() / told.end.norm()))


def check_paths(found: Any, told: Told, given: AnalysisInput) -> None:
    gradients = found.gradients
    if gradients.shortest == 0:
        close(gradients.together[0], float(told.direct[0].norm() / told.gradients[0].norm()))
    assert gradients.rest < 1e-9
    assert found.units == len(told.sums)


def check_jacobian(found: Any, told: Told, given: AnalysisInput) -> None:
    products = JacobianProducts(given.chain(training=True), given.x)
    u = torch.randn(products.out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for index, (point, (vjp, (v,))) in enumerate(
        zip(reversed(told.points[:-1]), products.vjps([u]), strict=True)
    ):
        expected = pull(told.points[-1], point, u)
        torch.testing.assert_close(v, expected, rtol=CLOSE, atol=1e-9)
        tangent = torch.randn(point.shape, generator=torch.Generator().manual_seed(index)).double()
        (pushed,) = products.jvp(vjp, [tangent])
        assert float((pushed * u).sum()) == pytest.approx(
            float((tangent * expected).sum()), rel=1e-5, abs=1e-9
        )


CHECKS: dict[str, Callable[[Any, Told, AnalysisInput], None] | None] = {
    "decomposition": check_decomposition,
    "gradient": check_gradient_terms,
    "shortcut": check_factors,
    "initialisation": check_propagation,
    "paths": check_paths,
    "jacobian": check_jacobian,
    "responses": None,
    "landscape": None,
}
"""What autograd says of each analysis; None for one that looks at no units."""


def cases() -> list[object]:
    return [
        pytest.param(design, analysis, marks=[pytest.mark.slow] if analysis in SLOW else [])
        for design in DESIGNS
        for analysis in ANALYSES
        if CHECKS[analysis]
    ]


def test_every_analysis_has_its_truth() -> None:
    assert set(CHECKS) == set(ANALYSES)
    assert len(DESIGNS) >= 25


@pytest.mark.parametrize(("design", "analysis"), cases())
def test_an_analysis_agrees_with_autograd_or_refuses(design: str, analysis: str) -> None:
    given, expectation = subject(design), DESIGNS[design].read
    found, refusal = None, ""
    try:
        found = ANALYSES[analysis].run(given)
    except InputError as error:
        refusal = str(error)
    if refusal:
        assert expectation is not True, refusal
        assert "'blocks." in refusal
        return
    assert expectation is not False, "read, though it cannot be read exactly"
    check, told = CHECKS[analysis], Told(given)
    if told.sums and check is not None:
        check(found, told, given)


@pytest.mark.parametrize("design", [name for name, each in DESIGNS.items() if each.read])
def test_y_is_h_plus_f_as_the_author_means_them(design: str) -> None:
    given = subject(design)
    told = Told(given)
    for unit, (x, h, F, _) in zip(given.chain().forward(given.x), told.sums, strict=False):
        assert unit.h is None or torch.allclose(unit.h.reshape(h.shape), h, rtol=CLOSE, atol=1e-12)
        assert torch.allclose(unit.F.reshape(F.shape), F, rtol=CLOSE, atol=1e-12)
        assert torch.allclose(unit.x, x, rtol=CLOSE, atol=1e-12)


def test_two_additions_of_a_module_are_two_units_with_names() -> None:
    given = subject("pre-LN Transformer, two additions")
    chain = given.chain()
    chain.execution_order(given.x)
    assert chain.names[:3] == ("blocks.0[1]", "blocks.0[2]", "blocks.1[1]")
    result = ANALYSES["gradient"].run(given)
    assert [unit.name for unit in result.units] == list(chain.names)  # type: ignore[attr-defined]


def test_units_inside_a_module_can_be_deleted_and_swapped_alone() -> None:
    given = subject("pre-LN Transformer, two additions")
    study = measure_lesions(given.chain(training=False), given.x, given.labels, repeats=1)
    assert [index for index, _, _ in study.single] == list(range(6))
    model = given.model.eval()
    whole, mlp = study.loss, model.blocks[1].mlp

    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0 * mlp(x)

    model.blocks[1].mlp = Nothing()
    with torch.no_grad():
        without = float(functional.cross_entropy(model(given.x), given.labels))
    assert study.single[3][2] == pytest.approx(without, rel=1e-12)
    assert without != pytest.approx(whole, rel=1e-6)


WRONG = torch.full((4,), 1.001)


@pytest.mark.parametrize(
    "check",
    [
        lambda: check_sum("u", torch.ones(4), torch.zeros(4), WRONG),
        lambda: check_gradient("u", torch.ones(4), torch.zeros(4), WRONG),
        lambda: check_stage("u", 1e-3, 1.0, 1e-7, torch.float32),
    ],
)
def test_a_law_that_is_broken_by_a_thousandth_is_refused(check: Callable[[], None]) -> None:
    with pytest.raises(
        InputError, match=r"'u' cannot be read exactly: .* is off by .* where the rounding of"
    ):
        check()


@pytest.mark.parametrize("analysis", ["decomposition", "gradient"])
def test_a_wrong_cut_is_caught_by_the_numbers(analysis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reading is made wrong on purpose: the shortcut's share is counted twice."""
    honest_split, honest_terms = ResidualReading.split, ResidualReading.terms

    def split(self: ResidualReading, vector: Tensor) -> Any:
        direct, rest = honest_split(self, vector)
        return [*direct, *direct], rest

    def terms(self: ResidualReading) -> Any:
        h, F = honest_terms(self)
        return 2 * h, F

    monkeypatch.setattr(ResidualReading, "split", split)
    monkeypatch.setattr(ResidualReading, "terms", terms)
    with pytest.raises(InputError, match="cannot be read exactly: "):
        ANALYSES[analysis].run(subject("pre-LN Transformer, two additions"))
