"""kilolayer analyse: how signal and gradient travel through networks, measured and predicted by theory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from kilolayer.cli.option_types import (
    OptionalFile,
    OptionalFolder,
    Switch,
    check_positive,
    check_seed_count,
    choice_option,
)
from kilolayer.cli.options import AnalysisInputOptions, UnitOptions
from kilolayer.measure.analyses import ANALYSES

ANALYSIS_NAMES = tuple(ANALYSES)


@dataclass(frozen=True)
class AnalyseOptions:
    """Analyse networks: how signal and gradient travel through their units.

    A network is a name (as initialised), a run's folder (trained, and at its snapshots), a weights file,
    or FILE.py:CALLABLE, your own module, whose code is then run.
    """

    what: Annotated[
        Positional[str],
        choice_option(*ANALYSIS_NAMES, "all"),
        arg(metavar="WHAT", help=f"{', '.join(ANALYSIS_NAMES)}, or all."),
    ]
    networks: Annotated[Positional[tuple[str, ...]], arg(metavar="NETWORK_OR_RUN...")]
    """One network, or several side by side."""
    out: OptionalFolder = None
    """Write every result as JSON and every chart as SVG into this folder."""
    html: OptionalFile = None
    """Write an interactive page with all charts."""
    json: Switch = False
    """Print JSON."""
    inputs: OmitArgPrefixes[AnalysisInputOptions] = AnalysisInputOptions()  # noqa: RUF009 - frozen
    unit: OmitArgPrefixes[UnitOptions] = UnitOptions()  # noqa: RUF009 - frozen


def execute(options: AnalyseOptions) -> int:
    """Runs the analyses, prints them, and writes the files that the options name."""
    check_positive(options.inputs, "batch_size", "seeds")
    check_seed_count(options.inputs.seeds)
    if options.html is not None or options.out is not None:
        from kilolayer.report.extra import check_installed

        check_installed()
    from kilolayer.cli.analysis_inputs import load_analysis_inputs, print_missing_predictions
    from kilolayer.measure.analysis_results import run_analyses
    from kilolayer.report import analysis_report as output

    inputs = load_analysis_inputs(options.networks, options.inputs, options.unit)
    print_missing_predictions(options.what, inputs)
    results = run_analyses(options.what, inputs)
    if options.json:
        output.print_analyses_json(results)
    else:
        output.print_analyses(results)
    if options.out is not None:
        output.write_analyses(results, options.out)
    if options.html is not None:
        output.write_analysis_page(results, options.html)
    if not options.json:
        output.print_written_paths(options.out, options.html)
    return 0
