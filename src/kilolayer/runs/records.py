"""The JSON of a run and of a sweep as typed records, and the one reader from bytes to a record.

A record is a `TypedDict`: JSON's own object with its fields checked. Fields that it does not name are kept as
they are, because an older release reads the files of a newer one and writes some of them back; a release
that changes a field's meaning raises the format's number, and older ones refuse the file by that number.
Numbers are finite, except in figures that were measured (`Figure`); counts and shares lie in their ranges.

>>> read_record(b'{"count": 8}', SnapshotPlan, "plan.json")
{'count': 8}
>>> read_record(b'{"count": "8"}', SnapshotPlan, "plan.json")
Traceback (most recent call last):
kilolayer.errors.InputError: plan.json, line 1: count is '8'; allowed: a whole number from 0
"""

# Without `from __future__ import annotations`: Python 3.11 would not see NotRequired in a text.
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, NotRequired, TypedDict, TypeVar

from kilolayer.errors import InputError
from kilolayer.system.json_text import MAX_WHOLE, JsonValue, at_line, line_of_field, parse_json, split_lines
from kilolayer.values import Bounds, FieldErrors, structure

T = TypeVar("T")

Count = Annotated[int, Bounds(0, MAX_WHOLE)]
Percent = Annotated[float, Bounds(0, 100)]
Seconds = Annotated[float, Bounds(0)]
Figure = Annotated[float, Bounds(allow_nan=True)]
"""A measured number; NaN where it was not finite, which JSON may also write as null."""


class EndedRun(TypedDict, total=False):
    """result.json. A run that is done has a test error."""

    status: Literal["done", "diverged", "failed"]
    reason: str
    data: str
    images_from: list[str]
    skipped_images: list[str]
    test_error: Percent
    test_top5_error: Percent
    test_loss: Figure
    best_test_error: Percent
    best_validation_error: Percent
    best_epoch: Count
    test_error_selected_on_validation: Percent
    train_seconds: Seconds
    iterations: Count
    epochs: Count
    peak_memory_bytes: Count


class DataRecord(TypedDict):
    """Where a start read its data, and their fingerprints by the part's name."""

    path: NotRequired[str | None]
    fingerprints: NotRequired[dict[str, str]]


Start = TypedDict(
    "Start",
    {
        "format": NotRequired[Count],
        "kilolayer": str,
        "python": str,
        "torch": str,
        "torch build": NotRequired[str],
        "cudnn": NotRequired[Count | None],
        "numpy": NotRequired[str],
        "system": NotRequired[str],
        "processor": str,
        "cores": Count | None,
        "threads": Count,
        "device": str,
        "gpu": NotRequired[str | None],
        "memory format": NotRequired[str],
        "precision": NotRequired[str],
        "kernels": NotRequired[str],
        "products": NotRequired[str | None],
        "processes": NotRequired[Count],
        "command": str,
        "date": str,
        "run": NotRequired[str],
        "data": NotRequired[DataRecord],
    },
)
"""An entry of environment.json: a start of the run."""

Row = dict[str, Figure]
"""A line of metrics.jsonl or timing.jsonl: figures by name, among them `epoch`."""


class MetricsKey(TypedDict):
    """What every line of metrics.jsonl has."""

    epoch: Count
    iteration: Count


class TimingRow(TypedDict):
    """A line of timing.jsonl."""

    epoch: Count
    images_per_second: NotRequired[Annotated[float, Bounds(0)]]
    seconds: NotRequired[Seconds]


class Counters(TypedDict):
    """What a state holds beside its tensors, as `Trainer.counters()` gives it."""

    iteration: Count
    epochs_closed: Count
    best_error: Percent | None
    best_epoch: Count
    seconds: Seconds
    data: dict[str, str]


class Seal(TypedDict):
    """The seal of a state. Formats 1 and 2 give the length of metrics.jsonl; format 3 holds its text."""

    format: NotRequired[Count]
    run: NotRequired[str]
    config: NotRequired[str]
    counters: Counters
    metrics_bytes: NotRequired[Count]
    metrics: NotRequired[str]
    tensors: str
    seal: NotRequired[str]


class SnapshotPlan(TypedDict):
    """snapshots/plan.json."""

    count: Count


class PredictionsHeader(TypedDict):
    """The header of predictions.safetensors."""

    test_set: str
    sha256: str


def read_record(content: bytes | str, kind: type[T], source: str | Path, *, line: int = 1) -> T:
    """The record in `content`, text of `source` from line `line` on.

    Raises `InputError`, one line that names the file, the line, the field and what is allowed.
    """
    value = parse_json(content, str(source), line=line, allow_nan=True)
    return check_record(value, kind, source, content=content, line=line)


def check_record(
    value: JsonValue, kind: type[T], source: str | Path, *, content: bytes | str = "", line: int = 1
) -> T:
    """The record that a JSON value is. `content`, the value's text, gives the line that an error names."""
    try:
        return structure(value, kind)
    except FieldErrors as error:
        path, reason = error.fields[0]
        more = f" (and {len(error.fields) - 1:,} more)" if len(error.fields) > 1 else ""
        at = line + line_of_field(content, path) - 1
        raise InputError(at_line(str(source), at, f"{reason}{more}")) from None


def read_result(content: bytes, source: str | Path) -> EndedRun:
    """result.json. Where a run is done it has a test error.

    >>> read_result(b'{"status": "diverged", "reason": "the loss is nan"}', "result.json")["status"]
    'diverged'
    """
    result = read_record(content, EndedRun, source)
    needed = ("status", "test_error") if result.get("status") == "done" else ("status",)
    if missing := [name for name in needed if name not in result]:
        raise InputError(at_line(str(source), 1, f"{missing[0]}: required field missing"))
    return result


def check_seal(value: JsonValue, source: str | Path, content: bytes) -> Seal:
    """The seal of a state that a JSON value is, with what its format must have. `content` is its text."""
    seal = check_record(value, Seal, source, content=content)
    needed = ("config", "metrics") if seal.get("format", 1) > 2 else ("metrics_bytes",)
    if missing := [name for name in needed if name not in seal]:
        raise InputError(at_line(str(source), 1, f"{missing[0]}: required field missing"))
    return seal


def read_rows(content: bytes, source: str | Path) -> list[Row]:
    """The epochs in metrics.jsonl; a last line cut short by a crash is left out.

    >>> read_rows(b'{"epoch": 1, "iteration": 3, "test_loss": NaN}\\n{"epo', "metrics.jsonl")
    [{'epoch': 1, 'iteration': 3, 'test_loss': nan}]
    """
    return [_row(line, source, number) for number, line in enumerate(split_lines(content), 1)]


def _row(content: bytes, source: str | Path, number: int) -> Row:
    read_record(content, MetricsKey, source, line=number)
    return read_record(content, Row, source, line=number)


def read_timing(content: bytes) -> list[TimingRow]:
    """The lines of timing.jsonl. Those that are none are left out: no figure depends on them."""
    return list(_timing_rows(split_lines(content)))


def _timing_rows(lines: Iterable[bytes]) -> Iterable[TimingRow]:
    for line in lines:
        try:
            yield read_record(line, TimingRow, "timing.jsonl")
        except InputError:
            continue
