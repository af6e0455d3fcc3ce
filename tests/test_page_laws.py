"""Laws of everything that is plotted: curves stay in their axes, break between stages, and none is empty."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from kilolayer.chart import Analysis, Chart, Series
from kilolayer.measure.analyses import ANALYSES
from kilolayer.measure.analysis_results import run_analyses
from kilolayer.measure.snapshot_trends import SnapshotTrends
from kilolayer.networks import build
from kilolayer.report import (
    Curve,
    DepthLine,
    Page,
    Profile,
    Section,
    Table,
    canvas,
    page_assets,
    plots,
    render_page,
    roofline,
)
from kilolayer.report.chart_figures import chart_figure
from kilolayer.report.lab import render_lab as render_lab
from kilolayer.report.lab_data import gather_lab, lab_json
from kilolayer.report.lens.measurement import measure_lens_network
from kilolayer.report.lens.settings import LensSettings
from kilolayer.report.lens.view import LensAnalysis, predicted
from kilolayer.training import RECIPES, Steps, recipe_by_name
from kilolayer.units import BASIC, BOTTLENECK, FULL_PREACT, ExclusiveGate, Projection, Zero
from subjects import subject, two_stages

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

NAN = math.nan
UNITS = {
    "original": BASIC,
    "pre-activation bottleneck": replace(BOTTLENECK, arrangement=FULL_PREACT),
    "plain": replace(BASIC, h=Zero()),
    "gated": replace(BASIC, h=ExclusiveGate(-1)),
    "projected": replace(BASIC, h=Projection()),
}


def errors(*values: float | None, loss: tuple[float | None, ...] = ()) -> Curve:
    x = tuple(100.0 * number for number in range(1, len(values) + 1))
    return Curve(f"{values}", x, loss or tuple(value and value / 40 for value in values), values)


CURVES = {
    "as usual": [errors(90.0, 60.0, 12.0, 3.0), errors(90.0, 89.9, 88.0, 85.0)],
    "a late start": [errors(99.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)],
    "to zero": [errors(40.0, 2.0, 0.0, 0.0)],
    "diverged": [errors(80.0, NAN, NAN), errors(80.0, 20.0, 10.0)],
    "not measured every time": [errors(80.0, None, 10.0, None)],
    "exploded": [errors(90.0, 90.0, loss=(1e18, 2.0))],
    "flat": [errors(50.0, 50.0)],
}
STEPWISE = Steps(0.1, ((40, 0.01), (60, 0.001)))


def bench(*names: str) -> dict[str, Any]:
    row = {"source": "kilolayer", "image_side": 32, "precision": "fp32", "flops": 2e10}
    rows = [row | {"name": name, "flops": 1e10 * at} for at, name in enumerate(names, 1)]
    return {"contestants": rows, "work": "training", "ceilings": {"copy_bytes": 1e10, "fp32_flops": 1e11}}


FIGURES: dict[str, Callable[[], str]] = {
    **{
        f"training, {name}": lambda curves=curves: plots.training_curves(curves, "t")
        for name, curves in CURVES.items()
    },
    "error by depth": lambda: plots.error_against_depth(
        [DepthLine("a", (20, 110), ((4.0, 90.0), (5.0,)))], "t"
    ),
    "by unit": lambda: plots.profile_by_unit(
        [Profile("a", (3.3, 0.01, 1e-7)), Profile("b", (0.4, 2.0, 9.0))], "t"
    ),
    "learning rate": lambda: plots.learning_rate([plots.RateCurve("a", STEPWISE, 80)], "t"),
    "roofline": lambda: roofline.roofline_svg(bench("resnet20_cifar", "resnet56_cifar"), "t"),
}


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], str]], list[Axes]]:
    """The axes of what is drawn, before they become SVG."""
    from matplotlib.figure import Figure as Drawing

    found: list[Drawing] = []

    def draw(title: str, paint: Callable[[Drawing], None], height: float = 1.0) -> str:
        found.append(Drawing())
        paint(found[-1])
        return ""

    def axes_of(drawing: Callable[[], str]) -> list[Axes]:
        found.clear()
        drawing()
        return found[0].axes

    monkeypatch.setattr(canvas, "draw_svg", draw)
    return axes_of


def lines(axes: Axes) -> list[list[tuple[float, float]]]:
    """The points of every curve; a mark across the axes is none."""
    return [
        list(zip(map(float, line.get_xdata()), map(float, line.get_ydata()), strict=True))
        for line in axes.lines
        if line.get_transform() == axes.transData
    ]


def outside(axes: Axes) -> list[tuple[float, float]]:
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    points = [point for line in lines(axes) for point in line if all(map(math.isfinite, point))]
    return [(x, y) for x, y in points if not (left <= x <= right and low <= y <= high)]


@pytest.mark.parametrize("name", FIGURES)
def test_every_point_lies_inside_its_axes(
    name: str, figure: Callable[[Callable[[], str]], list[Axes]]
) -> None:
    axes = figure(FIGURES[name])
    assert any(lines(one) for one in axes)
    assert [outside(one) for one in axes] == [[] for _ in axes]


def test_loss_and_error_have_a_panel_each(figure: Callable[[Callable[[], str]], list[Axes]]) -> None:
    upper, lower = figure(lambda: plots.training_curves(CURVES["as usual"], "t"))
    assert (upper.get_ylabel(), lower.get_ylabel()) == ("training loss", "test error in %")
    assert not upper.bbox.overlaps(lower.bbox)
    values = [[y for _, y in line] for line in lines(lower)]
    assert [list(curve.error) for curve in CURVES["as usual"]] == [line for line in values if len(line) > 1]


@pytest.mark.parametrize("name", RECIPES)
def test_the_line_of_a_learning_rate_passes_through_every_iteration(
    name: str, figure: Callable[[Callable[[], str]], list[Axes]]
) -> None:
    one = recipe_by_name(name, 5000).with_iterations(400)
    (axes,) = figure(lambda: plots.learning_rate([plots.RateCurve(name, one.rate, one.iterations)], "t"))
    assert lines(axes)[0] == [(at, one.rate(at)) for at in range(one.iterations)]
    assert outside(axes) == []


@pytest.mark.parametrize("iterations", [8, 80])
@pytest.mark.parametrize("kind", ["paper", "short"])
def test_a_rate_of_steps_is_drawn_as_steps_and_no_other(
    kind: str, iterations: int, figure: Callable[[Callable[[], str]], list[Axes]]
) -> None:
    one = recipe_by_name(kind, 1000).with_iterations(iterations)
    (axes,) = figure(lambda: plots.learning_rate([plots.RateCurve("a", one.rate, iterations)], "t"))
    stepwise = kind == "paper"
    assert axes.lines[0].get_drawstyle() == ("steps-post" if stepwise else "default")
    assert axes.get_yscale() == ("log" if stepwise else "linear")


@cache
def analysed(unit: str, what: str = "all", *, moments: int = 0, name: str = "net") -> list[Any]:
    """Everything that `kilolayer analyse` measures of a small network of two stages."""
    network = two_stages(UNITS[unit])
    one = replace(subject(network, trained=bool(moments)), name=name)
    taken = tuple((10 * at, lambda at=at: build(network).double()) for at in range(moments))
    return run_analyses(what, [replace(one, snapshots=taken)])


def charts(analysis: Analysis) -> list[Chart]:
    return [chart for chart in analysis.charts() if chart.with_values().series]


def along_the_network(chart: Chart) -> bool:
    """Whether x counts the units or layers from the input, and not, say, from the largest."""
    return "from the input" in chart.x_label


@pytest.mark.parametrize("unit", UNITS)
def test_no_line_joins_tensors_of_two_shapes(
    unit: str, figure: Callable[[Callable[[], str]], list[Axes]]
) -> None:
    for one in analysed(unit):
        for chart in charts(one.analysis):
            assert bool(chart.stages) == along_the_network(chart), chart.name
            (axes,) = figure(lambda chart=chart: chart_figure([("net", chart.with_values())]))
            for line in lines(axes):
                for stage in chart.stages:
                    assert not {x < stage for x, y in line if math.isfinite(y)} >= {True, False}, chart.name
            assert outside(axes) == []
            marks = [line for line in axes.lines if line.get_transform() != axes.transData]
            assert len(marks) == len(chart.stages)


@pytest.mark.parametrize("branch", ["basic", "bottleneck"])
def test_the_lens_breaks_between_stages_too(branch: str) -> None:
    choice = LensSettings(branch=branch, depth=20)
    view = LensAnalysis(
        choice, predicted(choice.network()), measure_lens_network(choice.network(), "noise", lambda: False)
    )
    units = len(choice.network().units())
    first = (1.0,) if branch == "bottleneck" else ()  # whose first unit widens the stem's channels
    for chart in view.charts():
        assert chart.stages == (*first, units / 3 + 1, 2 * units / 3 + 1)
        assert all(max(x for x, _ in piece) <= units for piece in chart.segments(chart.series[0]))


def test_a_chart_breaks_where_a_stage_begins_and_where_a_value_is_missing() -> None:
    series = Series("s", (1.0, 2.0, 3.0, 4.0, 5.0), (1.0, 1.0, 1.0, None, 1.0))
    chart = Chart("c", "t", "e", "x", "y", (series,), stages=(2.0,))
    assert chart.segments(series) == [[(1.0, 1.0)], [(2.0, 1.0), (3.0, 1.0)], [(5.0, 1.0)]]


NETWORKS = {"one": ["a"], "two": ["a", "b"], "three": ["a", "b", "c"]}


@pytest.mark.parametrize("moments", [0, 1, 3], ids="{} snapshots".format)
@pytest.mark.parametrize("names", NETWORKS.values(), ids=NETWORKS)
def test_a_page_has_as_many_networks_as_were_given(names: list[str], moments: int) -> None:
    kinds = ("gradient", "responses", "jacobian")
    found = [
        one
        for what in kinds
        for name in names
        for one in analysed("original", what, moments=moments, name=name)
    ]
    lab = gather_lab([(one.iteration, one.analysis) for one in found])
    assert lab.networks == names
    assert list(lab.tabulated) == names
    assert lab.iterations == [10 * at for at in range(moments)]
    assert all(set(row.panels) <= set(names) for row in lab.rows)
    assert {network for said in lab.findings.values() for network in said} == set(names)


@pytest.mark.parametrize("moments", [0, 2])
@pytest.mark.parametrize("unit", UNITS)
def test_nothing_on_a_page_is_all_dashes(unit: str, moments: int) -> None:
    found = analysed(unit, moments=moments)
    lab = gather_lab([(one.iteration, one.analysis) for one in found])
    data = lab_json(lab)
    for row in data["rows"]:
        for panel in row["panels"]:
            for frame in panel["frames"]:
                assert frame["curves"]
                assert all(any(y is not None for y in ys) for _, _, ys in frame["curves"])
            low, high = row["range"]
            ys = [y for frame in panel["frames"] for *_, values in frame["curves"] for y in values]
            assert all(low <= y <= high for y in ys if y is not None and not (row["log"] and y <= 0))
    for network in data["figures"]:
        columns = zip(*(frame["values"] for frame in network), strict=True)
        assert all(any(values) for values in columns)


def test_analyses_that_name_a_figure_alike_keep_both() -> None:
    found = analysed("original")
    lab = gather_lab([(one.iteration, one.analysis) for one in found])
    twice = [group for group, name in lab.figure_names if name == "BN's statistics"]
    assert twice == ["Jacobian", "Landscape"]


def test_long_names_that_end_differently_are_two_networks() -> None:
    names = ["runs/" + "long/" * 20 + end for end in ("first", "second")]
    found = [one for name in names for one in analysed("original", "shortcut", name=name)]
    lab = gather_lab([(one.iteration, one.analysis) for one in found])
    assert [name.rpartition("/")[2] for name in lab.networks] == ["first", "second"]


def test_what_changes_over_training_belongs_to_its_network() -> None:
    def trend(of: str) -> SnapshotTrends:
        return SnapshotTrends("net", of, (0, 10), (f"{of} x",), ((1.0, 2.0),))

    lab = gather_lab([(None, trend("gradient")), (None, trend("responses")), (None, trend("gradient"))])
    assert lab.networks == ["net", "net (2)"]
    assert [row.analysis for row in lab.rows] == ["Gradient", "Responses"]


@pytest.mark.parametrize("unit", UNITS)
def test_every_analysis_says_what_it_has_found_and_the_page_opens_with_it(
    unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = analysed(unit)
    assert [one.analysis_name for one in found] == list(ANALYSES)
    for one in found:
        said = one.analysis.finding()
        assert len(said) > 20
        assert not said.endswith(".")
        assert "nan" not in said
    monkeypatch.setattr(page_assets, "plotly_js", lambda: "'plotly'")
    html = render_lab([(None, one.analysis) for one in found])
    assert html.index("Findings") < html.index("The figures that matter") < html.index('id="row-1"')


def test_a_column_without_a_value_is_not_drawn() -> None:
    table = Table("t", ("row", "here", "nowhere"), (("a", "–", ""), ("b", "2", "–")))
    assert table.without_empty_columns() == Table("t", ("row", "here"), (("a", "–"), ("b", "2")))
    html = render_page(Page("t", sections=(Section("s", items=(table,)),)))
    assert "here" in html
    assert "nowhere" not in html
    assert Table("t", ("a", "b"), ()).without_empty_columns().header == ("a", "b")


def test_units_below_the_line_and_names_as_they_are() -> None:
    html = render_page(Page("t", sections=(Section("s", ("x_l of test_error, run_1 and ∂ε/∂x_L",)),)))
    assert "x<sub>l</sub> of test_error, run_1 and ∂ε/∂x<sub>L</sub>" in html
