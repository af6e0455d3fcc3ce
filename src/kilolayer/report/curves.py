"""A run's metrics, read from its folder and turned into one curve of a figure."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kilolayer.errors import InputError

Value = float | None
"""None: not measured, and the line passes over it. NaN: measured but not finite, and the line has a gap."""

MetricsRow = Mapping[str, object]


@dataclass(frozen=True)
class Curve:
    """One run over its training: errors in percent, x in iterations, all tuples equally long.

    Curves of the same `group` (the seeds of one row of a table) share a colour and a place in the legend.
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
        """What the colour stands for."""
        return self.group or self.label

    @classmethod
    def from_metrics(cls, label: str, rows: Iterable[MetricsRow], group: str = "") -> "Curve":
        """The curve of a run's epochs; an epoch without a usable iteration has no place and is left out."""
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
    """A finite value as it is, and everything else (null, text, infinity) as NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:
        return math.nan


def read_metrics(path: Path) -> list[dict[str, object]]:
    """The epochs of a `metrics.jsonl`; a last line cut off by a killed run is passed over."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"cannot read the metrics {path}: {error.strerror}") from error
    epochs = [_epoch(line) for line in lines]
    for at, epoch in enumerate(epochs[:-1], start=1):
        if epoch is None:
            raise InputError(f"{path}, line {at}: not a JSON object; metrics hold one object per epoch")
    return [epoch for epoch in epochs if epoch is not None]


def _epoch(line: bytes) -> dict[str, object] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _error_key(rows: list[MetricsRow]) -> str:
    for key in ("test_error", "validation_error"):
        if any(key in row for row in rows):
            return key
    return "test_error"


def _column(rows: list[MetricsRow], key: str) -> tuple[Value, ...]:
    return tuple(finite_or_nan(row[key]) if key in row else None for row in rows)
