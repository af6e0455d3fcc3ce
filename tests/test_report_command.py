"""kilolayer report: of a sweep, of a run, and of a folder of runs."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kilolayer.__main__ import main
from kilolayer.report.curve_figures import (
    MAX_CURVES,
    _parts,
    _schedules,
    colour_numbers,
    learning_rate_figure,
    training_figures,
)
from kilolayer.report.curves import Curve
from kilolayer.report.document import Figure
from kilolayer.report.runs_page import _runs
from kilolayer.runs import Run
from kilolayer.sweep.reproduction import plan_reproduction, save_request
from kilolayer.training import recipe_by_name
from kilolayer.units import BASIC
from test_reproduce_findings import SMOKE, START, as_in_the_paper, end, pretend
from tiny_runs import PREACT, network, tiny


def curve(label: str, loss: float = 2.0) -> Curve:
    return Curve(label, (1.0, 2.0), (loss, loss / 2), (50.0, 40.0))


def test_of_a_sweep_it_writes_page_findings_and_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(replace(SMOKE, tables=("p2-table-1", "p2-table-2")), tmp_path, as_in_the_paper)
    assert main(["report", str(tmp_path)]) == 0
    assert "report.html" in capsys.readouterr().out
    names = {path.name for path in tmp_path.iterdir()}
    kinds = {f"p2-table-{n}.{kind}" for n in (1, 2) for kind in ("md", "tex", "csv")}
    assert names == {"runs", "sweep.json", "findings.json", "report.html"} | kinds
    page = (tmp_path / "report.html").read_text()
    assert "the same network" not in page
    assert "kilolayer reproduce p2-table-1 --rows &#39;dropout shortcut&#39;" in page
    assert "proxy" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert START["torch"] in page
    for kind in ("md", "csv"):
        assert "proxy" in (tmp_path / f"p2-table-1.{kind}").read_text()


def test_it_can_be_written_while_the_sweep_runs(tmp_path: Path) -> None:
    pretend(SMOKE, tmp_path, lambda row, column, trial: "not run" if trial.seed else 9.0)
    assert main(["report", str(tmp_path)]) == 0
    again = plan_reproduction(replace(SMOKE, rows=("original",)), tmp_path)
    end(again.cells[0].trials[1], float("nan"), "digits")
    assert main(["report", str(tmp_path)]) == 0
    (table,) = json.loads((tmp_path / "findings.json").read_text())["tables"]
    assert [run["result"] is None for run in table["cells"][0]["runs"]] == [False, False, True]


def test_of_a_sweep_that_has_not_begun(tmp_path: Path) -> None:
    save_request(plan_reproduction(SMOKE, tmp_path))
    assert main(["report", str(tmp_path)]) == 0
    assert "no run has begun" in (tmp_path / "report.html").read_text()


def test_of_a_run_and_of_a_folder_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = pretend(replace(SMOKE, rows=("original", "dropout")), tmp_path, as_in_the_paper)
    run = made.runs[0].path
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "This is one run" in capsys.readouterr().out
    assert run.name in page
    assert "1 run" in page
    assert main(["report", str(tmp_path / "runs")]) == 0
    page = (tmp_path / "runs" / "report.html").read_text()
    assert "6 runs" in page
    assert all(one.key in page for one in made.runs)


def test_runs_that_cannot_be_read_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, built_in = pretend(replace(SMOKE, rows=("original",), seeds=(0, 1)), tmp_path, as_in_the_paper).runs
    config = json.loads(own.path.joinpath("config.json").read_text())
    config["network"]["unit"]["h"] = {"type": "Mine", "file": {"name": "never_loaded.py", "sha256": "0" * 64}}
    own.path.joinpath("config.json").write_text(json.dumps(config))
    assert main(["report", str(tmp_path / "runs")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"A run is left out. {own.path}" in shown.replace("- ", "-")
    assert "add --unit never_loaded.py" in shown
    page = (tmp_path / "runs" / "report.html").read_text()
    assert "add --unit never_loaded.py" in page
    assert "1 run" in page
    assert built_in.path.name in page
    built_in.path.joinpath("config.json").unlink()
    assert main(["report", str(tmp_path / "runs")]) == 2


def test_of_a_run_that_has_measured_nothing(tmp_path: Path) -> None:
    one = pretend(replace(SMOKE, rows=("original",), seeds=(0,)), tmp_path, as_in_the_paper).runs[0]
    for name in ("metrics.jsonl", "result.json", "environment.json"):
        (one.path / name).unlink()
    assert main(["report", str(one.path)]) == 0
    assert "not finished" in (one.path / "report.html").read_text()


@pytest.mark.parametrize("what", ["nothing", "empty", "a file"])
def test_of_anything_else_it_is_one_line(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / what
    if what == "empty":
        folder.mkdir()
    if what == "a file":
        folder.write_text("")
    assert main(["report", str(folder)]) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("missing", ["matplotlib", "jinja2"])
def test_without_the_extra_it_says_so(
    missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_request(plan_reproduction(SMOKE, tmp_path))
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["report", str(tmp_path)]) == 2
    assert "kilolayer[report]" in capsys.readouterr().err


def test_many_curves_are_parted_and_each_figure_has_the_baseline() -> None:
    curves = [curve(str(number)) for number in range(11)]
    parts = list(_parts(curves, curves[0]))
    assert [len(part) for part in parts] == [6, 6]
    assert all(part[0] is curves[0] for part in parts)
    assert {one.label for part in parts for one in part} == {one.label for one in curves}
    assert [len(part) for part in _parts(curves[:MAX_CURVES], None)] == [MAX_CURVES]
    assert list(_parts(curves[:1], curves[0])) == [curves[:1]]
    assert list(_parts([], None)) == []


def test_a_loss_that_explodes_is_drawn_apart() -> None:
    calm, wild = [curve("a"), curve("b")], curve("c", loss=1e18)
    assert list(_parts([*calm, wild], calm[0])) == [calm, [calm[0], wild]]


def test_a_learning_rate_that_all_share_is_one_line() -> None:
    short, long = recipe_by_name("short", 1000), recipe_by_name("paper", 1000)
    assert [one.label for one in _schedules({"a": short, "b": short}, {"a": 0, "b": 1})] == ["all runs"]
    assert [one.label for one in _schedules({"a": short, "b": long, "c": short}, colour_numbers("abc"))] == [
        "a, c",
        "b",
    ]


def colours(figure: Figure) -> set[str]:
    """Those of the curves; the text's colour is none of them."""
    return set(re.findall(r"--curve-\d", figure.svg))


@pytest.mark.parametrize("baseline", [None, "0"])
def test_a_run_has_one_colour_on_the_whole_page(baseline: str | None) -> None:
    labels = [str(number) for number in range(15)]
    numbers = colour_numbers(labels, baseline)
    assert len(set(numbers.values())) == len(labels)
    alone = {label: next(training_figures([curve(label)], "t", numbers)) for label in labels}
    every = [
        learning_rate_figure(
            {label: recipe_by_name("short", 1000), "other": recipe_by_name("paper", 1000)},
            "t",
            numbers | {"other": 7},
        )
        for label in labels
    ]
    for (label, figure), rate in zip(alone.items(), every, strict=True):
        assert colours(rate) == colours(figure), label
    if baseline:
        others = {number % 8 for label, number in numbers.items() if label != baseline}
        assert numbers[baseline] % 8 not in others


def test_runs_of_the_same_depth_stand_beside_each_other(tmp_path: Path) -> None:
    for unit, depths in ((PREACT, (1, 2)), (BASIC, (1, 2))):
        for units in depths:
            name = f"{'v2' if unit is PREACT else 'v1'}-{units}"
            Run.create(tmp_path / name, replace(tiny(), network=network(unit, units)))
    assert list(_runs(tmp_path)[0]) == ["v1-1", "v2-1", "v1-2", "v2-2"]


def test_runs_of_different_data_are_not_compared(tmp_path: Path) -> None:
    ends = {"a": (10, 9.0), "b": (10, 7.0), "c": (3, 70.0)}
    for name, (classes, error) in ends.items():
        one = tiny(seed=ord(name))
        run = Run.create(tmp_path / name, replace(one, network=replace(one.network, num_classes=classes)))
        run.write_json("result.json", {"status": "done", "test_error": error})
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "digits, 10 classes: All 2 runs have a final test error: the lowest is 7.00 % (b)" in page
    assert "digits, 3 classes: c ends at 70.00 %" in page
    assert "the highest 70" not in page
    assert '<th scope="col" class="words short">data</th>' in page
    assert ">model</th>" not in page


def test_a_stopped_run_is_where_its_state_is(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", tiny())
    run.save({"x": torch.zeros(1)}, {"iteration": 2, "epochs_closed": 0})
    assert main(["report", str(run.path)]) == 0
    assert "it is at iteration 2 of 7" in (run.path / "report.html").read_text()
