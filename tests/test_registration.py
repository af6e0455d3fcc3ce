"""A registered sweep: fixed before its first run, run look by look, and never registered anew in silence."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kilolayer.__main__ import main
from kilolayer.data import load
from kilolayer.data.augmentation import batch_spec
from kilolayer.errors import InputError
from kilolayer.papers import Scale, cell_experiment, find_table
from kilolayer.report.registration_text import proposed_rows
from kilolayer.report.reproduction_report import whole_command, write_reproduction
from kilolayer.runs.predictions import Predictions, write_predictions
from kilolayer.statistics import DecisionRule
from kilolayer.sweep import Outcome, RunSpec, SweepStopped, run_batches
from kilolayer.sweep.engine import Tick
from kilolayer.sweep.image_errors import image_errors
from kilolayer.sweep.looks import family_decisions, next_runs, registered_result
from kilolayer.sweep.registration import (
    Registration,
    amend_registration,
    check_runs,
    differences,
    mark_runs,
    read_entries,
    register,
    write_registration,
)
from kilolayer.sweep.reproduction import (
    Reproduction,
    Request,
    open_sweep,
    plan_reproduction,
    write_request,
)
from kilolayer.sweep.results import table_results
from kilolayer.training.trainer import _initial_model
from kilolayer.values import from_json, to_json
from test_reproduce_findings import SMOKE, end

RULE = DecisionRule((3, 5, 8), margin=0.5, test="paired t", spending="Pocock")
ROWS = ("original", "BN after addition", "ReLU before addition", "ReLU-only pre-activation")
Errors = Callable[[RunSpec], float]


def paired(spec: RunSpec) -> float:
    """An error for each run: BN after addition is far worse; the others are near, with a spread."""
    experiment = spec.experiment
    noise = (experiment.seed * 7919 + len(to_json(experiment.network.unit)) * 104729) % 97 / 97
    worse = {"BN after addition": 20.0, "ReLU before addition": 1.5}
    rows = {
        row: find_table("p2-table-2").cell(row, "ResNet-110").plan.unit.arrangement  # type: ignore[union-attr]
        for row in worse
    }
    return 40 + noise + sum(worse[row] for row in worse if rows[row] == experiment.network.unit.arrangement)


class Invented:
    """An engine that invents the error of each run, and stops the sweep after so many runs."""

    def __init__(self, folder: Path, stop_after: int = 10**9) -> None:
        self.folder, self.left = folder, stop_after
        self.executed: list[str] = []

    def execute(self, specs: Sequence[RunSpec], tick: Tick) -> Iterator[tuple[RunSpec, Outcome]]:
        for spec in specs:
            if not self.left:
                raise SweepStopped
            self.left -= 1
            self.executed.append(spec.key)
            end(_trial(spec), paired(spec), "digits")
            yield spec, "done"

    def close(self) -> None:
        pass


def _trial(spec: RunSpec) -> Any:
    class Ended:
        pass

    trial: Any = Ended()
    trial.spec = spec
    return trial


def request(seeds: int = 8, **changes: Any) -> Request:
    base = replace(SMOKE, tables=("p2-table-2",), rows=ROWS, columns=("ResNet-110",))
    return replace(base, seeds=tuple(range(seeds)), **changes)


def planned(folder: Path, rule: DecisionRule = RULE) -> tuple[Reproduction, Registration]:
    made = plan_reproduction(request(rule.looks[-1]), folder)
    return made, register(made, rule, 80.0, threads=1, load=load)


def begun(folder: Path, rule: DecisionRule = RULE) -> tuple[Reproduction, Registration]:
    made, registration = planned(folder, rule)
    write_request(made)
    write_registration(made, registration)
    return made, registration


def work(made: Reproduction, registration: Registration, engine: Invented) -> None:
    def look() -> Sequence[RunSpec]:
        runs = next_runs(made, registration)
        mark_runs(made.folder, runs)
        return runs

    run_batches(look, engine)


def decisions(made: Reproduction, registration: Registration) -> tuple[Any, ...]:
    return family_decisions(registration, table_results(made))


def test_a_decided_comparison_is_not_run_further(tmp_path: Path) -> None:
    made, registration = begun(tmp_path)
    engine = Invented(tmp_path)
    work(made, registration, engine)
    (family,) = decisions(made, registration)
    by_row = {one.b: one for one in family.decisions}
    assert by_row["BN after addition (ResNet-110)"].word == "A is better"
    assert by_row["BN after addition (ResNet-110)"].n == 3
    assert all(one.final for one in family.decisions)
    last = max(one.n for one in family.decisions)
    assert last > 3  # the law below is about several looks
    counts = {
        row: sum(
            trial.spec.key in engine.executed
            for cell in made.cells
            if cell.cell.row == row
            for trial in cell.trials
        )
        for row in ROWS
    }
    assert counts == {"original": last} | {
        row: by_row[f"{row} (ResNet-110)"].n for row in ROWS if row != "original"
    }


def test_a_sweep_killed_anywhere_makes_the_same_runs_and_decisions(tmp_path: Path) -> None:
    made, registration = begun(tmp_path / "whole")
    whole = Invented(made.folder)
    work(made, registration, whole)
    expected = decisions(made, registration)
    for kill in range(0, len(whole.executed) + 1, 3):
        made, registration = begun(tmp_path / f"killed-{kill}")
        first = Invented(made.folder, kill)
        if kill < len(whole.executed):
            with pytest.raises(SweepStopped):
                work(made, registration, first)
        else:
            work(made, registration, first)
        made = open_sweep(made.folder)
        check_runs(made)
        second = Invented(made.folder)
        work(made, read_entries(made.folder)[-1].registration, second)
        assert sorted(first.executed + second.executed) == sorted(whole.executed)
        assert decisions(made, registration) == expected


KILLS = ("before the look", "the look's first run is marked", "the look's runs are marked", "amid its runs")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the kill is one of a forked process")
@pytest.mark.parametrize(
    "moment", [KILLS[0], *(pytest.param(moment, marks=pytest.mark.slow) for moment in KILLS[1:])]
)
def test_a_sweep_killed_between_looks_looks_again_and_decides_the_same(moment: str, tmp_path: Path) -> None:
    """SIGKILL at the second look: nothing of the process but its files is left."""
    whole, registration = begun(tmp_path / "whole")
    undisturbed = Invented(whole.folder)
    work(whole, registration, undisturbed)

    def killed(made: Reproduction, registration: Registration) -> None:
        looks = iter(range(10**6))

        def look() -> Sequence[RunSpec]:
            number = next(looks)
            runs = next_runs(made, registration)
            for moment_now, marked in zip(KILLS, ((), runs[:1], runs), strict=False):
                if number == 1:
                    mark_runs(made.folder, marked)
                    if moment == moment_now:
                        os.kill(os.getpid(), signal.SIGKILL)
            mark_runs(made.folder, runs)
            return runs

        class Last(Invented):
            def execute(self, specs: Sequence[RunSpec], tick: Tick) -> Iterator[tuple[RunSpec, Outcome]]:
                for number, ended in enumerate(super().execute(specs, tick)):
                    if number and len(self.executed) > len(ROWS) * 3:
                        os.kill(os.getpid(), signal.SIGKILL)
                    yield ended

        run_batches(look, Last(made.folder))

    made, registration = begun(tmp_path / "killed")
    if not (child := os.fork()):
        try:
            killed(made, registration)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    before = {spec.key for spec in made.runs if (spec.path / "result.json").exists()}
    assert len(ROWS) * 3 <= len(before) < len(undisturbed.executed)
    made = open_sweep(made.folder)
    check_runs(made)
    second = Invented(made.folder)
    work(made, read_entries(made.folder)[-1].registration, second)
    assert before.isdisjoint(second.executed)
    assert before | set(second.executed) == set(undisturbed.executed)
    assert decisions(made, registration) == decisions(whole, registration)


OLD_SWEEP = Path(__file__).parent / "fixtures" / "registered-sweep-1"


def test_a_registered_sweep_of_an_earlier_release_is_read_as_it_was(tmp_path: Path) -> None:
    """Registered, run and decided by commit 47992b8: its registration, its amendment and its decisions."""
    folder = tmp_path / "sweep"
    shutil.copytree(OLD_SWEEP, folder)
    made = open_sweep(folder)
    first, amended = read_entries(folder)
    assert first.registration.date == "2026-11-29T06:00:00+00:00"
    assert (first.registration.rule.looks, amended.registration.rule.looks) == ((3,), (3, 4))
    assert amended.reason == "one more seed was to be had"
    registered = registered_result(made, table_results(made))
    assert registered is not None
    told = [[one.b, one.n, one.word, one.final] for one in registered.of_table("p2-table-2")]
    assert told == json.loads((folder / "decisions.json").read_text(encoding="utf-8"))
    assert main(["reproduce", "--list", "--resume", str(folder)]) == 0
    assert main(["report", str(folder)]) == 0


def test_the_code_of_another_release_is_a_difference_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweep"
    shutil.copytree(OLD_SWEEP, folder)
    assert main(["reproduce", "--resume", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "code.sha256 is" in error


def test_a_run_that_this_machine_cannot_end_stops_nothing(tmp_path: Path) -> None:
    made, registration = begun(tmp_path)
    lost = made.cells[1].trials[0].spec
    mark_runs(tmp_path, [lost])
    end(_trial(lost), "no memory", "digits")
    work(made, registration, Invented(tmp_path))
    (family,) = decisions(made, registration)
    assert [one.word for one in family.decisions if one.b.startswith(made.cells[1].cell.row)] == [
        "not enough runs"
    ]


def test_a_sweep_is_registered_before_its_first_run(tmp_path: Path) -> None:
    made, registration = planned(tmp_path)
    write_request(made)
    end(_trial(made.runs[0]), 50.0, "digits")
    with pytest.raises(InputError, match="has 1 runs already"):
        write_registration(made, registration)
    assert not (tmp_path / "registration.json").exists()


def test_the_registration_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    _, registration = begun(tmp_path)
    (entry,) = read_entries(tmp_path)
    assert entry.registration == registration
    assert from_json(to_json(registration), Registration) == registration
    assert entry.registration.families[0].pairs[0] == (
        "original (ResNet-110)", "BN after addition (ResNet-110)",
    )  # fmt: skip


FIELDS = {
    "date": lambda raw: raw.__setitem__("date", "2020-01-01"),
    "seeds": lambda raw: raw["request"]["seeds"].reverse(),
    "margin": lambda raw: raw["rule"].__setitem__("margin", 3.0),
    "looks": lambda raw: raw["rule"].__setitem__("looks", [3, 8]),
    "fail_above": lambda raw: raw.__setitem__("fail_above", 99.0),
    "pairs": lambda raw: raw["families"][0]["pairs"].pop(),
    "batch_size": lambda raw: raw["cells"][0]["experiments"][0]["recipe"].__setitem__("batch_size", 7),
    "training_set": lambda raw: raw["data"][0].__setitem__("training_set", "0" * 64),
    "exclusions": lambda raw: raw.__setitem__("exclusions", "what we like"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_changed_registration_is_refused_by_name(name: str, tmp_path: Path) -> None:
    made, _ = begun(tmp_path)
    mark_runs(tmp_path, made.runs[:1])
    end(_trial(made.runs[0]), 50.0, "digits")
    path = tmp_path / "registration.json"
    content = json.loads(path.read_text())
    FIELDS[name](content["entries"][0]["registration"])
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"registration.json was changed after it was written: .*{name}"):
        read_entries(tmp_path)


@pytest.mark.parametrize("name", FIELDS)
def test_a_registration_written_anew_is_not_that_of_the_runs(name: str, tmp_path: Path) -> None:
    from kilolayer.sweep import registration as module

    made, _ = begun(tmp_path)
    mark_runs(tmp_path, made.runs[:1])
    path = tmp_path / "registration.json"
    content = json.loads(path.read_text())
    FIELDS[name](content["entries"][0]["registration"])
    content["entries"][0]["sha256"] = module._seal(content["entries"][0])
    path.write_text(json.dumps(content))
    assert len(read_entries(tmp_path)) == 1  # its own checksum is right
    with pytest.raises(InputError, match=f"is not the registration under which .* began: .*{name}"):
        check_runs(made)


def test_a_registration_that_is_gone_and_a_run_without_one_are_refused(tmp_path: Path) -> None:
    made, _ = begun(tmp_path)
    end(_trial(made.runs[0]), 50.0, "digits")
    with pytest.raises(InputError, match="began without the registration"):
        check_runs(made)
    mark_runs(tmp_path, made.runs[1:2])
    (tmp_path / "registration.json").unlink()
    with pytest.raises(InputError, match=r"registration\.json is missing"):
        check_runs(made)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", ", line 1: not JSON: it is empty; a copy of an entry is in the folder of each run"),
        ("{", ", line 1: not JSON"),
        ("[]", ", line 1: the value is a list; allowed: an object"),
        ('{"format": 1, "entries": []}', " is damaged: it holds no registration"),
        ('{"format": 1,\n "entries": [3]}', ", line 2: entries\\[0\\] is 3; allowed: an object"),
    ],
)
def test_a_damaged_registration_is_one_line(text: str, reason: str, tmp_path: Path) -> None:
    begun(tmp_path)
    (tmp_path / "registration.json").write_text(text)
    with pytest.raises(InputError, match=rf"registration\.json{reason}") as refusal:
        read_entries(tmp_path)
    assert "\n" not in str(refusal.value)


def test_an_amendment_is_kept_with_its_reason_and_what_it_changes(tmp_path: Path) -> None:
    made, registration = begun(tmp_path)
    amended = replace(registration, rule=replace(RULE, margin=1.0), date="2030-01-01")
    amend_registration(tmp_path, amended, "the spread is larger")
    first, second = read_entries(tmp_path)
    assert first.registration == registration
    assert second.registration == amended
    assert second.reason == "the spread is larger"
    assert [(one.field, one.before, one.after) for one in second.differences] == [
        ("rule.margin", "0.5", "1.0")
    ]
    for reason, changed in (("", replace(amended, threads=2)), ("again", amended)):
        with pytest.raises(InputError, match="--amend"):
            amend_registration(tmp_path, changed, reason)
    write_reproduction(made)
    page, listed = (tmp_path / "report.html").read_text(), (tmp_path / "p2-table-2.md").read_text()
    for text in (page, listed):
        assert "the spread is larger (rule.margin from 0.5 to 1.0)" in text
    content = json.loads((tmp_path / "findings.json").read_text())
    assert [entry["reason"] for entry in content["registered"]["entries"]] == ["", "the spread is larger"]


def test_every_field_of_a_registration_is_compared(tmp_path: Path) -> None:
    _, registration = planned(tmp_path)
    others = {
        "request": replace(registration.request, recipe="short"),
        "rule": replace(RULE, alpha=0.01),
        "fail_above": 30.0,
        "families": (),
        "cells": registration.cells[1:],
        "data": (replace(registration.data[0], test_set="0"),),
        "threads": 2,
        "torch": "1.0",
        "code": replace(registration.code, sha256="0"),
        "exclusions": "some",
    }
    assert set(others) == set(Registration.__dataclass_fields__) - {"date"}
    for name, value in others.items():
        found = differences(registration, replace(registration, **{name: value}))
        assert found, name
        assert all(one.field.startswith(name) for one in found)
    assert not differences(registration, replace(registration, date="later"))


def test_so_few_seeds_that_nothing_can_be_decided_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot decide any of 3 comparisons"):
        planned(tmp_path, DecisionRule((3, 5)))


LINE = (
    "reproduce", "p2-table-2", "--rows", *ROWS, "--columns", "ResNet-110", "--scale", "smoke",
    "--data", "digits", "--cores", "1", "--register", "--looks", "3,5,8", "--test", "paired-t",
    "--spending", "pocock", "--margin", "0.5", "--fail-above", "80",
)  # fmt: skip
CHANGED = {
    ("--seeds", "3"): "request.seeds is 0, 1, 2, registered 0, 1, 2, 3, 4, 5, 6, 7",
    ("--looks", "3,8"): "rule.looks is 3, 8, registered 3, 5, 8",
    ("--margin", "2"): "rule.margin is 2.0, registered 0.5",
    ("--test", "sign-flips"): "rule.test is sign flips, registered paired t",
    ("--fail-above", "20"): "fail_above is 20.0, registered 80.0",
    ("--cores", "2"): "threads is 2, registered 1",
    ("--recipe", "short"): "request.recipe is short, registered nothing",
    ("--iterations", "9"): "request.size.iterations is 9, registered 8",
    ("--rows", "original", "full"): "request.rows is original, full, registered original, BN after",
    ("--precision", "fp32", "--kernels", "plain"): "is fp32, registered bf16",
}


@pytest.mark.parametrize("words", CHANGED, ids=" ".join)
def test_a_call_that_differs_is_refused_with_the_difference(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, registration = _registered_by_command(tmp_path)
    assert main([*LINE, *words, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert CHANGED[words] in error
    assert "--amend REASON" in error
    assert read_entries(tmp_path)[-1].registration == registration
    assert open_sweep(tmp_path) == made


def _registered_by_command(folder: Path) -> tuple[Reproduction, Registration]:
    """The folder as the command leaves it when it is killed before the first run."""
    from kilolayer.cli.command_line import parse
    from kilolayer.cli.registering import looks_from_options
    from kilolayer.cli.reproduction_request import request_from_options

    options = parse([*LINE, "--out", str(folder)])
    made = plan_reproduction(request_from_options(options, looks_from_options(options)), folder)
    registration = register(made, RULE, 80.0, threads=1, load=load)
    write_request(made)
    write_registration(made, registration)
    return made, registration


REFUSED = {
    ("--looks", "3,x"): "allowed: numbers of seeds, such as 3,6,9",
    ("--looks", "5,3"): "increasing",
    ("--seeds", "4"): "--looks ends at 8 seeds, and --seeds has 4",
    ("--margin", "-1"): "margin is -1",
    ("--fail-above", "120"): "--fail-above is 120",
    ("--test", "t"): "allowed: sign-flips, paired-t",
    ("--amend", "because"): "add --resume DIR",
    ("--rows", "original"): "no two of these cells are compared",
}


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_what_cannot_be_registered_is_one_line_and_nothing_is_written(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    assert main([*LINE, *words, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert REFUSED[words] in error
    assert not out.exists()


def test_a_rule_without_a_registration_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = [word for word in LINE if word != "--register"]
    assert main([*line, "--out", str(tmp_path / "sweep")]) == 2
    assert "add --register" in capsys.readouterr().err
    short = ("--recipe", "short", "--register", "--looks", "9", "--out", str(tmp_path / "sweep"))
    assert main(["reproduce", "p2-table-2", "--data", "digits", *short]) == 2
    assert "such as --fail-above 80" in capsys.readouterr().err


def test_the_command_in_the_report_registers_the_same(tmp_path: Path) -> None:
    made, registration = _registered_by_command(tmp_path / "first")
    words = whole_command(made.request, registration)
    for part in (
        "--register --looks 3,5,8",
        "--test paired-t --spending pocock",
        "--margin 0.5",
        "--fail-above 80",
    ):
        assert part in words


def test_a_dry_run_shows_the_registration_that_would_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    assert main([*LINE, "--dry-run", "--out", str(out)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert not out.exists()
    made, registration = _registered_by_command(tmp_path / "first")
    assert "To be registered, with the date of that moment:" in text
    for name, words in proposed_rows(registration):
        assert " ".join(f"{name} {words}".split()) in text
    assert main([*LINE, "--dry-run", "--json", "--out", str(out)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["runs"]) == len(made.runs)
    same = from_json(json.dumps(shown["registration"]), Registration)
    assert differences(same, registration) == ()
    assert main([*LINE[: LINE.index("--register")], "--dry-run", "--out", str(out)]) == 0
    assert "To be registered" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [(), ("--cores", "2"), ("--workers", "1"), ("--cores", "1", "--workers", "3")], ids=str
)
def test_the_registered_cores_are_those_that_the_engine_gives_each_run(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    from kilolayer.cli.command_line import parse
    from kilolayer.cli.reproduction_request import cores_of_a_run, engine_from_options

    options = parse(["reproduce", "p2-table-2", *words, "--out", str(tmp_path)])
    engine = engine_from_options(options)
    assert cores_of_a_run(options) == engine.threads  # type: ignore[attr-defined]
    engine.close()


def test_a_sweep_without_a_registration_says_so(tmp_path: Path) -> None:
    made = plan_reproduction(request(3), tmp_path)
    write_request(made)
    for spec in made.runs:
        end(_trial(spec), paired(spec), "digits")
    assert registered_result(made, table_results(made)) is None
    write_reproduction(made)
    assert "This sweep was not registered" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "findings.json").read_text())["registered"] is None
    check_runs(made)


def test_a_seed_gives_every_row_the_same_images_and_these_rows_the_same_initial_weights() -> None:
    """What "paired" means. A gate or a convolution on the shortcut draws weights too, and moves all."""
    scale = Scale("shallow", depths=8)
    cells = [
        cell
        for name in ("p2-table-1", "p2-table-2")
        for cell in find_table(name).cells
        if cell.plan and cell.plan.depth == 110
    ]
    experiments = [cell_experiment(cell, seed=3, scale=scale) for cell in cells]
    specs = [
        batch_spec(500, one.recipe.augmentation, one.seed, 1, range(64), torch.device("cpu"))
        for one in experiments
    ]
    for spec in specs[1:]:
        assert (
            list(map(torch.equal, _tensors(spec), _tensors(specs[0]))).count(True) == len(_tensors(spec)) > 2
        )
    weights = [
        [
            tensor
            for tensor in _initial_model(one, torch.device("cpu")).state_dict().values()
            if tensor.dim() > 1
        ]
        for one in experiments
    ]
    same = [len(one) == len(weights[0]) and all(map(torch.equal, one, weights[0])) for one in weights]
    moved = {cell.row for cell, is_same in zip(cells, same, strict=True) if not is_same}
    assert moved == {row for row in (cell.row for cell in cells) if "gating: b_g" in row or "conv" in row}


def _tensors(value: Any) -> list[torch.Tensor]:
    """The tensors in a value of nested dataclasses and tuples."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value if isinstance(value, tuple) else vars(value).values() if hasattr(value, "__dict__") else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def test_the_report_tells_the_spread_of_trainings_from_that_of_test_sets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows whose networks err on images of their own: gap and spread follow from the predictions."""
    made = plan_reproduction(request(3), tmp_path)
    write_request(made)
    labels = torch.arange(500) % 10
    for row, cell in enumerate(made.cells):
        for trial in cell.trials:
            wrong = torch.arange(500) % 50 <= row + (torch.arange(500) // 50 == trial.seed)
            kept = Predictions((labels + wrong) % 10, labels, torch.ones(500))
            end(trial, kept.error, "digits")
            write_predictions(trial.spec.path, kept, "these")
    (found,) = map(image_errors, table_results(made))
    assert {one.trainings for one in found.spreads.values()} == {3}
    pair = found.pairs["original (ResNet-110)", "BN after addition (ResNet-110)"]
    assert pair.difference == pytest.approx(2.0)
    assert pair.low < 2 < pair.high
    write_reproduction(made)
    assert "by where it comes from" in (tmp_path / "report.html").read_text()
    assert "image by image" in (tmp_path / "p2-table-2.md").read_text()
    content = json.loads((tmp_path / "findings.json").read_text())["tables"][0]["images"]
    assert set(content["spreads"]) == {f"{row} (ResNet-110)" for row in ROWS}

    first = made.cells[0].trials[0].spec.path
    write_predictions(first, Predictions(labels, labels, torch.ones(500)), "these")
    assert main(["report", str(tmp_path)]) == 2
    assert "is not of the run's result: its error is 0.0000 %" in capsys.readouterr().err
    (first / "predictions.safetensors").unlink()
    (found,) = map(image_errors, table_results(made))
    assert not found.pairs  # two shared seeds are no comparison
