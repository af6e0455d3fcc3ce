"""kilolayer analyse: how signal and gradient travel through networks, measured and predicted by theory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from kilolayer.cli.option_types import (
    Device,
    OptionalFile,
    OptionalFolder,
    OptionalText,
    OptionalWhole,
    Switch,
    Whole,
    choice_option,
)
from kilolayer.cli.options import UnitOptions
from kilolayer.errors import InputError
from kilolayer.measure.registry import ANALYSES

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
    data: OptionalText = None
    """{DATASETS} or a PATH; otherwise the run's own data, and digits for all others."""
    data_folder: OptionalFolder = None
    """Where {DOWNLOADS} lie; otherwise $KILOLAYER_DATA or ~/.cache/kilolayer."""
    download: Switch = False
    """Fetch {DOWNLOAD} where it is missing."""
    image_size: OptionalWhole = None
    """Resize the images to this many pixels a side."""
    batch_size: Whole = 32
    """How many training images to send through the network."""
    seed: Whole = 0
    """Decides the initialisation and which images are used."""
    seeds: Whole = 1
    """How many initialisations to measure, counted from --seed, where an analysis measures several."""
    units: tuple[str, ...] = ()
    """Which modules of FILE.py:CALLABLE are its residual units: names or patterns, as 'layer?.*'."""
    device: Device = "auto"
    """auto (the first GPU, or else the CPU), cpu, cuda or cuda:1."""
    out: OptionalFolder = None
    """Write every result as JSON and every chart as SVG into this folder."""
    html: OptionalFile = None
    """Write an interactive page with all charts."""
    json: Switch = False
    """Print JSON."""
    unit: OmitArgPrefixes[UnitOptions] = UnitOptions()  # noqa: RUF009 - frozen


def execute(options: AnalyseOptions) -> int:
    """Runs the analyses, prints them, and writes the files that the options name."""
    for name in ("batch_size", "seeds"):
        if getattr(options, name) < 1:
            flag, value = name.replace("_", "-"), getattr(options, name)
            raise InputError(f"--{flag} is {value}; allowed: a whole number from 1")
    if options.html is not None or options.out is not None:
        from kilolayer.report.extra import check_installed

        check_installed()
    from kilolayer.cli.analysis_inputs import load_analysis_inputs
    from kilolayer.measure.analysis_results import run_analyses
    from kilolayer.report import analysis_report as output

    results = run_analyses(options.what, load_analysis_inputs(options))
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
