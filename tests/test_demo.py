"""kilolayer demo: ends with table and report, goes on where it was, and refuses before it writes."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kilolayer.__main__ import main
from kilolayer.cli.command_line import parse
from kilolayer.cli.demo import DemoOptions, demo_resume_command, execute, worker_shares
from kilolayer.errors import InputError
from kilolayer.sweep import worker
from kilolayer.sweep.demo_plan import UNITS, demo_runs
from kilolayer.training import choose_device, computation_options
from kilolayer.values import to_json


def test_it_ends_with_a_table_and_a_report_and_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = DemoOptions(depths=(8,), iterations=4, out=tmp_path / "demo")
    cut = demo_runs(tmp_path / "demo", options.depths, options.iterations, options.seed)[8, "original"]
    calls = iter(range(100))
    outcome = worker.execute_run(str(cut.path), to_json(cut.experiment), "cpu", 60.0, lambda: next(calls) > 1)
    assert outcome == "stopped"
    assert execute(options) == 0
    said = capsys.readouterr().out
    assert "gradient norm" in said
    assert "report: " in said
    page = (tmp_path / "demo" / "report.html").read_text()
    assert all(name.replace("-", "-") in page for name in UNITS.values())
    assert len(json.loads((cut.path / "environment.json").read_text())) == 2
    before = {path: path.read_bytes() for path in (tmp_path / "demo").glob("*/*.json*")}
    assert execute(options) == 0
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--depths 21", "nearest: 20, 26"),
        ("--depths 8 57", "nearest: 56, 62"),
        ("--depths 2", "nearest: 8"),
        ("--iterations 0", "whole number from 1"),
        ("--workers 0", "--workers is 0"),
        ("--seed -1", "seed"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_nothing_is_written(
    words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    assert main(["demo", *words.split(), "--out", str(out)]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.count("\n") == 1
    assert not out.exists()


def test_a_folder_that_holds_other_things_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "other files" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_demo_of_other_options_is_refused(tmp_path: Path) -> None:
    one = demo_runs(tmp_path, (8,), 4, 0)[8, "original"]
    assert worker.execute_run(str(one.path), to_json(one.experiment), "cpu", 60.0, lambda: False) == "done"
    with pytest.raises(InputError, match="another experiment"):
        execute(DemoOptions(depths=(8,), iterations=5, out=tmp_path))


@pytest.mark.parametrize("missing", ["matplotlib", "plotly", "jinja2"])
def test_without_the_extra_it_says_so_before_it_trains(
    missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 2
    assert "kilolayer[report]" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_the_command_that_goes_on_is_the_same_demo(tmp_path: Path) -> None:
    for options in (DemoOptions(), DemoOptions(depths=(8, 20), iterations=5, seed=3, workers=1)):
        said = parse(shlex.split(demo_resume_command(options, tmp_path))[1:])
        assert said == replace(options, out=tmp_path)


def test_its_runs_are_computed_as_train_chooses(tmp_path: Path) -> None:
    here = computation_options(choose_device("cpu"))
    for one in demo_runs(tmp_path, (20,), 176, 0).values():
        assert {name: getattr(one.experiment, name) for name in here} == here


def test_cores_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert [worker_shares(workers) for workers in (1, 2, 3, 20)] == [(1, 8), (2, 4), (3, 2), (8, 1)]
