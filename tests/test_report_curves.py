"""Metrics become curves, whatever state a run was left in."""

import json
import math
from pathlib import Path

import pytest

from kilolayer.errors import InputError
from kilolayer.report import Curve, read_metrics

ROW = {"epoch": 1, "iteration": 391, "learning_rate": 0.1, "train_loss": 1.5, "test_error": 40.0}


def test_a_row_is_a_point() -> None:
    curve = Curve.from_metrics("a", [ROW, {**ROW, "iteration": 782, "train_loss": 1.0}], group="g")
    assert curve == Curve("a", (391.0, 782.0), (1.5, 1.0), (40.0, 40.0), "g", "test error")
    assert (curve.key, Curve.from_metrics("a", []).key) == ("g", "a")


def test_the_validation_error_is_named_as_such() -> None:
    curve = Curve.from_metrics("a", [{"iteration": 1}, {"iteration": 2, "validation_error": 7}])
    assert (curve.error, curve.error_name) == ((None, 7.0), "validation error")


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, "3", True, [1], 10**400], ids=repr)
def test_what_is_not_a_finite_number_is_a_gap(value: object) -> None:
    (loss,) = Curve.from_metrics("a", [{**ROW, "train_loss": value}]).train_loss
    assert loss is not None
    assert math.isnan(loss)


def test_an_epoch_without_an_iteration_is_left_out() -> None:
    assert Curve.from_metrics("a", [{"train_loss": 1.0}, {**ROW, "iteration": None}, ROW]).x == (391.0,)


def test_series_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Curve\.error: 0 values for 1 in x"):
        Curve("a", (1.0,), (1.0,), ())


@pytest.mark.parametrize(
    "rest", ['{"epoch": 3, "ite', '{"epoch"', "\x00\x00\x00", "", "\n", '{"a": "\udcff', "[" * 100_000]
)
def test_a_line_cut_off_at_the_end_is_passed_over(tmp_path: Path, rest: str) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = f"{json.dumps(ROW)}\n{json.dumps({**ROW, 'train_loss': math.nan})}\n"
    path.write_text(whole + rest, encoding="utf-8", errors="surrogateescape")
    assert len(read_metrics(path)) == 2


def test_a_last_line_without_its_newline_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(ROW))
    assert read_metrics(path) == [ROW]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON: Expecting property name"),
        ("12", "the value is 12; allowed: an object"),
        ("null", "the value is null; allowed: an object"),
        ("[]", "the value is a list; allowed: an object"),
        ('{"epoch": 1}', "iteration: required field missing"),
        (json.dumps({**ROW, "train_loss": "low"}), "train_loss is 'low'; allowed: a number"),
    ],
)
def test_a_damaged_line_within_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{json.dumps(ROW)}\n{line}\n{json.dumps(ROW)}\n")
    with pytest.raises(InputError, match=rf"metrics\.jsonl, line 2: {reason}"):
        read_metrics(path)


def test_metrics_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read the metrics .*absent: No such file"):
        read_metrics(tmp_path / "absent")
