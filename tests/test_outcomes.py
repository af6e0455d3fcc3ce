"""The sentences that reports open with are drawn from the data, and honest where there is little of it."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kilolayer.__main__ import main
from kilolayer.audit import audit_model
from kilolayer.cli.analysis_inputs import load_analysis_inputs
from kilolayer.cli.command_line import parse
from kilolayer.cli.demo import DemoOptions, check_demo_folder
from kilolayer.cli.options import AnalysisInputOptions, UnitOptions
from kilolayer.cli.train import TrainOptions
from kilolayer.errors import InputError
from kilolayer.measure.gradient import Gradient, GradientTerms
from kilolayer.networks import create_model
from kilolayer.report.audit_text import print_audit
from kilolayer.report.bench_text import bench_finding
from kilolayer.report.demo_finding import InitialState, demo_findings, next_commands
from kilolayer.report.reproduction_finding import finding_sentence
from kilolayer.report.run_finding import run_findings
from kilolayer.runs import Run
from kilolayer.sweep.demo_plan import UNITS, demo_runs
from kilolayer.sweep.results import table_results as table_findings
from kilolayer.sweep.run_spec import RunSpec
from test_reproduce_findings import SMOKE, as_in_the_paper, only, pretend
from tiny_runs import tiny

ORIGINAL, PREACTIVATION = UNITS


def start(first: float, last: float, direct: float) -> InitialState:
    unit = GradientTerms("stage1.0", 1, first, direct * last, first, 0.0, None)
    return InitialState(Gradient("net", (unit,), (last,)), 5.0)


def ended(run: Path, **result: Any) -> Run:
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    Run(run).write_json("result.json", result)
    return Run(run)


def demo_of(folder: Path, original: dict[str, Any], preactivation: dict[str, Any]) -> dict[Any, RunSpec]:
    planned = demo_runs(folder, (20,), 4, 0)
    for unit, result in ((ORIGINAL, original), (PREACTIVATION, preactivation)):
        if result:
            ended(planned[20, unit].path, **result)
    return planned


def done(error: float) -> dict[str, Any]:
    return {"status": "done", "test_error": error}


@pytest.mark.parametrize(
    ("original", "preactivation", "said"),
    [
        (done(78.0), done(2.5), "the original network fails and the pre-activation one does not"),
        (done(3.0), done(33.0), "the pre-activation network falls behind and the original one does not"),
        ({"status": "diverged"}, done(2.5), "ends at 90.00 % test error"),
        (done(4.0), done(3.0), "this depth shows no difference"),
        (done(88.0), done(75.0), "neither has learned much"),
        ({}, done(3.0), "nothing can be compared"),
        ({"status": "failed"}, done(3.0), "nothing can be compared"),
    ],
)
def test_the_demo_says_which_unit_fails_or_that_none_does(
    original: dict[str, Any], preactivation: dict[str, Any], said: str, tmp_path: Path
) -> None:
    planned = demo_of(tmp_path / "demo", original, preactivation)
    starts = {(20, ORIGINAL): start(3.5, 0.03, 0.4), (20, PREACTIVATION): start(0.5, 0.004, 1.0)}
    outcome, *_ = demo_findings(planned, starts)
    assert said in outcome


@pytest.mark.parametrize("larger", [True, False])
def test_the_demo_says_whose_gradient_is_larger_and_whence(larger: bool, tmp_path: Path) -> None:
    planned = demo_of(tmp_path / "demo", done(78.0), done(2.5))
    pair = start(3.5, 0.03, 0.408), start(0.5, 0.004, 1.0)
    original, preactivation = pair if larger else pair[::-1]
    _, size, ends, direct = demo_findings(
        planned, {(20, ORIGINAL): original, (20, PREACTIVATION): preactivation}
    )
    assert ("has not vanished" in size) is larger
    assert ("is 3.5, 7 times" if larger else "is 0.5, 0.143 times") in size
    assert ("7.5 times the other" if larger else "0.133 times the other") in ends
    assert ("divides the gradient" in ends) is larger
    assert "P2, Eq. 5" in direct
    assert direct.index("100 %" if larger else "40.8 %") < direct.index("40.8 %" if larger else "100 %")


def test_the_demo_ends_with_three_commands_that_can_be_copied(tmp_path: Path) -> None:
    folder = tmp_path / "my demo"
    options = DemoOptions(depths=(8, 20), iterations=4, seed=3)
    planned = demo_runs(folder, options.depths, options.iterations, options.seed)
    commands = [parse(shlex.split(line)[1:]) for _, line in next_commands(planned, folder)]
    assert len(commands) == 3
    analyse, train, _ = commands
    assert type(analyse).__name__ == "AnalyseOptions"
    assert analyse.networks == tuple(str(planned[20, unit].path) for unit in UNITS)
    assert isinstance(train, TrainOptions)
    # What the first of them writes does not keep the demo from going on.
    folder.mkdir()
    Path(str(analyse.html)).write_text("")
    check_demo_folder(folder)
    (folder / "thesis.html").write_text("")
    with pytest.raises(InputError, match="other files"):
        check_demo_folder(folder)


def runs_of(folder: Path, *results: dict[str, Any], seeds: bool = False) -> dict[str, Run]:
    found = {}
    for number, result in enumerate(results):
        experiment = tiny(seed=number) if seeds else tiny(evaluate_every=number + 1)
        run = Run.create(folder / f"run-{number}", experiment)
        if result:
            run.write_json("result.json", result)
        found[f"run-{number}"] = run
    return found


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ([{}], "run-0 has not ended: it is at iteration 0 of 7"),
        ([done(12.5)], "ends at 12.50 % test error"),
        ([done(12.5)], "This is one run: train other seeds to see how much the error varies"),
        ([done(88.0)], "it has learned nothing"),
        ([done(60.0)], "it has learned little"),
        (
            [{"status": "diverged", "reason": "the loss is nan"}],
            "diverged at iteration 0 of 7 and has no final error",
        ),
        ([{}, {}], "None of the 2 runs has a final test error yet"),
        ([done(9.0), {}], "Only run-0 of 2 runs has a final test error: 9.00 %"),
        ([done(9.0), done(4.0)], "the lowest is 4.00 % (run-1), the highest 9.00 % (run-0)"),
        ([done(9.0), done(4.0)], "so a difference between these errors may be chance"),
    ],
)
def test_of_runs_the_outcome_is_said(results: list[dict[str, Any]], said: str, tmp_path: Path) -> None:
    assert said in " ".join(run_findings(runs_of(tmp_path, *results)))


def test_seeds_of_one_experiment_say_how_far_they_spread(tmp_path: Path) -> None:
    (_, spread) = run_findings(runs_of(tmp_path, done(9.0), done(7.0), seeds=True))
    assert "8.00 ± 1.41 %" in spread
    assert "2 runs" in spread


@pytest.mark.parametrize(
    ("seeds", "better", "said"),
    [
        ((0,), True, "3 undecided with fewer than 3 runs each"),
        ((0, 1, 2, 3, 4, 5, 6, 7), True, "3 as in the paper"),
        ((0, 1, 2, 3, 4, 5, 6, 7), False, "3 opposite to the paper"),
        ((0, 1, 2), True, "3 undecided"),
    ],
)
def test_of_a_table_it_is_said_how_many_gaps_are_decided(
    seeds: tuple[int, ...], better: bool, said: str, tmp_path: Path
) -> None:
    request = replace(SMOKE, rows=("original", "0.5", "dropout"), seeds=seeds)

    def figure(row: str, column: str, trial: Any) -> float:
        noise = 0.01 * trial.seed
        return (5.0 if (row == "original") is better else 50.0) + noise

    text = finding_sentence(only(table_findings(pretend(request, tmp_path, figure))))
    assert text.startswith("P2, Table 1: the lowest median error of 4 cells is")
    assert said in text


def test_of_a_table_without_runs_nothing_is_claimed(tmp_path: Path) -> None:
    made = pretend(replace(SMOKE, rows=("original",)), tmp_path, lambda *_: "not run")
    assert "no run has a figure yet" in finding_sentence(only(table_findings(made)))


def test_the_reports_open_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = pretend(replace(SMOKE, rows=("original", "dropout")), tmp_path, as_in_the_paper)
    for folder in (tmp_path, made.runs[0].path, tmp_path / "runs"):
        assert main(["report", str(folder)]) == 0
        page = (folder / "report.html").read_text()
        assert page.index("Findings") < page.index("<figure") if "<figure" in page else True
        assert page.index("Findings") < page.index("<table")
    said = capsys.readouterr().out
    assert said.index("the lowest median error") < said.index("mean ± std")


@pytest.mark.parametrize(
    ("name", "said"),
    [("resnet20_cifar", "no fault found; it computes what resnet20_cifar computes"), ("odd", "1 fault, so")],
)
def test_an_audit_opens_with_its_outcome(name: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = create_model("resnet20_cifar", in_chans=3)
    print_audit(audit_model(model, "resnet20" if name != "odd" else "resnet56"))
    assert said in capsys.readouterr().out.splitlines()[0]


def row(name: str, speed: float, spread: float = 0.01) -> dict[str, Any]:
    seconds = 64 / speed
    return {
        "name": name,
        "images_per_second": speed,
        "roofline_share": 0.5,
        "seconds_least": seconds * (1 - spread),
        "seconds_most": seconds * (1 + spread),
    }


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row("a", 100)], "no other network was measured"),
        (
            [row("a", 100), row("b", 250)],
            "b: 250 images/s in training, 50 % of what this",
        ),
        ([row("a", 100, 0.2), row("b", 104, 0.2)], "does not decide which is faster"),
    ],
)
def test_a_benchmark_opens_with_the_fastest_and_whether_that_is_sure(rows: list[Any], said: str) -> None:
    assert said in bench_finding({"contestants": rows, "work": "training"})


def test_two_modules_of_one_name_are_told_apart_and_one_run_named_twice_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(
            "from kilolayer import create_model\n"
            "def net():\n    return create_model('resnet8_cifar', in_chans=1, num_classes=10)\n"
        )
    words = tuple(f"{tmp_path / name}.py:net" for name in ("one", "two"))
    options = AnalysisInputOptions(batch_size=4, units=("stage?.*",))
    assert [one.name for one in load_analysis_inputs(words, options, UnitOptions())] == list(words)
    run = Run.create(tmp_path / "run", tiny()).path
    with pytest.raises(InputError, match="named twice"):
        load_analysis_inputs((str(run), f"{run}/"), AnalysisInputOptions(), UnitOptions())
