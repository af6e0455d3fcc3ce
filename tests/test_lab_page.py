"""The interactive page of analyses: what it holds, and what it lets run."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from kilolayer.chart import Chart, Series
from kilolayer.errors import InputError, StorageError
from kilolayer.report import lab, page_assets
from kilolayer.report.lab import chart_header, chart_rows
from kilolayer.report.lab_data import gather_lab, lab_json
from test_report_page import HOSTILE, Markup

UNITS = 6


@dataclass(frozen=True)
class Fading:
    """A gradient that loses a factor λ in every unit."""

    network: str
    factor: float = 0.5
    text: str = "gradient"

    def charts(self) -> tuple[Chart, ...]:
        x = tuple(float(unit) for unit in range(1, UNITS + 1))
        predicted = tuple(self.factor ** (UNITS - unit) for unit in x)
        measured = tuple(1.25 * y for y in predicted)
        curves = (
            Series(self.text, x, measured),
            Series(self.text, x, predicted, "predicted"),
            Series("weights " + self.text, x, tuple(3 * y for y in predicted)),
        )
        name, equation = "gradient", "∂ε/∂x_l = λ^{L−l}"
        return (Chart(name, self.text, equation, "unit", self.text, curves, log_y=True, note=self.text),)

    def summary(self) -> tuple[tuple[str, str], ...]:
        return (("what is left", f"{self.factor**UNITS:.4f}"), (self.text, f"{self.text}."))


def run(network: str, *factors: float) -> list[tuple[int, Fading]]:
    """Snapshots every 100 iterations."""
    return [(100 * number, Fading(network, factor)) for number, factor in enumerate(factors)]


BOTH = [*run("original", 0.5, 0.25), *run("pre-activation", 0.9, 0.95)]


def scripts(html: str) -> list[str]:
    return re.findall(r"<script>(.*?)</script>", html, re.DOTALL)


def attribute(markup: Markup, tag: str, key: str, value: str, wanted: str) -> str:
    return next(found[wanted] for name, found in markup.elements if name == tag and found.get(key) == value)


def test_networks_stand_side_by_side_on_common_axes() -> None:
    (row,) = lab_json(gather_lab(BOTH))["rows"]
    assert [panel["network"] for panel in row["panels"]] == ["original", "pre-activation"]
    low, high = row["range"]
    frames = [frame for panel in row["panels"] for frame in panel["frames"]]
    values = [y for frame in frames for *_, ys in frame["curves"] for y in ys]
    assert low < min(values) <= 0.25**5 * 1.01
    assert max(values) < high


def test_snapshots_lie_in_the_order_of_time_and_networks_in_that_given() -> None:
    page = lab_json(gather_lab([BOTH[3], BOTH[1], BOTH[2], BOTH[0]]))
    assert page["iterations"] == [0, 100]
    assert [panel["network"] for panel in page["rows"][0]["panels"]] == ["pre-activation", "original"]
    assert [frame["at"] for frame in page["rows"][0]["panels"][0]["frames"]] == [0, 100]


def test_figures_that_no_time_belongs_to_stand_at_every_time() -> None:
    @dataclass(frozen=True)
    class Trend(Fading):
        def summary(self) -> tuple[tuple[str, str], ...]:
            return (("trend", "down"),)

    page = lab_json(gather_lab([*run("net", 0.5, 0.25), (None, Trend("net"))]))
    assert [frame["values"][2] for frame in page["figures"][0]] == ["down"] * 3
    assert [frame["values"][0] for frame in page["figures"][0]] == ["", "0.0156", "0.0002"]


def test_two_networks_of_one_name_stay_two() -> None:
    lab = gather_lab([(None, Fading("net", 0.5)), (None, Fading("net", 0.9))])
    assert lab.networks == ["net", "net (2)"]
    assert len(lab.rows[0].panels) == 2


def test_an_x_axis_is_held_once() -> None:
    page = lab_json(gather_lab(BOTH))
    assert page["xs"] == [[1, 2, 3, 4, 5, 6]]


def test_prediction_and_measurement_share_a_colour_and_nothing_else_does() -> None:
    (row,) = lab_json(gather_lab(BOTH))["rows"]
    assert [(one["kind"], one["number"]) for one in row["series"]] == [
        ("measured", 0),
        ("predicted", 0),
        ("measured", 1),
    ]


@pytest.mark.parametrize(
    ("values", "log", "expected"),
    [
        ((1e-9, 1.0), True, True),
        ((0.9, 1.1), True, False),
        ((0.0, -1.0), True, False),
        ((1e-320, 1e308), True, True),
        ((1.0, 100.0), False, False),
    ],
)
def test_an_axis_is_logarithmic_where_that_shows_something(
    values: tuple[float | None, ...], log: bool, expected: bool
) -> None:
    @dataclass(frozen=True)
    class One(Fading):
        def charts(self) -> tuple[Chart, ...]:
            x = tuple(map(float, range(len(values))))
            return (Chart("c", "t", "e", "x", "y", (Series("s", x, values),), log_y=log),)

    (row,) = lab_json(gather_lab([(None, One("n"))]))["rows"]
    assert row["log"] is expected
    low, high = row["range"]
    assert math.isfinite(low)
    assert low < high < math.inf
    json.dumps(row, allow_nan=False)


def test_an_equation_is_set_with_subscripts_and_powers_and_stays_text() -> None:
    assert lab.equation_markup("x_{l+1} = 0.9^54·x_l") == "x<sub>l+1</sub> = 0.9<sup>54</sup>·x<sub>l</sub>"
    assert lab.equation_markup("x_<b> & <i>") == "x_&lt;b&gt; &amp; &lt;i&gt;"


def test_the_page_lets_only_its_own_scripts_run_and_asks_for_nothing() -> None:
    html = lab.render_lab(BOTH)
    policy = attribute(Markup(html), "meta", "http-equiv", "Content-Security-Policy", "content")
    digests = [hashlib.sha256(script.encode()).digest() for script in scripts(html)]
    sources = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    assert len(digests) == 3
    assert f"default-src 'none'; script-src {sources};" in policy
    assert not re.search(r"connect-src|unsafe-eval|https?:", policy)
    assert "sourceMappingURL" not in html
    assert "Licensed under the MIT license" in html


def test_the_page_has_a_place_for_everything() -> None:
    html = lab.render_lab(BOTH, title="Gradients", provenance=(("command", "kilolayer analyse"),))
    markup = Markup(html)
    tags = [tag for tag, _ in markup.elements]
    assert [tags.count(tag) for tag in ("h1", "figure", "details", "input")] == [1, 2, 2, 1]
    assert attribute(markup, "input", "id", "time", "max") == "1"
    assert attribute(markup, "label", "for", "time", "for") == "time"
    told = [found["aria-label"] for _, found in markup.elements if found.get("class") == "chart"]
    assert len(told) == 2
    assert "original: gradient by unit. gradient (measured) from 0.00122 to 1.25" in told[0]
    words = "".join(markup.words)
    for part in ("Gradients", "what is left", "kilolayer analyse", "original", "pre-activation"):
        assert part in words
    assert "∂ε/∂x<sub>l</sub> = λ<sup>L−l</sup>" in html


def test_without_scripts_the_numbers_of_the_last_moment_are_there() -> None:
    html = lab.render_lab(BOTH)
    table = html[html.index("<table>", html.index('id="row-1"')) : html.rindex("</table>")].partition(
        "</table>"
    )[0]
    lines = [re.findall("<t[hd][^>]*>(.*?)</t[hd]>", line) for line in table.split("<tr>")[1:]]
    assert lines[0] == ["unit", "gradient", "gradient, predicted", "weights gradient"]
    assert lines[UNITS - 1] == ["5", "0.3125", "0.25", "0.75"]
    assert lines[1][1:] == ["0.001221", "9.77·10⁻⁴", "0.00293"]
    assert '<td id="figure-0-0">0.0002</td>' in html
    assert '<span class="when">iteration 100</span>' in html


def test_a_place_without_a_value_is_a_dash_in_the_table() -> None:
    series = (Series("a", (2.0, 1.0), (math.nan, 4.0)), Series("b", (3.0,), (None,), "predicted"))
    chart = Chart("c", "t", "e", "x", "y", series)
    assert chart_header(chart) == ("x", "a", "b, predicted")
    assert chart_rows(chart) == [("1", "4", "–"), ("2", "–", "–"), ("3", "–", "–")]


def test_without_training_time_there_is_no_slider() -> None:
    for timeless in ([(None, Fading("a")), (None, Fading("b"))], [(100, Fading("a"))]):
        assert "input" not in Markup(lab.render_lab(timeless)).tags


@pytest.mark.parametrize("text", HOSTILE, ids=[ascii(text)[:30] for text in HOSTILE])
def test_no_string_becomes_markup(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Five megabytes that no string of ours comes into need not be parsed each time.
    monkeypatch.setattr(page_assets, "plotly_js", lambda: "'plotly'")

    def skeleton(html: str) -> list[str]:
        return [tag for tag, _ in Markup(html).elements if tag not in ("sub", "sup")]

    def page(text: str) -> str:
        return lab.render_lab([(None, Fading("n" + text, text=text))], title=text, provenance=((text, text),))

    html = page(text)
    html.encode()
    assert skeleton(html) == skeleton(page("plain"))
    assert len(scripts(html)) == 3
    for tag, found in Markup(html).elements:
        assert not any(name.startswith("on") for name in found), tag
        assert found.get("href", "data:,") == "data:,"


def test_nothing_to_show_and_nowhere_to_write_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no analysis"):
        lab.write_lab([], tmp_path / "page.html")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        lab.write_lab(BOTH, tmp_path / "file" / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_page_is_light(tmp_path: Path) -> None:
    """Twenty snapshots of two networks of 333 units, three curves each, in a megabyte beside Plotly's."""

    @dataclass(frozen=True)
    class Deep(Fading):
        def charts(self) -> tuple[Chart, ...]:
            x = tuple(map(float, range(333)))
            y = tuple(self.factor / (1 + each) for each in x)
            return (Chart("c", "t", "e", "x", "y", tuple(Series(name, x, y) for name in "abc")),)

    frames = [(at, Deep(name, 0.1234567 * at)) for name in ("a", "b") for at in range(20)]
    size = lab.write_lab(frames, tmp_path / "page.html").stat().st_size
    assert size - len(page_assets.plotly_js().encode()) < 1_000_000


def test_the_script_is_read_once_and_not_before_it_is_needed() -> None:
    words = "import sys, kilolayer.report.lab; assert not [m for m in sys.modules if m.startswith('plotly')]"
    subprocess.run([sys.executable, "-c", words], check=True)
    assert page_assets.plotly_js() is page_assets.plotly_js()


def test_without_plotly_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    page_assets.plotly_js.cache_clear()
    monkeypatch.delitem(sys.modules, "plotly.offline", raising=False)
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(InputError, match=r"plotly .*pip install 'kilolayer"):
        lab.render_lab(BOTH)
