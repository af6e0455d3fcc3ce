"""What short_recipes.py measured, as a table and as a figure: error against training time and arithmetic."""

from __future__ import annotations

import json
from typing import Any

from kilolayer.networks import describe
from kilolayer.report import canvas
from kilolayer.training import Experiment
from kilolayer.values import from_json

PAPERS_IMAGES = 64_000 * 128

Figures = dict[str, dict[str, Any]]


def papers_pflop(layers: int) -> float:
    """Of the paper's recipe, 64,000 steps of 128 images, for the same network."""
    return 6e-15 * PAPERS_IMAGES * describe(f"preact_resnet{layers}_cifar").multiply_adds


def table(found: Figures) -> str:
    """A line for each trial, errors in percent."""
    heads = ("trial", "images", "PFLOP", "of 64k steps", "processor s", "wall s", "validation", "test")
    rows = [heads]
    for name, one in found.items():
        test = one["test_error"]
        share = one["pflop"] / papers_pflop(one["options"]["layers"])
        rows.append(
            (
                name,
                f"{one['images']:,}",
                f"{one['pflop']:.4f}",
                f"{share:.1%}",
                f"{one['training_processor_seconds']:,.0f}",
                f"{one['training_wall_seconds']:,.0f}",
                f"{one['validation_error']:.2f} %",
                f"{test:.2f} %" if test is not None else "not run",
            )
        )
    widths = [max(len(row[place]) for row in rows) for place in range(len(heads))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def figure(found: Figures) -> str:
    """Validation error by epoch against processor minutes of training and against PFLOP, as SVG."""
    shown = {
        name: one
        for name, one in found.items()
        if (name.startswith("test/") and "seed" not in name) or name.endswith("short")
    }
    names = [name.partition("/")[2] for name in shown]
    data = ", ".join(dict.fromkeys(one["data"] for one in shown.values()))

    def paint(drawing: Any) -> None:
        panels = drawing.subplots(1, 2, sharey=True)
        canvas.set_up_axes(panels[0], "processor minutes", "validation error in %")
        canvas.set_up_axes(panels[1], "PFLOP", "")
        for number, one in enumerate(shown.values()):
            errors = [row["monitored_error"] for row in one["curve"]]
            minutes = [row["processor_seconds"] / 60 for row in one["curve"]]
            panels[0].plot(minutes, errors, color=canvas.colour(number), marker=canvas.marker(number), ms=3)
            panels[1].plot(
                spent(one), errors, color=canvas.colour(number), marker=canvas.marker(number), ms=3
            )
        for axes in panels:
            axes.set_xscale("log")
            canvas.plain_ticks(axes.xaxis)
        canvas.plain_ticks(panels[0].yaxis)
        canvas.add_legend(drawing, names)

    return canvas.draw_svg(
        f"Short recipes on {data}: error against training time and arithmetic",
        paint,
        canvas.HEIGHT + canvas.legend_height(names),
    )


def spent(one: dict[str, Any]) -> list[float]:
    """The PFLOP up to the end of every epoch."""
    experiment = from_json(json.dumps(one["experiment"]), Experiment)
    return [6e-15 * experiment.multiply_adds_until(row["iteration"]) for row in one["curve"]]
