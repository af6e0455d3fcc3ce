"""The table of faults: what counts as run, and that the pages show what the files hold."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from fault_counts import Counts

ROOT = Path(__file__).resolve().parent.parent
TEST = "tests/faults/test_r19_injection.py::test_a_fault_at_every_call[train-0]"
NAME = TEST.rpartition("/")[2]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import fault_table

    monkeypatch.setattr(fault_table, "RESULTS", {"R": tmp_path / "r.json", "S": tmp_path / "s.json"})
    monkeypatch.setattr(fault_table, "is_current", lambda commit: commit == "today")
    return fault_table


def hold(module: ModuleType, tests: dict[str, dict[str, object]], **more: object) -> None:
    counts = {key: sum(int(str(test[key])) for test in tests.values()) for key in ("tried", "held")}
    rows = {"R19": {**counts, "tests": tests}} if tests else {}
    module.RESULTS["R"].write_text(json.dumps({"rows": rows, **more}), encoding="utf-8")


def entry(**changes: object) -> dict[str, object]:
    return {"tried": 3, "held": 3, "stride": 1, "commit": "today", "date": "2026-11-29T11:00", **changes}


def test_a_test_is_recorded_whole_and_of_the_same_sources(table: ModuleType) -> None:
    assert not table.recorded(TEST)
    hold(table, {NAME: entry()})
    assert table.recorded(TEST)
    for other in ({"stride": 40}, {"commit": "yesterday"}, {"commit": ""}):
        hold(table, {NAME: entry(**other)})
        assert not table.recorded(TEST)


def test_the_extent_of_a_row(table: ModuleType) -> None:
    def extent() -> str:
        return str(table.extent("R19", table.content(table.RESULTS["R"])))

    hold(table, {})
    assert extent() == "not run as a whole"
    hold(table, {NAME: entry(stride=40)})
    assert extent() == "not run as a whole: every 40th"
    hold(table, {NAME: entry()}, collected={"R19": 2})
    assert extent() == "not run as a whole: 1 of 2 tests"
    hold(table, {NAME: entry()}, collected={"R19": 1})
    assert extent() == "whole, today"


def test_what_did_not_hold_is_named(table: ModuleType) -> None:
    hold(table, {NAME: entry(held=2)})
    assert list(table.not_held(table.RESULTS["R"])) == [f"R19: {NAME}: 2 of 3 held"]


def test_a_test_that_counts_nothing_is_not_run_again(
    table: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "current_commit", lambda: "today")
    table.note(TEST, table.RESULTS["R"], 0)
    assert table.recorded(TEST)


def test_counts_join_those_of_a_day_without_seconds(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(
        json.dumps({"rows": {"S1": {"tests": {"old": {"tried": 2, "held": 2, "stride": 1}}}}, "kept": 1})
    )
    counts = Counts(path, 40)
    counts.tests = {"S1": {"new": {"tried": 1, "held": 1, "seconds": 0.5, "stride": 40}}}
    counts.pytest_sessionfinish()
    table = json.loads(path.read_text(encoding="utf-8"))
    assert (table["rows"]["S1"]["tried"], table["rows"]["S1"]["seconds"], table["kept"]) == (3, 0.5, 1)


@pytest.mark.parametrize(("kind", "page"), [("R", "faults"), ("S", "hostile-files")])
def test_the_pages_show_what_the_files_hold(
    kind: str, page: str, table: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Write it anew with: python benchmarks/fault_table.py --show"""
    names = {"R": "faults", "S": "faults-security"}
    files = {key: ROOT / "results" / f"{name}.json" for key, name in names.items()}
    monkeypatch.setattr(table, "RESULTS", files)
    text = (ROOT / "docs" / "results" / f"{page}.md").read_text(encoding="utf-8")
    assert "\n".join(table.table_lines(kind)) in text


def test_every_row_of_the_suite_is_in_the_table(table: ModuleType) -> None:
    rows = {table.row_of(path.name) for path in (ROOT / "tests" / "faults").glob("test_*.py")}
    assert rows <= set(table.ROWS)
    assert {f"R{n}" for n in range(1, 21)} | {f"S{n}" for n in range(1, 13)} <= set(table.ROWS)
