"""Other people's designs: every analysis agrees with autograd to 1e-6 in float64, or refuses by name.

The designs and what their authors mean by h and F stand in `foreign_designs`; the analyses are those of the
registry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from foreign_designs import DESIGNS, TRUTH, batch, build_design
from kilolayer.__main__ import main
from kilolayer.errors import InputError
from kilolayer.measure import ANALYSES
from kilolayer.measure.analysis_input import AnalysisInput
from kilolayer.measure.analysis_results import run_analyses
from kilolayer.measure.jacobian_products import JacobianProducts
from kilolayer.measure.lesions import measure_lesions
from kilolayer.measure.module_chain import ModuleChain
from kilolayer.measure.residual_reading import ResidualReading
from kilolayer.measure.self_checks import check_gradient, check_stage, check_sum
from kilolayer.measure.unit_selection import find_residual_units
from kilolayer.measure.unit_vjp import UnitVJP

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
        self.sums, TRUTH.sums, self.loss = TRUTH.sums, [], loss
        self.points = [x for x, _, _, _ in self.sums] + ends
        self.outputs = self.points[1:]
        """Of every addition x', which is the next one's x."""
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


TWO = "pre-LN Transformer, two additions"


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (("blocks.1[1]",), (2,)),
        (("blocks.*[2]",), (1, 3, 5)),
        (("blocks.0", "blocks.2[2]"), (0, 1, 5)),
        (("blocks.*[1]", "blocks.*[2]"), (0, 1, 2, 3, 4, 5)),
    ],
)
@pytest.mark.parametrize("analysis", ["gradient", "shortcut"])
def test_one_addition_of_several_is_a_unit_alone(
    names: tuple[str, ...], kept: tuple[int, ...], analysis: str
) -> None:
    """The units that are named, between modules that are and that are not, by autograd."""
    given = replace(subject(TWO), units=names)
    found, told = ANALYSES[analysis].run(given), Told(given)
    every = [f"blocks.{block}[{part}]" for block in range(3) for part in (1, 2)]
    assert [unit.name for unit in found.units] == [every[index] for index in kept]  # type: ignore[attr-defined]
    if analysis == "shortcut":
        told.sums = [told.sums[index] for index in kept]
        check_factors(found, told, given)
        return
    last = kept[-1]  # the end of the chain is the output of its last unit
    (end,) = torch.autograd.grad(told.loss, told.outputs[last], retain_graph=True)
    direct = end
    for index, unit in zip(reversed(kept), reversed(found.units), strict=True):  # type: ignore[attr-defined]
        x, h, _, y = told.sums[index]
        if index != last:
            following = told.points[kept[kept.index(index) + 1]]
            direct = pull(following, told.outputs[index], direct)
        direct = pull(h, x, pull(told.outputs[index], y, direct))
        close(unit.norm, told.gradients[index])
        close(unit.direct, direct)
        close(unit.weights, told.gradients[index] - direct)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "blocks.1[3]",
            r"there is no 'blocks.1\[3\]': the additions of 'blocks.1' are blocks.1\[1\] to blocks.1\[2\]",
        ),
        ("blocks.9[1]", r"has no module 'blocks.9\[1\]'; nearest: "),
    ],
)
def test_an_addition_that_is_not_there_is_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ANALYSES["gradient"].run(replace(subject(TWO), units=(name,)))


def test_a_number_in_brackets_is_a_pattern_where_no_module_has_the_name_before_it() -> None:
    model = nn.ModuleDict({"layer1": nn.Linear(2, 2), "layer2": nn.Linear(2, 2)})
    assert [name for name, _ in find_residual_units(model, ["layer[2]"])] == ["layer2"]
    many = nn.ModuleDict({"b": nn.ModuleList(nn.Linear(2, 2) for _ in range(12))})
    assert [name for name, _ in find_residual_units(many, ["b.1[1]"])] == ["b.1"]  # and not b.11


@pytest.mark.parametrize("analysis", ["decomposition", "gradient", "shortcut"])
@pytest.mark.parametrize("how", ["every block", "every block, in place", "the model"])
def test_compiled_modules_are_read_as_they_were_written(how: str, analysis: str) -> None:
    given = subject("ReZero and LayerScale")
    for number, block in enumerate(given.model.blocks):
        if how == "every block":
            given.model.blocks[number] = torch.compile(block, backend="eager")
        elif how == "every block, in place":
            block.compile(backend="eager")
    if how == "the model":
        given = replace(given, model=torch.compile(given.model, backend="eager"))
    plain = subject("ReZero and LayerScale")
    assert ANALYSES[analysis].run(given) == ANALYSES[analysis].run(plain)


def test_a_chain_that_is_put_together_wrongly_is_caught_by_the_whole_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every unit's two terms agree with its whole gradient, which is the one of another loss."""
    monkeypatch.setattr(
        ModuleChain,
        "loss_gradient",
        lambda self, x, out, labels, loss: torch.ones_like(out),
    )
    with pytest.raises(
        InputError, match=r"'blocks\.0' cannot be read exactly: the gradient at its input, found unit"
    ):
        ANALYSES["gradient"].run(subject(TWO))


def test_every_unit_s_terms_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    monkeypatch.setattr(UnitVJP, "check", lambda self: checked.append(self.name))
    given = replace(subject(TWO), units=("blocks.*[1]",))
    ANALYSES["gradient"].run(given)
    assert checked == [f"blocks.{block}[{part}]" for block in (2, 1, 0) for part in (2, 1)]


OWN_NETWORK = """
import sys
sys.path.insert(0, {tests!r})
from foreign_designs import build_design

def network():
    return build_design({design!r}).float()
"""


@pytest.mark.parametrize(
    ("design", "units", "status"),
    [(TWO, "blocks.1[2]", 0), ("RevNet halves, chunk and cat", "blocks.*", 2), (TWO, "blocks.1[7]", 2)],
)
def test_the_command_line_ends_with_2_and_writes_nothing_where_a_check_refuses(
    design: str, units: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "net.py"
    file.write_text(OWN_NETWORK.format(tests=str(Path(__file__).parent), design=design), encoding="utf-8")
    data = tmp_path / "data"
    for label in "01":
        for number in range(4):
            picture = data / label / f"{number}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (60 * number, 90, 200)).save(picture)
    words = [
        "analyse",
        "gradient",
        f"{file}:network",
        "--units",
        units,
        "--data",
        str(data),
        "--batch-size",
        "4",
    ]
    out = tmp_path / "out"
    assert main([*words, "--out", str(out)]) == status
    printed = capsys.readouterr()
    assert out.exists() == (status == 0)
    if status:
        (line,) = printed.err.strip().splitlines()
        assert "'blocks." in line
    else:
        assert '"name": "blocks.1[2]"' in (out / "gradient.json").read_text(encoding="utf-8")


def test_a_snapshot_is_checked_like_any_network() -> None:
    """The first snapshot can be read, the second one is another design: the whole analysis is refused."""
    good, bad = TWO, "halves by slices"
    given = replace(
        subject(good), snapshots=((0, lambda: build_design(good)), (7, lambda: build_design(bad)))
    )
    with pytest.raises(InputError, match=r"'blocks\.0' cannot be read exactly"):
        run_analyses("gradient", [given])


@pytest.mark.slow
def test_every_analysis_takes_one_addition_of_several() -> None:
    """blocks.*[1], by laws: paths add up to the whole gradient, Eq. 4 has all its parts, J and Jᵀ agree."""
    given = replace(subject(TWO), units=("blocks.*[1]",))
    told = Told(given)
    kept = [told.points[index] for index in (0, 2, 4)]
    paths: Any = ANALYSES["paths"].run(given)
    assert paths.units == 3
    assert paths.gradients.rest < 1e-9
    assert len(paths.gradients.together) == 4
    (stage,) = ANALYSES["decomposition"].run(given).stages  # type: ignore[attr-defined]
    assert stage.rounding < 1e-12
    assert stage.between > 0.01  # the second additions stand between
    (start,) = ANALYSES["initialisation"].run(given).starts  # type: ignore[attr-defined]
    for signal, x in zip(start.signal, (*kept, told.outputs[4]), strict=True):
        close(signal, float(x.detach().square().mean()))
    products = JacobianProducts(given.chain(training=True), given.x)
    u = torch.randn(products.out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for point, (_, (v,)) in zip(reversed(kept), products.vjps([u]), strict=True):
        torch.testing.assert_close(v, pull(told.outputs[4], point, u), rtol=CLOSE, atol=1e-9)
    study = measure_lesions(given.chain(training=False), given.x, given.labels, repeats=1)
    assert [index for index, _, _ in study.single] == [0, 1, 2]


def test_pytorch_s_own_layer_has_two_identity_shortcuts() -> None:
    """Its code says nothing of h and F, but its direct term must be the gradient of the end, everywhere."""
    given = subject("nn.TransformerEncoderLayer, pre-LN")
    told, found = Told(given), ANALYSES["gradient"].run(given)
    units = found.units  # type: ignore[attr-defined]
    assert len(units) == 6
    for unit in units:
        close(unit.direct, told.end)
