"""kilolayer reproduce: what is asked for, what is refused, and what is shown of it."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from kilolayer.__main__ import main
from kilolayer.cli.command_line import parse
from kilolayer.cli.reproduce import ReproduceOptions
from kilolayer.cli.reproduction_request import (
    check_reproduction_data,
    engine_from_options,
    request_from_options,
)
from kilolayer.cli.sweeping import live_table_of, warn_of_cost
from kilolayer.data.config import Data
from kilolayer.errors import InputError
from kilolayer.papers import tables
from kilolayer.report.amounts import duration_text, flop_text
from kilolayer.report.live_table import LiveTable
from kilolayer.report.reproduction_report import (
    cell_command,
    print_findings,
    whole_command,
    write_reproduction,
)
from kilolayer.report.reproduction_text import print_reproduction
from kilolayer.sweep.reproduction import SIZES, Request, Size, open_sweep, plan_reproduction, save_request
from kilolayer.sweep.results import table_results
from kilolayer.system.terminal import truncate_middle
from kilolayer.training import choose_device, computation_options
from kilolayer.values import from_json, to_json
from test_reproduce_findings import FULL, SMOKE, as_in_the_paper, pretend

DIGITS = ("--scale", "smoke", "--data", "digits")
REFUSED = {
    "p2-table-9": "nearest: p2-table-",
    "p2-table-1 --rows orginal": "nearest: 'original'",
    "p2-table-2 --columns x": "allowed: a name or a part of one of 'ResNet-110', 'ResNet-164'",
    "p2-table-4 --rows Highway* --columns par*": "no cell is in both",
    "p2-table-1 --seeds 0": "allowed: a count from 1",
    "p2-table-1 --seeds 1,1": "different seeds",
    "p2-table-1 --seeds few": "allowed: a count from 1",
    "p2-table-1 --data /nowhere": "no such file or folder",
    "p2-table-1 --iterations 0": "allowed: a whole number from 1",
    "p2-table-1 --image-size 2": "image size 2",
    "p2-table-1 --depths x": "pairs PAPER=OURS",
    "p2-table-1 --depths 99=20": "from one of 18, 20",
    "p2-table-1 --depths 110=0": "a depth from 1",
    "p2-table-1 --batch-size 9999": "larger than the training set",
    "p2-table-1 --subset 9999": "more than the",
    "p2-table-1 --evaluate-every 0": "evaluate_every",
    "p2-table-1 --workers 0": "--workers is 0",
    "p2-table-1 --cores 0": "--cores is 0",
    "p2-table-1 --address 127.0.0.1:1": "add --engine ray",
    "p2-table-2 --select": "the paper searched b_g for none",
    "p1-table-2 --data-folder d --engine ray --scale full": "name the folder in which you have ImageNet",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be_used_is_one_line_and_nothing_is_written(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = line.split()
    given = [] if "--data-folder" in words else [*DIGITS[:2], *([] if "--data" in words else DIGITS[2:])]
    out = tmp_path / "sweep"
    assert main(["reproduce", *words, *given, "--out", str(out)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert REFUSED[line] in shown.err
    assert not out.exists()


def test_ray_that_is_missing_or_does_not_answer_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = ["p2-table-1", *DIGITS, "--engine", "ray", "--out", str(tmp_path / "sweep")]
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["reproduce", *out]) == 2
    assert "pip install 'kilolayer[cluster]'" in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_a_folder_with_other_files_or_another_sweep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="other files"):
        save_request(plan_reproduction(SMOKE, tmp_path))
    save_request(plan_reproduction(SMOKE, tmp_path / "sweep"))
    with pytest.raises(InputError, match="another sweep"):
        save_request(plan_reproduction(replace(SMOKE, recipe="short"), tmp_path / "sweep"))
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["sweep.json"]


def test_a_kept_sweep_is_opened_as_it_was_and_may_grow_by_seeds(tmp_path: Path) -> None:
    made = plan_reproduction(replace(SMOKE, seeds=(0,)), tmp_path)
    save_request(made)
    assert open_sweep(tmp_path) == made
    save_request(plan_reproduction(SMOKE, tmp_path))
    assert open_sweep(tmp_path).request == SMOKE
    with pytest.raises(InputError, match="another sweep"):
        save_request(made)


def test_no_sweep_and_a_damaged_one_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--resume", str(tmp_path)]) == 2
    assert "holds no sweep" in capsys.readouterr().err
    (tmp_path / "sweep.json").write_text("{")
    assert main(["reproduce", "--resume", str(tmp_path)]) == 2
    assert "sweep.json" in capsys.readouterr().err


def test_resume_takes_no_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_request(plan_reproduction(SMOKE, tmp_path))
    assert main(["reproduce", "p2-table-1", "--resume", str(tmp_path), "--seeds", "2"]) == 2
    assert "leave out TABLE, --seeds" in capsys.readouterr().err


def test_a_whole_name_means_itself_and_a_part_all_that_have_it(tmp_path: Path) -> None:
    def rows(*patterns: str) -> set[str]:
        asked = replace(SMOKE, tables=("p2-table-3",), rows=patterns)
        return {one.cell.row for one in plan_reproduction(asked, tmp_path).cells}

    assert rows("CIFAR-10, ResNet-110") == {"CIFAR-10, ResNet-110"}
    assert len(rows("ResNet-110")) == 2
    assert len(rows("CIFAR-100*")) == 2


def test_every_run_has_a_folder_of_its_own_and_seeds_come_in_turn(tmp_path: Path) -> None:
    made = plan_reproduction(replace(SMOKE, tables=("p2-table-1", "p2-table-2")), tmp_path)
    assert len({one.path for one in made.runs}) == len(made.runs)
    assert len({one.experiment for one in made.runs}) == len(made.runs)
    seeds = [one.experiment.seed for one in made.runs]
    assert seeds == sorted(seeds)


@pytest.mark.parametrize("one", tables(), ids=lambda one: one.name)
def test_the_command_of_every_cell_gives_that_cell_and_its_runs(one: object, tmp_path: Path) -> None:
    name = one.name  # type: ignore[attr-defined]
    size = replace(SIZES["smoke"], name="smoke, changed", depths=((110, 8), (1001, 11)), iterations=4)
    asked = replace(SMOKE, tables=(name,), seeds=(4,), size=size, recipe="short")
    for made in plan_reproduction(asked, tmp_path).cells:
        if made.trials:
            words = shlex.split(cell_command(asked, name, made.cell.row, made.cell.column))
            again = plan_reproduction(request_from_options(parse(words[1:])), tmp_path)
            assert [cell.cell.row for cell in again.cells] == [made.cell.row]
            assert again.cells[0].trials == made.trials


def test_the_command_of_a_request_gives_the_request() -> None:
    size = replace(SIZES["proxy"], name="proxy, changed", depths=((110, 20),), subset=500, evaluate_every=2)
    asked = replace(
        SMOKE, rows=("original", "b_g*"), seeds=(0, 3), size=size, recipe="short", settings="first"
    )
    for one in (asked, replace(asked, data=None, size=SIZES["full"], seeds=(0, 1), recipe=None)):
        assert request_from_options(parse(shlex.split(whole_command(one))[1:])) == one


def test_runs_are_computed_as_train_chooses_and_as_the_request_keeps() -> None:
    here = computation_options(choose_device("cpu"))
    asked = request_from_options(ReproduceOptions(tables=("p2-table-1",), device="cpu"))
    assert asked.computing == here
    made = plan_reproduction(asked, Path("unused")).runs[0].experiment
    assert {name: getattr(made, name) for name in here} == here
    plain = request_from_options(
        ReproduceOptions(tables=("p2-table-1",), device="cpu", precision="bf16", kernels="plain")
    )
    assert (plain.kernels, plain.evaluation, plain.memory_format) == ("plain", "plain", "channels_last")
    # The command that repeats a sweep names its kernels; one stored before there were any has plain ones.
    assert request_from_options(parse(shlex.split(whole_command(plain))[1:])) == plain
    written = json.loads(to_json(plain))
    del written["kernels"], written["evaluation"]
    assert from_json(json.dumps(written), Request) == plain


def test_a_cluster_s_gpus_are_not_asked_for_here() -> None:
    asked = request_from_options(ReproduceOptions(tables=("p2-table-1",), engine="ray", device="cuda"))
    assert asked.computing == {
        "precision": "bf16", "memory_format": "channels_last", "kernels": "plain", "evaluation": "plain",
    }  # fmt: skip


def test_a_folder_alone_holds_the_tables_own_data(tmp_path: Path) -> None:
    options = ReproduceOptions(tables=("p2-table-1",), data_folder=str(tmp_path), device="cpu")
    assert request_from_options(options).data == Data("cifar10", folder=str(tmp_path))
    with pytest.raises(InputError, match="cifar10, cifar100"):
        request_from_options(replace(options, tables=("p2-table-3",)))


def test_missing_data_is_noticed_before_the_first_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cifar10"):
        check_reproduction_data(
            plan_reproduction(replace(FULL, data=Data("cifar10", folder=str(tmp_path))), tmp_path), False
        )


def test_cores_are_shared_among_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    options = ReproduceOptions(device="cpu")
    for changes, expected in (
        ({}, (8, 1)),
        ({"workers": 3}, (3, 2)),
        ({"cores": 2}, (4, 2)),
        ({"cores": 2, "workers": 1}, (1, 2)),
        ({"workers": 20}, (20, 1)),
    ):
        pool = engine_from_options(replace(options, **changes))  # type: ignore[arg-type]
        assert (pool.workers, pool.threads) == expected  # type: ignore[attr-defined]


def test_the_list_has_a_line_for_every_table_and_fits_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kilolayer.system.terminal.terminal_size", lambda stream: (80, 25))
    assert main(["reproduce"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    for one in tables():
        assert sum(line.strip().startswith(f"{one.name} ") for line in lines) == 1


def test_the_list_as_json_covers_every_cell(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--list", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [fact["name"] for fact in facts] == [one.name for one in tables()]
    assert sum(fact["cells"] + fact["beside"] for fact in facts) == sum(len(one.cells) for one in tables())
    assert all(
        fact["cells"] == fact["buildable"] + fact["literature_only"] + fact["not_here"] for fact in facts
    )


@pytest.mark.parametrize("flag", ["--out", "--resume"])
def test_the_list_of_a_folder_says_what_is_done(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = {0: 9.25, 1: "not run", 2: float("nan")}
    asked = replace(SMOKE, rows=("original",))
    pretend(asked, tmp_path, lambda row, column, trial: figures[trial.seed])
    assert main(["reproduce", "--list", "--json", flag, str(tmp_path)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["status"] for row in rows] == ["9.25 %", "not run", "diverged"]
    assert main(["reproduce", "--list", flag, str(tmp_path)]) == 0
    assert "3 runs, 2 of them finished" in capsys.readouterr().out


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "p2-table-1", *DIGITS, "--dry-run", "--out", str(tmp_path / "sweep")]) == 0
    assert "80 runs, 0 of them finished" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_full_size_without_a_gpu_is_warned_of_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    warn_of_cost(plan_reproduction(FULL, tmp_path))
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "EFLOP" in said or "PFLOP" in said
    assert "--scale proxy" in said
    warn_of_cost(plan_reproduction(SMOKE, tmp_path))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    warn_of_cost(plan_reproduction(FULL, tmp_path))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "names", [("p2-table-1", "p2-table-2"), ("p2-table-3",), ("p2-table-4", "px-table-4")]
)
@pytest.mark.parametrize("size", [SIZES["smoke"], SIZES["full"]])
def test_findings_fit_80_columns(
    names: tuple[str, ...],
    size: Size,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = replace(SMOKE, tables=names, size=size, data=None if size.name == "full" else SMOKE.data)
    made = pretend(asked, tmp_path, as_in_the_paper)
    monkeypatch.setattr("kilolayer.system.terminal.terminal_size", lambda stream: (80, 25))
    capsys.readouterr()
    print_reproduction(table_results(made))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("proxy" in line for line in lines) == (len(names) if size.name == "smoke" else 0)


def test_json_on_the_terminal_is_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = pretend(SMOKE, tmp_path, as_in_the_paper)
    print_findings(made, write_reproduction(made), True)
    assert capsys.readouterr().out.strip() == (tmp_path / "findings.json").read_text()


def test_the_board_names_runs_by_row_column_and_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = plan_reproduction(
        replace(SMOKE, tables=("p2-table-2",), rows=("original",), seeds=(0, 3)), tmp_path
    )
    cells = {(one.cell.row, one.cell.column): one.distinct for one in made.cells}
    console = Console(width=80, file=io.StringIO())
    board = LiveTable("title", ["original"], ["ResNet-110", "ResNet-164"], cells, console)
    with board:
        pretend(replace(made.request), tmp_path, as_in_the_paper)
    said = capsys.readouterr().out
    assert "[4/4]" in said
    assert "original | ResNet-164 | seed 3: 6.81 %" in said


def test_the_board_on_a_terminal_fits_it(tmp_path: Path) -> None:
    made = pretend(replace(SMOKE, seeds=(0, 1)), tmp_path, as_in_the_paper)
    cells = {(one.cell.row, one.cell.column): one.distinct for one in made.cells}
    for columns in (40, 80):
        console = Console(width=columns, record=True, force_terminal=True, file=io.StringIO())
        board = LiveTable("title", [one.cell.row for one in made.cells], ["error"], cells, console)
        console.print(board._shown())
        said = console.export_text()
        assert "6.56 % (2/2)" in said
        assert "32 of 32 runs finished" in said
        assert max(map(len, said.splitlines())) <= columns


def test_two_tables_on_the_board_have_their_own_columns(tmp_path: Path) -> None:
    made = plan_reproduction(replace(SMOKE, tables=("p2-table-1", "p2-table-2")), tmp_path)
    console = Console(width=80, record=True, force_terminal=True, file=io.StringIO())
    console.print(live_table_of(made, console)._shown())
    said = console.export_text()
    assert "\np2-table-1: exclusive gating: b_g = −6 " in said
    assert "\np2-table-2: original " in said
    assert "–" not in said


def test_long_names_are_cut_in_the_middle_and_at_words() -> None:
    name = "constant scaling: 0.5 on the shortcut, 0.5 on F (frozen gating)"
    for most in range(16, 70):
        cut = truncate_middle(name, most)
        assert len(cut) <= most
        assert cut == name or "…" in cut
    assert truncate_middle(name, 36).endswith("on F (frozen gating)")
    assert "…5" not in truncate_middle(name, 41)


def test_figures_as_words() -> None:
    assert [duration_text(s) for s in (40, 600, 9000, 1e6, 1e9)] == [
        "40 s",
        "10 min",
        "2.5 h",
        "12 days",
        "32 years",
    ]
    assert [flop_text(f) for f in (0, 2e9, 3e15, 1.5e21)] == ["–", "2 GFLOP", "3 PFLOP", "1.5 ZFLOP"]


@pytest.mark.slow
def test_a_sweep_of_its_own_shows_lines_and_a_report(tmp_path: Path) -> None:
    words = [
        "p2-table-1", "--rows", "original", "dropout", "--seeds", "1", *DIGITS, "--recipe", "short",
        "--depths", "110=8", "--iterations", "4", "--subset", "64", "--out", str(tmp_path / "sweep"),
    ]  # fmt: skip
    program = [sys.executable, "-m", "kilolayer", "reproduce"]
    done = subprocess.run([*program, *words], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "dropout shortcut | seed 0: " in done.stdout
    # On a narrow terminal the sentence goes over several lines.
    assert "digits instead of cifar10" in " ".join(done.stdout.split())
    assert (tmp_path / "sweep" / "report.html").is_file()
    again = subprocess.run(
        [*program, "--resume", str(tmp_path / "sweep"), "--json"], capture_output=True, text=True, timeout=200
    )
    assert json.loads(again.stdout)["tables"][0]["table"] == "p2-table-1"


@pytest.mark.slow
def test_the_search_for_the_bias(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sweep"
    words = [
        "p2-table-1", "--rows", "b_g = −6", "--select", "--seeds", "2", *DIGITS, "--recipe", "short",
        "--depths", "110=8", "--iterations", "4", "--subset", "64", "--device", "cpu", "--out", str(out),
    ]  # fmt: skip
    assert main(["reproduce", *words]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the paper's choice: −6" in said
    found = json.loads((out / "selection" / "selection.json").read_text())
    (search,) = found["searches"]
    assert [one["b_g"] for one in search["biases"]] == [-float(b) for b in range(11)]
    assert all(len(one["validation_errors"]) == 2 for one in search["biases"])
    least = min(one["median"] for one in search["biases"])
    assert next(one["median"] for one in search["biases"] if one["b_g"] == search["chosen"]) == least
    assert search["held_out"] == 6
    assert "--select" in found["command"]
    before = {path: path.read_bytes() for path in out.rglob("result.json")}
    assert len(before) == 22
    assert main(["reproduce", "--resume", str(out), "--select", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["searches"] == found["searches"]
    assert {path: path.read_bytes() for path in out.rglob("result.json")} == before
