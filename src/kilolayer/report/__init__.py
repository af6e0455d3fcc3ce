"""Reports: pages, figures as SVG, tables in four formats, drawings of units, and the lens.

    curve = Curve.from_metrics("ResNet-164", read_metrics(run / "metrics.jsonl"))
    drawing = plots.training_curves([curve], title="Training of ResNet-164")
    page = Page("ResNet-164", sections=(Section("Training", items=(Figure("…", drawing, alt="…"),)),))
    write_page(page, run / "report.html")

All functions are pure functions of plain values. matplotlib and jinja2 are imported when they are first
needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kilolayer.lazy import lazy_attributes

if TYPE_CHECKING:
    from kilolayer.report import plots, table_formats
    from kilolayer.report.curves import Curve, read_metrics
    from kilolayer.report.document import Figure, Item, Listing, Page, Section, Table
    from kilolayer.report.page import render_page, write_page
    from kilolayer.report.plots import DepthLine, Profile

_HOMES = {
    "Curve": "curves",
    "read_metrics": "curves",
    "Figure": "document",
    "Item": "document",
    "Listing": "document",
    "Page": "document",
    "Section": "document",
    "Table": "document",
    "render_page": "page",
    "write_page": "page",
    "DepthLine": "plots",
    "Profile": "plots",
}

__getattr__, __dir__ = lazy_attributes(__name__, _HOMES, ("plots", "table_formats"))

__all__ = [
    "Curve",
    "DepthLine",
    "Figure",
    "Item",
    "Listing",
    "Page",
    "Profile",
    "Section",
    "Table",
    "plots",
    "read_metrics",
    "render_page",
    "table_formats",
    "write_page",
]
