"""kilolayer reproduce TABLE --row NAME=FILE.py:UNIT: a row of one's own beside the paper's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kilolayer.__main__ import main
from kilolayer.errors import InputError
from kilolayer.papers import find_table
from kilolayer.report import comparison_tables, reproduction_tables
from kilolayer.report.reproduction_finding import finding_sentence
from kilolayer.report.reproduction_report import cell_command, whole_command
from kilolayer.sweep.reproduction import OwnRow, Reproduction, Request, Trial, open_sweep
from kilolayer.sweep.results import TableResult, table_results
from kilolayer.sweep.results_json import results_as_json
from kilolayer.units import Bottleneck, extensions
from kilolayer.values import from_json, to_json
from test_reproduce_findings import FULL, SMOKE, pretend

DIGITS = ("--scale", "smoke", "--data", "digits")
MINE = """
from dataclasses import dataclass

from kilolayer.units import Arrangement, Basic, Bottleneck, Projection, Shortcut, Unit
from kilolayer.units.ops import ScaleOp


@dataclass(frozen=True)
class Doubled(Shortcut):
    def layers(self, channels):
        return (ScaleOp(2.0),)


RELU_FIRST = Arrangement(before=("ReLU", "BN"))
DROPPED = Basic(dropout=0.3)
WHOLE = Unit(Bottleneck(), h=Doubled(), downsample=Projection())
"""


@pytest.fixture(autouse=True)
def nothing_loaded() -> Iterator[None]:
    """A test begins as a program does: without the files that others named."""
    forget()
    yield
    forget()


def forget() -> None:
    for name in list(extensions._loaded_origins):
        del extensions._loaded_origins[name], sys.modules[name]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    return file


def with_row(file: Path, unit: str = "Doubled", request: Request = SMOKE) -> Request:
    field, value = extensions.load_part(f"{file}:{unit}")
    row = OwnRow("mine", f"{file}:{unit}", **{field: value})
    return Request(**{**vars(request), "own_rows": (row,)})


def figure(row: str, column: str, trial: Trial) -> float:
    return (3.0 if row == "mine" else 6.61) + 0.1 * trial.seed


def found_in(made: Reproduction) -> TableResult:
    (one,) = table_results(made)
    return one


@pytest.mark.parametrize(
    ("unit", "part"), [("Doubled", "h"), ("RELU_FIRST", "arrangement"), ("DROPPED", "branch")]
)
def test_a_part_of_ones_own_takes_its_place_in_the_table_s_network(mine: Path, unit: str, part: str) -> None:
    request = with_row(mine, unit)
    (row,) = request.own_rows
    assert set(row.changes) == {part}
    cell = find_table("p2-table-1").with_own_row("mine", row.changes).cell("mine", "error")
    assert (cell.in_paper, cell.reported, cell.failed) == (False, None, False)
    assert cell.plan is not None
    assert getattr(cell.plan.unit, part) == row.changes[part]
    assert cell.plan.depth == 110


def test_counts_and_costs_are_computed(mine: Path) -> None:
    (row,) = with_row(mine, "WHOLE").own_rows
    table = find_table("px-table-1").with_own_row("mine", row.changes)
    plan = table.cell("mine", "parameters").plan
    assert plan is not None
    assert table.cell("mine", "parameters").counted == plan.network.parameters / 1e6
    assert table.cell("mine", "multiply-adds").counted == plan.network.multiply_adds / 1e9


def test_the_row_is_trained_shown_and_compared_and_nothing_is_said_of_the_paper(
    mine: Path, tmp_path: Path
) -> None:
    request = Request(**{**vars(with_row(mine)), "seeds": tuple(range(6)), "rows": ("original",)})
    one = found_in(made := pretend(request, tmp_path / "sweep", figure))
    assert [cell.cell.row for cell in one.cells] == ["original", "mine"]
    (table,) = reproduction_tables.figure_tables(one)
    assert dict(zip(table.header, table.rows[1], strict=True)) | {"runs": "6"} == {
        "row": "mine", "paper": "not in the paper", "runs": "6", "median": "3.25",
        "mean ± std": "3.25 ± 0.19", "96.8 % interval": table.rows[1][-1],
    }  # fmt: skip
    (gaps,) = comparison_tables.gap_tables(one)
    assert gaps.rows[0][:3] == ("mine", "–", "−3.61")
    assert gaps.rows[0][-1] == "lower error"
    assert "1 to a lower error (not in the paper)" in finding_sentence(one)
    (compared,) = one.comparisons.values()
    assert "mine" not in compared.ranking.rows
    as_json = json.loads(results_as_json(made, (one,), whole_command(made.request)))
    cells = {cell["row"]: cell for cell in as_json["tables"][0]["cells"]}
    assert (cells["mine"]["in_paper"], cells["mine"]["reported"]) == (False, None)
    assert cells["original"]["in_paper"]


def test_at_the_paper_s_size_a_row_of_ones_own_is_never_judged(mine: Path, tmp_path: Path) -> None:
    request = Request(**{**vars(with_row(mine, request=FULL)), "rows": ("original",)})
    one = found_in(pretend(request, tmp_path / "sweep", figure))
    verdicts = {cell.cell.row: cell.verdict for cell in one.cells}
    assert verdicts["original"].word == "agrees"
    assert (verdicts["mine"].word, verdicts["mine"].text) == ("no figure", "not in the paper")


def test_a_sweep_names_the_file_and_is_read_with_it_alone(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    request = Request(**{**vars(with_row(mine)), "rows": ("original",)})
    pretend(request, sweep, figure)
    assert from_json(to_json(request), Request) == request
    forget()
    assert main(["reproduce", "--resume", str(sweep)]) == 2
    assert "add --unit mine.py" in capsys.readouterr().err
    assert main(["report", str(sweep)]) == 2
    assert "add --unit mine.py" in capsys.readouterr().err
    assert not extensions.loaded_files()
    assert main(["reproduce", "--resume", str(sweep), "--unit", str(mine), "--json"]) == 0
    rows = [cell["row"] for cell in json.loads(capsys.readouterr().out)["tables"][0]["cells"]]
    assert rows == ["original", "mine"]
    forget()
    assert main(["report", str(sweep), "--unit", str(mine)]) == 0
    assert "not in the paper" in capsys.readouterr().out
    assert "not in the paper" in (sweep / "report.html").read_text(encoding="utf-8")
    assert open_sweep(sweep).request.own_rows[0].name == "mine"


def test_a_sweep_is_refused_where_a_file_that_its_row_loads_has_changed(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    helper, sweep = tmp_path / "helper.py", tmp_path / "sweep"
    helper.write_text("FACTOR = 2.0\n")
    load = f"from kilolayer.units import load_unit_file\nload_unit_file({str(helper)!r})\n"
    mine.write_text(MINE + load)
    pretend(Request(**{**vars(with_row(mine)), "rows": ("original",)}), sweep, figure)
    forget()
    assert main(["report", str(sweep), "--unit", str(mine)]) == 0
    forget()
    helper.write_text("FACTOR = 3.0\n")
    capsys.readouterr()
    assert main(["report", str(sweep), "--unit", str(mine)]) == 2
    said = f"{sweep} uses Doubled from mine.py; helper.py, which mine.py loads, has changed since"
    assert said in capsys.readouterr().err


def test_the_command_that_repeats_a_cell_has_the_row(mine: Path) -> None:
    request = with_row(mine)
    assert f"--row mine={mine}:Doubled" in whole_command(request)
    assert f"--row mine={mine}:Doubled" in cell_command(request, "p2-table-1", "mine", "error")
    assert "--row " not in cell_command(request, "p2-table-1", "original", "error")


REFUSED = {
    "--row mine": "allowed: NAME=FILE.py:UNIT",
    "--row mine=@MINE": "allowed: NAME=FILE.py:UNIT",
    "--row =@MINE:Doubled": "allowed: NAME=FILE.py:UNIT",
    "--row mine=@MINE:Dubled": "nearest: Doubled",
    "--row mine=nowhere.py:Doubled": "nowhere.py: no such file or folder",
    "--row original=@MINE:Doubled": "p2-table-1 has a row 'original' already",
    "--row a=@MINE:Doubled a=@MINE:DROPPED": "two rows called 'a'",
    "--row a=@MINE:Doubled b=@OTHER:DROPPED": "names several files",
    "--unit @MINE": "--unit is for --resume",
    "--row mine=@MINE:Doubled --engine ray": "not on a Ray cluster",
    "p2-table-2 --row mine=@MINE:RELU_FIRST --columns nothing": "no column matches 'nothing'",
    "p2-table-2 --row mine=@MINE:DROPPED": "set that part of the unit themselves: ResNet-164",
    "p2-table-3 --row mine=@MINE:WHOLE": "original, full pre-activation",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_does_not_fit_is_one_line_and_nothing_is_written(
    line: str, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.py"
    other.write_text(MINE)
    words = line.replace("@MINE", str(mine)).replace("@OTHER", str(other)).split()
    words = words if words[0].startswith("p2") else ["p2-table-1", *words]
    assert main(["reproduce", *words, *DIGITS, "--out", str(tmp_path / "sweep")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert REFUSED[line] in said
    assert not (tmp_path / "sweep").exists()


def test_a_column_without_that_part_takes_the_row(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["p2-table-2", "--row", f"mine={mine}:DROPPED", "--columns", "ResNet-110", "--dry-run", "--json"]
    assert main(["reproduce", *words, "--rows", "original", "--seeds", "1", *DIGITS]) == 0
    assert [run["row"] for run in json.loads(capsys.readouterr().out)] == ["original", "mine"]


def test_a_network_that_cannot_be_is_refused_with_the_row_s_name() -> None:
    with pytest.raises(InputError, match="the row 'mine' in p2-table-1: depth 111 is not 9n"):
        find_table("p2-table-1").with_own_row("mine", {"branch": Bottleneck(), "depth": 111})


@pytest.mark.slow
def test_a_row_of_ones_own_runs_in_the_pool(mine: Path, tmp_path: Path) -> None:
    words = [
        "p2-table-1", "--rows", "original", "--row", "mine=mine.py:Doubled", "--seeds", "1", *DIGITS,
        "--depths", "110=8", "--iterations", "3", "--subset", "64", "--workers", "2", "--out", "sweep",
    ]  # fmt: skip
    program = [sys.executable, "-m", "kilolayer", "reproduce"]
    done = subprocess.run(
        [*program, *words], capture_output=True, text=True, timeout=200, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "mine | seed 0: " in done.stdout
    assert "not in the paper" in done.stdout
