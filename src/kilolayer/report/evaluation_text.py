"""An evaluation as text on the terminal, and as JSON."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from typing import Any

from kilolayer.report.document import Table
from kilolayer.runs.evaluation_result import EvaluationResult
from kilolayer.system.printer import print_line
from kilolayer.system.terminal import print_rows, print_table, print_text
from kilolayer.training.class_metrics import ClassMetrics, macro_mean, wilson_interval

MAX_CLASSES = 20
HEADER = ("class", "images", "error %", "95 % interval", "precision %", "recall %", "F1 %")


def print_evaluation(result: EvaluationResult, page: str | None = None) -> None:
    """Prints what was measured, the finding, the figures, a table of the classes, and the next command."""
    evaluation, sample = result.evaluation, result.sample
    part = "" if sample.part == "all" else f"{sample.part} "
    print_text(f"{evaluation.images:,} {part}images of {sample.name}")
    for note in sample.notes:
        print_text(f"  {note}", hanging=2)
    print_text(f"\n{result.finding()}")
    print_text(figures_line(result) + "\n")
    _print_classes(result)
    steps = _next(result, page)
    if steps:
        print_line()
        print_rows(steps)


def figures_line(result: EvaluationResult) -> str:
    """Errors, loss and calibration on one line."""
    evaluation, calibration = result.evaluation, result.calibration
    top5 = f", top-5 error {evaluation.top5_error:.2f} %" if result.has_top5 else ""
    return (
        f"{'top-1 ' if top5 else ''}error {evaluation.error:.2f} %{top5}, loss {evaluation.loss:.4f}, "
        f"expected calibration error {100 * calibration.error:.1f} % "
        f"(up to {100 * calibration.chance:.1f} % can be chance)"
    )


def _print_classes(measurement: EvaluationResult) -> None:
    by_class = zip(measurement.classes, measurement.metrics, strict=True)
    rows = [(name, metrics) for name, metrics in by_class if metrics.support]
    if len(rows) > MAX_CLASSES:
        rows = sorted(rows, key=lambda row: row[1].recall or 0.0)[:MAX_CLASSES]
        print_text(
            f"the {MAX_CLASSES} worst of {len(measurement.classes):,} classes (all with --json or --html):"
        )
    print_table(
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
        error, interval = percent_text(1 - metrics.recall), f"{percent_text(low)} to {percent_text(high)}"
    return (
        name,
        f"{metrics.support:,}",
        error,
        interval,
        *map(percent_text, (metrics.precision, metrics.recall, metrics.f1)),
    )


def percent_text(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _next(measurement: EvaluationResult, page: str | None) -> dict[str, str]:
    if page is not None:
        return {"page": page}
    if not measurement.num_wrong:
        return {}
    return {"next": shlex.join(["kilolayer", *sys.argv[1:], "--html", "mistakes.html"])}


def evaluation_json(result: EvaluationResult) -> dict[str, Any]:
    """All figures as a JSON value. `split` repeats `part`, its name in earlier releases."""
    sample, metrics = result.sample, result.metrics
    return {
        "data": sample.name,
        "part": sample.part,
        "split": sample.part,
        "notes": sample.notes,
        **asdict(result.evaluation),
        "error_interval_95": result.interval,
        "classes": result.classes,
        "class_metrics": [
            {"class": name, **asdict(class_metrics)}
            for name, class_metrics in zip(result.classes, metrics, strict=True)
        ],
        "macro": {
            metric: macro_mean([getattr(class_metrics, metric) for class_metrics in metrics])
            for metric in ("precision", "recall", "f1")
        },
        "calibration": asdict(result.calibration),
    }
