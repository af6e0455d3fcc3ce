"""The metrics of a run, read from its folder, as a curve."""

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kilolayer.errors import InputError
from kilolayer.runs.records import Row, read_rows

Value = float | None
"""None was not measured, and a line skips it. NaN was measured and is not finite: the line has a gap."""

MetricsRow = Mapping[str, object]


@dataclass(frozen=True)
class Curve:
    """The training of one run: x in iterations, errors in percent. All tuples have the same length.

    Curves of one `group` (such as the seeds of a table's row) have one colour and one entry in the legend.

    >>> Curve.from_metrics("run", [{"iteration": 100, "train_loss": 0.5, "test_error": 8.0}]).error
    (8.0,)

    Raises:
        ValueError: the tuples differ in length.
    """

    label: str
    x: tuple[float, ...]
    train_loss: tuple[Value, ...]
    error: tuple[Value, ...]
    group: str = ""
    error_name: str = "test error"

    def __post_init__(self) -> None:
        for name in ("train_loss", "error"):
            if len(getattr(self, name)) != len(self.x):
                raise ValueError(f"Curve.{name}: {len(getattr(self, name))} values for {len(self.x)} in x")

    @property
    def key(self) -> str:
        """The meaning of the curve's colour: its group, or else its label."""
        return self.group or self.label

    @classmethod
    def from_metrics(cls, label: str, rows: Iterable[MetricsRow], group: str = "") -> "Curve":
        """The curve of a run's epochs. An epoch without a finite iteration is left out."""
        usable = [row for row in rows if math.isfinite(finite_or_nan(row.get("iteration")))]
        error = _error_key(usable)
        return cls(
            label=label,
            x=tuple(finite_or_nan(row["iteration"]) for row in usable),
            train_loss=_column(usable, "train_loss"),
            error=_column(usable, error),
            group=group,
            error_name=error.replace("_", " "),
        )


def finite_or_nan(value: object) -> float:
    """A finite number unchanged, and everything else (null, text, infinity) as NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:
        return math.nan


def read_metrics(path: Path) -> list[Row]:
    """The epochs in a `metrics.jsonl`. An incomplete last line, which a killed run leaves, is skipped.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "metrics.jsonl"
    ...     _ = file.write_text('{"epoch": 1, "iteration": 3}\\n{"epo')
    ...     read_metrics(file)
    [{'epoch': 1, 'iteration': 3}]

    Raises:
        InputError: the file cannot be read, or a line before the last holds no figures.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the metrics {path}: {error.strerror}") from error
    lines, newline, last = content.rpartition(b"\n")
    rows = read_rows(lines.rstrip(b"\n") + newline, path)
    with suppress(InputError):
        rows += read_rows(last + b"\n", path)
    return rows


def _error_key(rows: list[MetricsRow]) -> str:
    for key in ("test_error", "validation_error"):
        if any(key in row for row in rows):
            return key
    return "test_error"


def _column(rows: list[MetricsRow], key: str) -> tuple[Value, ...]:
    return tuple(finite_or_nan(row[key]) if key in row else None for row in rows)
