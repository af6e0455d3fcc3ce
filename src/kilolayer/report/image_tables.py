"""The rows of a sweep image by image: where their spread comes from, and their gaps for other images too."""

from __future__ import annotations

from kilolayer.report.comparison_tables import signed
from kilolayer.report.document import Table
from kilolayer.report.reproduction_tables import table_label
from kilolayer.sweep.image_errors import image_errors
from kilolayer.sweep.results import TableResult

SPREAD_HEADER = ("row", "trainings", "images", "error", "between trainings", "between test sets", "seen here")
PAIR_HEADER = ("comparison", "trainings", "here", "95 % interval", "p")


def image_tables(result: TableResult) -> tuple[Table, ...]:
    """The spread of each row and the gap of each pair; none where runs kept no predictions."""
    errors = image_errors(result)
    spreads = tuple(
        (
            label,
            str(spread.trainings),
            f"{spread.images:,}",
            f"{spread.error:.2f}",
            f"{spread.training:.2f}",
            f"{spread.test_set:.2f}",
            f"{spread.seen:.2f}",
        )
        for label, spread in errors.spreads.items()
    )
    pairs = tuple(
        (
            f"{b} against {a}",
            str(pair.trainings),
            signed(pair.difference),
            f"{signed(pair.low)} to {signed(pair.high)}",
            f"{pair.p:.2g}",
        )
        for (a, b), pair in errors.pairs.items()
    )
    tables = []
    if spreads:
        tables.append(
            Table(
                f"{table_label(result)}: standard deviation of an error by where it comes from, in points.",
                SPREAD_HEADER,
                spreads,
                "Between trainings: of the error on images without end. Between test sets: of one network's "
                "error on other images, as many. Seen here: between trainings on this one test set.",
            )
        )
    if pairs:
        tables.append(
            Table(
                f"{table_label(result)}: gaps image by image, for other trainings and other images.",
                PAIR_HEADER,
                pairs,
                "These are estimates beside the decisions: each interval is for its pair alone.",
            )
        )
    return tuple(tables)
