"""Figures are well-formed, repeatable, without fixed size or colour, and draw whatever a run left."""

import math
import re
from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from kilolayer.report import Curve, DepthLine, Profile, plots
from kilolayer.report.canvas import format_tick
from kilolayer.training import Steps

NAN = math.nan
SVG = "{http://www.w3.org/2000/svg}"


def curve(label: str = "ResNet-110", last: float = 5.0, group: str = "") -> Curve:
    x = tuple(float(391 * epoch) for epoch in range(1, 9))
    loss = tuple(2 / epoch for epoch in range(1, 9))
    return Curve(label, x, loss, tuple(last + 40 * y for y in loss), group)


def rate(label: str = "ResNet-110") -> plots.RateCurve:
    return plots.RateCurve(label, Steps(0.1, ((40, 0.01), (60, 0.001))), 80)


def parsed(drawing: str) -> ElementTree.Element:
    return ElementTree.fromstring(drawing)  # noqa: S314 (our own drawing)


def texts(drawing: str) -> list[str]:
    return ["".join(element.itertext()) for element in parsed(drawing).iter(f"{SVG}text")]


ALL: list[Callable[[], str]] = [
    lambda: plots.training_curves([curve("a"), curve("b", 8)], "Training"),
    lambda: plots.learning_rate([rate()], "Learning rate"),
    lambda: plots.error_against_depth([DepthLine("plain", (20, 1001), ((9.0, 9.1), (20.0,)))], "Depth"),
    lambda: plots.profile_by_unit([Profile("start", tuple(0.9**unit for unit in range(54)))], "Gradients"),
]


@pytest.mark.parametrize("figure", ALL)
def test_a_figure_fits_any_column_and_theme(figure: Callable[[], str]) -> None:
    root = parsed(figure())
    assert root.get("role") == "img"
    assert root.get("aria-label") == root.findtext(f"{SVG}title")
    assert root.get("viewBox")
    assert root.get("width") is None
    assert root.get("height") is None
    assert "currentColor" in figure()
    assert "var(--curve-1, #0072b2)" in figure()
    styles = [element.get("style", "") for element in root.iter()]
    assert not {"#000000", "#ffffff", "#0a0b0c"} & set(re.findall("(?<!, )#[0-9a-f]{6}", " ".join(styles)))


@pytest.mark.parametrize("figure", ALL)
def test_the_same_values_give_the_same_drawing(figure: Callable[[], str]) -> None:
    assert figure() == figure()


@pytest.mark.parametrize("figure", ALL)
def test_every_reference_points_into_its_own_figure(figure: Callable[[], str]) -> None:
    drawing = figure()
    ids = set(re.findall(r' id="([^"]+)"', drawing))
    targets = set(re.findall(r"url\(#([^)]+)\)", drawing)) | set(re.findall(r' href="#([^"]+)"', drawing))
    assert ids == targets
    assert not re.search(r"<metadata|<style|<!--|<\?xml|<!DOCTYPE", drawing)


def test_different_figures_share_no_ids() -> None:
    drawings = [figure() for figure in ALL]
    ids = [name for drawing in drawings for name in re.findall(r' id="([^"]+)"', drawing)]
    assert len(ids) == len(set(ids))


def test_labels_are_shown_as_they_are_written() -> None:
    labels = ["$x$", "_hidden", r"$\frac", "a < b & c", "x^2_3", "\x00nul"]
    shown = texts(plots.training_curves([curve(label) for label in labels], "t"))
    assert [text for text in shown if text in {*labels, "\ufffdnul"}] == [*labels[:-1], "\ufffdnul"]


def test_long_labels_are_shortened_and_twelve_all_named() -> None:
    labels = [f"{number} " + "long " * 40 for number in range(12)]
    shown = [
        text
        for text in texts(plots.training_curves([curve(label) for label in labels], "t"))
        if "long" in text
    ]
    assert len(shown) == 12
    assert all(text.endswith("…") and len(text) <= 64 for text in shown)


def test_seeds_of_one_group_share_a_place_in_the_legend() -> None:
    seeds = [curve(f"seed {seed}", seed, group="pre-activation") for seed in range(5)]
    shown = texts(plots.training_curves(seeds, "t"))
    assert shown.count("pre-activation") == 1
    assert not any("seed" in text for text in shown)


@pytest.mark.parametrize(
    "values",
    [
        (),
        (NAN,),
        (NAN, NAN, NAN),
        (None, None),
        (1.0, NAN, 2.0),
        (0.0, 0.0),
        (-1.0, 1.0),
        (1e308, 1e-308),
        (5.0,),
    ],
    ids=str,
)
def test_whatever_was_recorded_is_drawn(values: tuple[float | None, ...]) -> None:
    odd = Curve("odd", tuple(map(float, range(len(values)))), values, values)
    for drawing in (
        plots.training_curves([odd, curve()], "t"),
        plots.training_curves([odd], "t"),
    ):
        parsed(drawing)
    floats = tuple(NAN if value is None else value for value in values)
    parsed(plots.profile_by_unit([Profile("odd", floats)], "t"))
    parsed(plots.error_against_depth([DepthLine("odd", (20, 56), (floats, ()))], "t"))


def test_nothing_at_all_is_drawn_and_says_so() -> None:
    for drawing in (
        plots.training_curves([], "t"),
        plots.learning_rate([], "t"),
        plots.error_against_depth([], "t"),
        plots.profile_by_unit([], "t"),
    ):
        assert "no finite value was recorded" in texts(drawing)


def test_a_curve_has_a_gap_where_it_was_not_finite_and_none_where_it_was_not_measured() -> None:
    def lines(error: tuple[float | None, ...]) -> int:
        one = Curve("c", (1.0, 2.0, 3.0, 4.0, 5.0), (NAN,) * 5, error)
        blue = [
            e
            for e in parsed(plots.training_curves([one], "t")).iter(f"{SVG}path")
            if "--curve-1" in e.get("style", "")
        ]
        return max(element.get("d", "").count("M") for element in blue)

    assert lines((9.0, 8.0, NAN, 6.0, 5.0)) == 2
    assert lines((9.0, 8.0, None, 6.0, 5.0)) == 1


def test_depth_ticks_name_the_depths_that_fit() -> None:
    depths = (20, 32, 44, 56, 110, 164, 1001, 1202)
    shown = texts(plots.error_against_depth([DepthLine("residual", depths, ((9.0,),) * 8)], "t"))
    assert [text for text in shown if text in set(map(str, depths))] == [
        "20",
        "32",
        "44",
        "56",
        "110",
        "164",
        "1001",
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.02, "0.02"), (-5, "−5"), (1e-7, "10⁻⁷"), (2e-7, "2·10⁻⁷"), (1e6, "10⁶")]
)
def test_ticks_are_written_as_people_write(value: float, text: str) -> None:
    assert format_tick(value) == text


def test_drawing_leaves_matplotlib_as_it_was() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    ALL[0]()
    assert dict(matplotlib.rcParams) == before
