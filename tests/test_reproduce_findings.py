"""What a reproduction says of its runs: honest about proxies, about few runs, and about what it compares."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kilolayer.data.config import Data
from kilolayer.report import comparison_tables, reproduction_tables
from kilolayer.report.demo_finding import chance_error
from kilolayer.sweep.bias_search import bias_searches, search_result
from kilolayer.sweep.comparable import repeated_networks
from kilolayer.sweep.reproduction import (
    SIZES,
    Reproduction,
    Request,
    Trial,
    open_sweep,
    plan_reproduction,
    run_folder,
    run_name,
    save_request,
)
from kilolayer.sweep.results import PAPER_IMAGES, TableResult, table_results
from kilolayer.sweep.results_json import results_as_json
from kilolayer.values import to_json

Figure = Callable[[str, str, Trial], float | str]
START = {
    "kilolayer": "0.0", "python": "3.11", "torch": "2.13", "numpy": "2", "system": "Linux", "processor": "P",
    "cores": 2, "threads": 1, "device": "cpu", "gpu": None, "processes": 1,
    "command": "kilolayer reproduce", "date": "2026-01-01T00:00:00+00:00",
}  # fmt: skip
SMOKE = Request(("p2-table-1",), seeds=(0, 1, 2), data=Data("digits"), size=SIZES["smoke"])
FULL = replace(SMOKE, data=None, size=SIZES["full"])


def pretend(request: Request, folder: Path, figure: Figure, data: str = "") -> Reproduction:
    """A sweep whose runs ended with these errors, or with these reasons of failure, without training."""
    made = plan_reproduction(request, folder)
    save_request(made)
    for one in made.cells:
        for trial in one.trials:
            real = PAPER_IMAGES.get(one.cell.plans[trial.setting].data, "my pictures")
            end(trial, figure(one.cell.row, one.cell.column, trial), data or real)
    return made


def end(trial: Trial, value: float | str, data: str) -> None:
    path = trial.spec.path
    path.mkdir(parents=True, exist_ok=True)
    if value == "not run":
        return
    (path / "config.json").write_text(to_json(trial.spec.experiment))
    (path / "environment.json").write_text(json.dumps([START]))
    rows = [
        {"iteration": i, "epoch": i, "train_loss": 1.0, "learning_rate": 0.1, "test_error": 50.0}
        for i in (1, 2)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "result.json").write_text(json.dumps(result(value, data)))


def result(value: float | str, data: str) -> dict[str, Any]:
    if isinstance(value, str):
        return {"status": "failed", "reason": value}
    if math.isnan(value):
        return {"status": "diverged", "reason": "the training loss is not finite"}
    return {"status": "done", "data": data, "test_error": value, "test_top5_error": value / 2}


def as_in_the_paper(row: str, column: str, trial: Trial) -> float:
    """The original and the full pre-activation unit as P2 has them, everything else worse."""
    known = {"original": 6.61, "full pre-activation": 6.37, "dropout shortcut": 30.0}
    return known.get(row, 12.0) + 0.1 * (trial.seed - 1)


def only(found: tuple[TableResult, ...]) -> TableResult:
    (one,) = found
    return one


def words(one: TableResult) -> dict[str, str]:
    return {finding.cell.row: finding.verdict.word for finding in one.cells}


@pytest.mark.parametrize("size", [SIZES["smoke"], SIZES["proxy"], replace(SIZES["full"], iterations=63_999)])
def test_a_proxy_never_agrees_nor_differs(size: Any, tmp_path: Path) -> None:
    request = replace(FULL, size=size)
    one = only(table_results(pretend(request, tmp_path, as_in_the_paper)))
    assert set(words(one).values()) == {"no figure"}
    assert one.proxy.startswith("proxy: ")
    assert not reproduction_tables.verdict_lines(one)


def test_at_full_size_a_figure_is_judged(tmp_path: Path) -> None:
    found = words(only(table_results(pretend(FULL, tmp_path, as_in_the_paper))))
    assert found["original"] == "agrees"
    assert found["dropout shortcut"] == "undecided"  # three runs that fail are too few for a sign test
    assert found["constant scaling: 0 on the shortcut, 1 on F (a plain net)"] == "undecided"
    assert found["1×1 conv shortcut"] == "undecided"  # 0.22 from the paper's, ± 0.35
    five = pretend(replace(FULL, seeds=tuple(range(5))), tmp_path / "five", as_in_the_paper)
    found = words(only(table_results(five)))
    assert found["dropout shortcut"] == "agrees"
    assert found["constant scaling: 0 on the shortcut, 1 on F (a plain net)"] == "differs"


def test_another_recipe_at_full_size_is_not_held_against_the_paper(tmp_path: Path) -> None:
    one = only(table_results(pretend(replace(FULL, recipe="short"), tmp_path / "short", as_in_the_paper)))
    assert set(words(one).values()) == {"no figure"}
    assert one.proxy == "proxy: recipe short instead of paper"
    same = only(table_results(pretend(replace(FULL, recipe="paper"), tmp_path / "paper", as_in_the_paper)))
    assert words(same)["original"] == "agrees"


def test_other_images_in_a_folder_make_a_proxy(tmp_path: Path) -> None:
    request = replace(FULL, data=Data("somewhere"))
    made = pretend(request, tmp_path, as_in_the_paper, data="CIFAR-10 (JPEG re-encode)")
    one = only(table_results(made))
    assert set(words(one).values()) == {"no figure"}
    assert "CIFAR-10 (JPEG re-encode) instead of CIFAR-10" in one.proxy


def test_few_runs_and_none_are_said(tmp_path: Path) -> None:
    two = pretend(replace(FULL, seeds=(0, 1)), tmp_path / "two", as_in_the_paper)
    none = pretend(FULL, tmp_path / "none", lambda *cell: "not run")
    assert set(words(only(table_results(two))).values()) == {"not enough runs"}
    assert set(words(only(table_results(none))).values()) == {"not run"}


def test_what_kilolayer_does_otherwise_than_the_paper_is_said_and_not_judged(tmp_path: Path) -> None:
    request = replace(FULL, tables=("p1-table-2",), data=Data("imagenet"))
    one = only(table_results(pretend(request, tmp_path, lambda *cell: 27.9, data="my pictures")))
    assert set(words(one).values()) == {"no figure"}
    assert not one.proxy
    assert "ten crops" in reproduction_tables.verdict_lines(one)[0]


def test_of_several_settings_the_best_counts_once_all_have_ended(tmp_path: Path) -> None:
    def figure(row: str, column: str, trial: Trial) -> float | str:
        return "not run" if trial.seed == 2 and trial.setting == 5 else 30.0 - trial.setting

    made = pretend(replace(SMOKE, rows=("exclusive gating: b_g = 0 … −5",)), tmp_path, figure)
    (finding,) = only(table_results(made)).cells
    assert finding.by_seed == {0: 25.0, 1: 25.0}
    (table,) = reproduction_tables.figure_tables(only(table_results(made)))
    assert "the best of its 6 settings" in table.note


def test_a_setting_that_was_left_out_is_said(tmp_path: Path) -> None:
    request = replace(SMOKE, rows=("exclusive gating: b_g = 0 … −5",), settings="first")
    (table,) = reproduction_tables.figure_tables(
        only(table_results(pretend(request, tmp_path, lambda *cell: 9.0)))
    )
    assert "only b_g = 0 of its 6 settings was run" in table.note


def test_a_diverged_run_counts_as_guessing_and_a_run_without_memory_not_at_all(tmp_path: Path) -> None:
    def figure(row: str, column: str, trial: Trial) -> float | str:
        return (math.nan, "out of memory: 9 GiB", 10.0)[trial.seed]

    made = pretend(replace(SMOKE, rows=("original",)), tmp_path, figure)
    one = only(table_results(made))
    (finding,) = one.cells
    assert finding.by_seed == {0: None, 2: 10.0}
    assert finding.summary is not None
    assert (finding.summary.n, finding.summary.diverged, finding.summary.mean) == (2, 1, 50.0)
    note = reproduction_tables.figure_tables(one)[0].note
    assert "1 run(s) failed and are left out: out of memory" in note
    assert "counts as guessing, 90 % wrong" in note


@pytest.mark.parametrize(("column", "guessing"), [("CIFAR-10", 90.0), ("CIFAR-100", 99.0)])
def test_guessing_is_what_the_number_of_classes_makes_it(
    column: str, guessing: float, tmp_path: Path
) -> None:
    request = Request(
        ("p2-table-4",), columns=(column,), rows=("pre-activation ResNet-164",), seeds=(0, 1, 2)
    )
    made = pretend(request, tmp_path, lambda row, column, trial: (math.nan, math.nan, 24.0)[trial.seed])
    (finding,) = only(table_results(made)).cells
    assert finding.chance == pytest.approx(guessing, abs=1e-9)
    assert finding.summary is not None
    assert finding.summary.median == pytest.approx(guessing, abs=1e-9)
    experiment = made.cells[0].trials[0].spec.experiment
    assert chance_error(experiment) == pytest.approx(guessing, abs=1e-9)


@pytest.mark.parametrize(
    ("errors", "chosen"),
    [
        ({-3.0: 20.0}, -3.0),
        ({0.0: 40.0, -10.0: 40.0}, -10.0),  # a diverged run is worse than any that learns
        ({-2.0: 30.0, -7.0: 30.0}, -2.0),  # of equals, the nearest to 0
    ],
)
def test_the_bias_of_the_least_error_is_chosen(
    errors: dict[float, float], chosen: float, tmp_path: Path
) -> None:
    request = replace(SMOKE, rows=("exclusive gating: b_g = −6",), seeds=(0, 1))
    (search,) = bias_searches(plan_reproduction(request, tmp_path))
    for bias, runs in search.runs.items():
        for one in runs:
            value = math.nan if bias == 0.0 and chosen == -10.0 else errors.get(bias, 60.0)
            end_run(one.path, value)
    found = search_result(search)
    assert (found["chosen"], found["the_papers"]) == (chosen, -6.0)


def test_two_rows_of_the_same_runs_are_one_network(tmp_path: Path) -> None:
    made = plan_reproduction(replace(SMOKE, tables=("p1-table-6",)), tmp_path)
    runs = next(item for item in made.cells if item.trials)
    assert repeated_networks({"first": runs, "second": runs}, "second") == {"first": "second"}


def test_a_diverged_run_of_a_search_counts_as_guessing_among_its_classes(tmp_path: Path) -> None:
    request = replace(SMOKE, rows=("exclusive gating: b_g = −6",), seeds=(0,))
    (search,) = bias_searches(plan_reproduction(request, tmp_path))
    of_hundred = {
        bias: tuple(
            replace(
                run,
                experiment=replace(run.experiment, network=replace(run.experiment.network, num_classes=100)),
            )
            for run in runs
        )
        for bias, runs in search.runs.items()
    }
    for bias, (run,) in of_hundred.items():
        end_run(run.path, math.nan if bias == -6.0 else 95.0)
    found = search_result(replace(search, runs=of_hundred))
    assert next(row["median"] for row in found["biases"] if row["b_g"] == -6.0) == 99.0
    assert found["chosen"] != -6.0


def end_run(path: Path, value: float) -> None:
    path.mkdir(parents=True)
    row = {"iteration": 8, "epoch": 1, "train_loss": 1.0, "learning_rate": 0.1, "validation_error": value}
    (path / "metrics.jsonl").write_text("" if math.isnan(value) else json.dumps(row) + "\n")
    (path / "result.json").write_text(json.dumps(result(value, "digits")))


def test_rows_that_a_scale_makes_one_network_are_flagged_and_not_compared(tmp_path: Path) -> None:
    made = pretend(replace(SMOKE, tables=("p1-table-6",)), tmp_path, lambda *cell: 9.0)
    one = only(table_results(made))
    flagged = {f.cell.row: one.same_as(f) for f in one.cells if f.cell.column == "error"}
    assert flagged["ResNet-110"] == "ResNet-20"
    assert flagged["ResNet-1202"] == "ResNet-32"
    assert flagged["ResNet-44"] == flagged["plain-110"] == ""
    (compared,) = one.comparisons.values()
    assert not {"ResNet-110", "ResNet-1202"} & set(compared.ranking.rows)
    assert "“ResNet-110” is the same network as “ResNet-20”" in reproduction_tables.figure_tables(one)[0].note


def test_without_a_scale_no_two_rows_are_one_network(tmp_path: Path) -> None:
    names = ("p2-table-1", "p2-table-2", "p2-table-3", "p1-table-6")
    made = plan_reproduction(replace(FULL, tables=names, seeds=(0,)), tmp_path)
    assert [one.same for one in table_results(made)] == [{}] * 4


def test_a_table_of_two_columns_is_compared_across_its_baseline_column(tmp_path: Path) -> None:
    request = replace(SMOKE, tables=("p2-table-3",), rows=("CIFAR-10,*",), seeds=tuple(range(7)))

    def better(row: str, column: str, trial: Trial) -> float:
        return (9.0 if column == "original" else 5.0) + 0.1 * trial.seed

    one = only(table_results(pretend(request, tmp_path, better)))
    assert {pair.word for compared in one.comparisons.values() for pair in compared.pairs} == {
        "same direction"
    }
    (table, *_) = comparison_tables.gap_tables(one)
    assert table.rows[0][0] == "full pre-activation"
    assert table.rows[0][-1] == "same direction"


def test_rows_with_too_few_runs_make_no_table_of_dashes(tmp_path: Path) -> None:
    one = only(table_results(pretend(replace(SMOKE, seeds=(0,)), tmp_path, as_in_the_paper)))
    assert comparison_tables.gap_tables(one) == ()
    assert comparison_tables.ranking_sentences(one) == ["Rows are compared when they have 3 runs each."]


def test_the_findings_explain_themselves(tmp_path: Path) -> None:
    made = pretend(
        replace(SMOKE, seeds=(0, 1)), tmp_path, lambda row, column, trial: (math.nan, 9.0)[trial.seed]
    )
    text = results_as_json(made, table_results(made), "kilolayer reproduce p2-table-1")
    assert "NaN" not in text
    assert "Infinity" not in text
    value = json.loads(text)
    assert value["command"] == "kilolayer reproduce p2-table-1"
    assert value["scale"].startswith("proxy")
    assert value["request"]["seeds"] == [0, 1]
    assert value["measured"]["environments"][0]["torch"] == "2.13"
    assert value["measured"]["first"] == START["date"]
    (table,) = value["tables"]
    assert len(table["cells"]) == 11
    assert [run["result"]["status"] for run in table["cells"][0]["runs"]] == ["diverged", "done"]
    assert value["recipes"]


def test_a_run_that_tables_share_is_made_once_and_stands_in_both(tmp_path: Path) -> None:
    request = replace(
        SMOKE, tables=("p2-table-1", "p2-table-2"), rows=("original",), columns=("error", "ResNet-110")
    )
    made = pretend(request, tmp_path, as_in_the_paper)
    first, second = (one.cells[0] for one in table_results(made))
    assert len(made.runs) == 3
    assert first.keys == second.keys
    assert first.by_seed == second.by_seed


def test_the_runs_of_an_older_release_are_those_of_the_sweep(tmp_path: Path) -> None:
    """It named them by fewer words, and described them in fewer."""
    made = pretend(replace(SMOKE, rows=("original",)), tmp_path, as_in_the_paper)
    for run in made.runs:
        run.path.joinpath("config.json").write_text(
            to_json(run.experiment).replace('"skip_damaged": false,', "")
        )
        run.path.rename(run.path.with_name(f"d{run.experiment.network.depth}-0ld-s{run.experiment.seed}"))
    (found,) = table_results(open_sweep(str(tmp_path)))
    assert [one.num_finished for one in found.cells] == [3]
    other = replace(made.runs[0].experiment, precision="bf16")
    assert run_folder(tmp_path / "runs", other).name == run_name(other)


def test_another_laboratory_s_figures_stand_beside_the_paper_s(tmp_path: Path) -> None:
    made = pretend(replace(SMOKE, tables=("p2-table-2",)), tmp_path, as_in_the_paper)
    one = only(table_results(made))
    shown = reproduction_tables.figure_tables(one)
    assert shown[0].header[1:4] == ("paper", "other laboratories", "runs")
    rows = {row[0]: row[1:3] for row in shown[0].rows}
    assert rows["full pre-activation"] == ("6.37", "6.06, 6.150, 6.189")
    assert rows["original"] == ("6.61", "–")
    assert "ReScience (Muellerklein), reviewer 2" in shown[0].note
    wide = reproduction_tables.wide_table(one)
    assert [
        row[wide.header.index("other laboratories")] for row in wide.rows if row[2] == "full pre-activation"
    ]
    value = json.loads(results_as_json(made, (one,), ""))["tables"][0]["cells"]
    full = next(
        cell for cell in value if (cell["row"], cell["column"]) == ("full pre-activation", "ResNet-164")
    )
    assert [each["value"] for each in full["replications"]] == [5.64, 5.18, 5.82]
    alone = only(table_results(pretend(SMOKE, tmp_path / "alone", as_in_the_paper)))
    assert "other laboratories" not in reproduction_tables.figure_tables(alone)[0].header


def test_a_verdict_names_every_laboratory_s_figure(tmp_path: Path) -> None:
    request = replace(FULL, tables=("p2-table-2",), rows=("full pre-activation",), seeds=tuple(range(6)))
    one = only(table_results(pretend(request, tmp_path, lambda *cell: 6.37 + 0.001 * cell[2].seed)))
    text = {finding.cell.column: finding.verdict.text for finding in one.cells}["ResNet-110"]
    assert "ReScience (Muellerklein), article, 6.06: " in text
    assert "ReScience (Muellerklein), reviewer 2, 6.189: " in text


def test_a_plan_that_is_not_the_paper_s_is_named_beside_its_figures(tmp_path: Path) -> None:
    request = replace(SMOKE, tables=("px-table-7",), seeds=(0,))
    one = only(table_results(pretend(request, tmp_path / "px", lambda *cell: 9.0)))
    note = reproduction_tables.figure_tables(one)[0].note
    assert "“ResNeXt-29 (8×64d)”, “ResNeXt-29 (16×64d)”: as the authors' README has it" in note
    assert "“ResNeXt-29 (8×64d), released code”" in note
    rows = {row[0]: row[1:3] for row in reproduction_tables.figure_tables(one)[0].rows}
    assert rows["Wide ResNet"] == ("4.17", "cited")
    warmed = only(
        table_results(pretend(replace(request, tables=("p1-table-6",)), tmp_path / "p1", lambda *c: 9.0))
    )
    shown = reproduction_tables.figure_tables(warmed)[0]
    assert "“ResNet-1202”, “plain-110”: departs: P1 states the warm-up" in shown.note
    assert "“ResNet-56”" not in shown.note.partition("departs")[2]
    only_5k = only(
        table_results(plan_reproduction(replace(request, tables=("px-table-6",)), tmp_path / "5k"))
    )
    assert {row[2] for row in reproduction_tables.figure_tables(only_5k)[0].rows} == {"not here"}


def test_another_recipe_at_full_size_is_named_and_not_held_against_the_paper(tmp_path: Path) -> None:
    request = replace(FULL, recipe="released", rows=("original",), seeds=(0, 1, 2))
    one = only(table_results(pretend(request, tmp_path, lambda *cell: 6.6)))
    assert one.proxy == "proxy: recipe released instead of paper"
    assert {finding.verdict.word for finding in one.cells} == {"no figure"}


def test_rows_can_be_chosen_beside_the_released_code_s(tmp_path: Path) -> None:
    request = replace(SMOKE, tables=("px-table-7",), rows=("ResNeXt-29 (8×64d)",), seeds=(0,))
    assert {run.cell.row for run in plan_reproduction(request, tmp_path).cells} == {"ResNeXt-29 (8×64d)"}
