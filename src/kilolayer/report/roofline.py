"""The roofline plot: the speed of every candidate below what the machine's arithmetic and memory allow."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from kilolayer.networks import Network, describe
from kilolayer.networks.saved_activations import network_activations
from kilolayer.report import canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

IDEAL_MAPS = 3
"""A unit in training reads its input and its output's gradient, and writes its input's gradient."""


def arithmetic_intensity(network: Network, work: str, width: int) -> float:
    """FLOPs per byte of the least memory traffic.

    The traffic is a map of every unit's input, three times in training and twice in inference. `width`: bytes
    per number.
    """
    maps = sum(saved.input for saved in network_activations(network)) + network.channels
    passes, flops = (IDEAL_MAPS, 6) if work == "training" else (2, 2)
    return flops * network.multiply_adds / (passes * width * maps)


def roofline_svg(comparison: dict[str, Any], title: str) -> str:
    """The plot as SVG: a ceiling per dtype with the slope of the memory, and a point for every candidate.

    A candidate of a package is drawn at the intensity of the first of our networks.
    """
    rows = comparison["contestants"]
    first = next(row["name"].partition("@")[0] for row in rows if row["source"] == "kilolayer")
    names = [row["name"] for row in rows]
    ceilings = comparison["ceilings"]

    def paint(figure: Drawing) -> None:
        axes = figure.subplots()
        canvas.set_up_axes(axes, "FLOP per byte of the least traffic", "GFLOP/s")
        axes.set_xscale("log")
        axes.set_yscale("log")
        slope = ceilings["copy_bytes"]
        for name, style in (("bf16", "-"), ("fp32", "--"), ("fp16", ":")):
            if f"{name}_flops" not in ceilings:
                continue
            top = ceilings[f"{name}_flops"]
            corners = [(top / slope / 30, top / 30), (top / slope, top), (top / slope * 30, top)]
            for (x0, y0), (x1, y1) in pairwise(corners):
                axes.plot([x0, x1], [y0 / 1e9, y1 / 1e9], color=canvas.INK, linestyle=style, linewidth=0.9)
            axes.annotate(name, (corners[-1][0], top / 1e9), ha="right", va="bottom")
        for number, row in enumerate(rows):
            network_name = row["name"].partition("@")[0] if row["source"] == "kilolayer" else first
            network = replace(describe(network_name), image_size=row["image_side"])
            point_style: dict[str, Any] = {"marker": canvas.marker(number), "color": canvas.colour(number)}
            x = arithmetic_intensity(network, comparison["work"], 2 if row["precision"] == "bf16" else 4)
            axes.plot([x], [row["flops"] / 1e9], ms=5, **point_style)
        canvas.plain_ticks(axes.xaxis)
        canvas.plain_ticks(axes.yaxis)
        canvas.add_legend(figure, names)

    return canvas.draw_svg(title, paint, canvas.HEIGHT + canvas.legend_height(names))
