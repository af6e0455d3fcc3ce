"""Reports: a run's or a table's measurements as one page, its figures as SVG, its tables in four formats.

    curve = Curve.from_metrics("ResNet-164", read_metrics(run / "metrics.jsonl"))
    drawing = plots.training([curve], title="Training of ResNet-164")
    page = Page("ResNet-164", sections=(Section("Training", items=(Figure("…", drawing, alt="…"),)),))
    write(page, run / "report.html")

Everything is a pure function of plain values; matplotlib and jinja2 are imported only when they are used.
"""

from kilolayer.report import plots, table_formats
from kilolayer.report.curves import Curve, read_metrics
from kilolayer.report.document import Figure, Item, Listing, Page, Section, Table
from kilolayer.report.page import render_page, write_page
from kilolayer.report.plots import DepthLine, Profile

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
