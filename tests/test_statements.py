"""What is said of figures follows from those very figures."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from kilolayer.__main__ import main
from kilolayer.measure.gradient import Gradient, GradientTerms, measure_gradient
from kilolayer.measure.initialisation import measure_initialisation
from kilolayer.measure.landscape import Landscape
from kilolayer.report.document import Table
from kilolayer.report.lens.app import render_lens
from kilolayer.report.lens.sentences import _number, explain_shortcuts
from kilolayer.report.lens.settings import WORDS, LensSettings
from kilolayer.report.reproduction_list import HEADER, LESS_NEEDED, all_table_facts
from kilolayer.report.reproduction_list import _row as table_row
from kilolayer.system.terminal import fit_table
from kilolayer.theory.mean_field import predict_propagation
from kilolayer.units import BASIC, FULL_PREACT, ORIGINAL
from subjects import subject, two_stages

PREACT = replace(BASIC, arrangement=FULL_PREACT)


def slice_of(line: tuple[float | None, ...], grid: float | None, centre: float) -> Landscape:
    """A line of five points, and a square of nine that is `grid` but in its middle."""
    square = ((grid, grid, grid), (grid, centre, grid), (grid, grid, grid))
    steps, ticks = (-1.0, -0.5, 0.0, 0.5, 1.0), (-1.0, 0.0, 1.0)
    return Landscape("net", "batch", 4, 0, steps, line, ticks, square, centre, 0.0, 9.0)


@pytest.mark.parametrize(
    ("found", "said", "lowest"),
    [
        (slice_of((4, 2, 1, 2, 4), 5, 1), "is 1 at the weights, the lowest of the 11 points", "1, 5"),
        (slice_of((4, 0.9, 1, 2, 4), 5, 1), "1 lie lower, by 0.1 at most, at α = -0.5, β = 0", "0.9, 5"),
        (slice_of((4, 0.9, 1, 2, 4), 0.5, 1), "7 lie lower, by 0.5 at most, at α = -1, β = -1", "0.5, 4"),
        (slice_of((None, 2, 1, 2, None), None, 1), "the lowest of the 3 points", "1, 2"),
    ],
)
def test_a_lowest_point_has_no_lower_one_in_its_table(found: Landscape, said: str, lowest: str) -> None:
    # In all of these the curvature at the weights is positive.
    assert said in found.finding()
    assert ("not the lowest" in found.finding()) is ("lower, by" in said)
    assert dict(found.summary())["lowest and highest loss of the slice"] == lowest


@pytest.mark.parametrize("unit", [PREACT, replace(BASIC, arrangement=ORIGINAL)])
def test_the_gradient_lost_at_changes_of_shape_is_said(unit: object) -> None:
    one = subject(two_stages(unit, units=3))
    found = measure_gradient(one.model, one.x, one.labels)
    change = found.units[3]
    assert change.stage == 2
    share = 100 * change.direct / found.ends[1]
    assert f"{share:.3g} % in stage 2" in found.finding()
    assert "none of it" not in found.finding()
    assert ("the whole gradient of the stage's end" in found.finding()) is (unit is PREACT)


def test_where_no_unit_is_predicted_the_first_stands_for_its_stage() -> None:
    """Not the last, whose gradient has passed one shortcut only."""
    terms = [
        GradientTerms(f"u{n}", 1, 1.0, direct, 0.5, 0.0, None) for n, direct in enumerate((0.1, 0.3, 0.9))
    ]
    found = Gradient("net", tuple(terms), (1.0,))
    assert found.weakest == 0.1
    assert "in stage" not in found.finding()


@pytest.mark.parametrize("trained", [True, False])
def test_a_verdict_on_fresh_networks_does_not_pass_for_one_on_the_trained(trained: bool) -> None:
    found = measure_initialisation(subject(two_stages(PREACT), trained=trained), steps=1)
    assert found.finding().startswith("a fresh network like this trained one" if trained else "it ")


@pytest.mark.parametrize("shortcut", WORDS["shortcut"])
def test_the_lens_says_where_its_curve_of_the_shortcuts_begins(shortcut: str) -> None:
    choice = LensSettings(shortcut=shortcut, depth=20, width=4)
    prediction = predict_propagation(choice.network())
    said = f"through the shortcuts alone it is {_number(prediction.direct[0])} times"
    assert (said in explain_shortcuts(choice.unit, prediction)) is (shortcut != "zero")


def test_the_names_of_sliders_hold_no_markup() -> None:
    names = re.findall(r'aria-label="([^"]*), slider"', render_lens("plotly.js"))
    assert "gate bias b_g" in names
    assert not [name for name in names if "<" in name or "&" in name]


def test_at_80_columns_the_list_of_tables_still_says_what_they_are() -> None:
    table = Table("", HEADER, tuple(map(table_row, all_table_facts())))
    drawn, *left_out = fit_table(table, 80, drop=LESS_NEEDED)
    assert "what" in [str(column.header) for column in drawn.columns]  # type: ignore[union-attr]
    assert "what" not in " ".join(map(str, left_out))


@pytest.mark.parametrize("images", [1437, 50_000])
def test_recipes_say_for_how_many_images_their_steps_are(
    images: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipes", "--images", str(images)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"steps are for {images:,} training images" in shown
    assert f"{images:,} 64 Nesterov 0.9" in shown


def test_recipes_say_what_decays_and_for_which_images_without_being_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["recipes"]) == 0
    lines = {line.split()[0]: " ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line}
    assert "64,000 any 128 0.9 0.0001 of all, BN too" in lines["paper"]
    assert "156,200 50,000 64 Nesterov 0.9 0.0001 of all, BN too" in lines["released"]
    assert "450,360 1,281,167 256 0.9 0.0001 of all, BN too" in lines["imagenet"]
    assert "5,850 50,000 128 Nesterov 0.9 0.0005 of weights only" in lines["short"]
    assert main(["recipes", "resnext-imagenet", "paper", "--json"]) == 0
    resnext, paper = json.loads(capsys.readouterr().out)
    assert (resnext["images"], resnext["iterations"]) == (1_281_167, 100 * (1_281_167 // 256))
    assert (paper["images"], paper["initialisation"], paper["optimizer"]["nesterov"]) == (None, None, False)
    assert (resnext["optimizer"]["nesterov"], resnext["decay"]) == (True, "all")


def test_the_errors_of_models_are_the_papers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "preact_resnet110_cifar"]) == 0
    shown = capsys.readouterr().out
    assert "papers' error %" in shown
    assert "CIFAR-10" in shown
