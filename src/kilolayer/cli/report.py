"""kilolayer report: a page with the curves and tables of a run, of several runs, or of a sweep."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from kilolayer.cli.option_types import OwnUnit
from kilolayer.errors import InputError, missing_path_error
from kilolayer.system.printer import print_line


@dataclass(frozen=True)
class ReportOptions:
    """Write the report of a sweep, of a run, or of a folder of runs.

    A sweep (kilolayer reproduce) gives a page, findings.json, and its tables as Markdown, LaTeX
    and CSV; a run or a folder of runs gives a page with its curves and figures.
    """

    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")]
    """The folder of the sweep, of the run, or of the runs. The report goes there."""
    unit: OwnUnit = None
    """The FILE.py that defines a run's unit. Its code runs."""


def execute(options: ReportOptions) -> int:
    """Writes the report, and prints the findings and the path of the page."""
    from kilolayer.report.extra import check_installed

    folder = Path(options.folder)
    if not folder.is_dir():
        if not os.path.exists(folder):
            raise missing_path_error(folder)
        raise InputError(f"{folder} is a file; give the folder of a sweep, of a run or of runs")
    check_installed()
    if (folder / "sweep.json").exists():
        from kilolayer.report.reproduction_report import print_findings, write_reproduction
        from kilolayer.sweep.reproduction import open_sweep

        reproduction = open_sweep(folder)
        print_findings(reproduction, write_reproduction(reproduction), False)
    else:
        from kilolayer.report.runs_page import write_runs_page
        from kilolayer.system.terminal import print_text

        path, sentences = write_runs_page(folder)
        for sentence in sentences:
            print_text(sentence)
        print_line(f"report: {path.resolve()}")
    return 0
