"""What `kilolayer evaluate` prints: lines and a table for people, JSON for programs."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from typing import Any

from kilolayer.commands.measurement import Measurement
from kilolayer.report.content import Table
from kilolayer.terminal import say, say_rows, show_table
from kilolayer.training.class_metrics import ClassMetrics, macro_mean, wilson_interval

MOST_CLASSES = 20
HEADER = ("class", "images", "error %", "95 % interval", "precision %", "recall %", "F1 %")


def print_text(measurement: Measurement, page: str | None = None) -> None:
    """What was measured, the finding, the figures, a table of the classes, and what to do next."""
    evaluation, taken = measurement.evaluation, measurement.sample
    part = "" if taken.part == "all" else f"{taken.part} "
    say(f"{evaluation.images:,} {part}images of {taken.name}")
    for note in taken.notes:
        say(f"  {note}", hanging=2)
    say(f"\n{measurement.finding()}")
    say(figures(measurement) + "\n")
    _print_classes(measurement)
    steps = _next(measurement, page)
    if steps:
        print()
        say_rows(steps)


def figures(measurement: Measurement) -> str:
    """Errors, loss and calibration on a line."""
    evaluation, calibration = measurement.evaluation, measurement.calibration
    top5 = f", top-5 error {evaluation.top5_error:.2f} %" if measurement.has_top5 else ""
    return (
        f"{'top-1 ' if top5 else ''}error {evaluation.error:.2f} %{top5}, loss {evaluation.loss:.4f}, "
        f"expected calibration error {100 * calibration.error:.1f} % "
        f"(below {100 * calibration.chance:.1f} % it can be chance)"
    )


def _print_classes(measurement: Measurement) -> None:
    named = zip(measurement.classes, measurement.metrics, strict=True)
    rows = [(name, metrics) for name, metrics in named if metrics.support]
    if len(rows) > MOST_CLASSES:
        rows = sorted(rows, key=lambda row: row[1].recall or 0.0)[:MOST_CLASSES]
        say(f"the {MOST_CLASSES} worst of {len(measurement.classes):,} classes (all with --json or --html):")
    show_table(
        Table("", HEADER, tuple(class_row(*row) for row in rows)),
        drop=("95 % interval", "F1 %", "recall %", "precision %"),
    )


def class_row(name: str, metrics: ClassMetrics) -> tuple[str, ...]:
    """The cells below `HEADER`."""
    if metrics.recall is None:
        error, interval = "–", "–"
    else:
        wrong = round((1 - metrics.recall) * metrics.support)
        low, high = wilson_interval(wrong, metrics.support)
        error, interval = percent(1 - metrics.recall), f"{percent(low)} to {percent(high)}"
    return (
        name,
        f"{metrics.support:,}",
        error,
        interval,
        *map(percent, (metrics.precision, metrics.recall, metrics.f1)),
    )


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _next(measurement: Measurement, page: str | None) -> dict[str, str]:
    if page is not None:
        return {"page": page}
    if not measurement.wrong:
        return {}
    return {"next": shlex.join(["kilolayer", *sys.argv[1:], "--html", "mistakes.html"])}


def as_json(measurement: Measurement) -> dict[str, Any]:
    """All figures. `data`, `split`, `images`, `loss`, errors and `confusion` are as in earlier releases."""
    taken, metrics = measurement.sample, measurement.metrics
    return {
        "data": taken.name,
        "part": taken.part,
        "split": taken.part,
        "notes": taken.notes,
        **asdict(measurement.evaluation),
        "error_interval_95": measurement.interval,
        "classes": measurement.classes,
        "class_metrics": [
            {"class": name, **asdict(one)} for name, one in zip(measurement.classes, metrics, strict=True)
        ],
        "macro": {
            what: macro_mean([getattr(one, what) for one in metrics])
            for what in ("precision", "recall", "f1")
        },
        "calibration": asdict(measurement.calibration),
    }
