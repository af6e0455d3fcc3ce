"""kilolayer analyse: how signal and gradient travel through networks, measured and as theory has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from kilolayer.commands.flags import (
    Device,
    OptionalFile,
    OptionalFolder,
    OptionalText,
    OptionalWhole,
    Switch,
    Whole,
    choice,
)
from kilolayer.commands.options import UnitOptions
from kilolayer.errors import InputError

WHAT = (
    "decomposition",
    "gradient",
    "shortcut",
    "responses",
    "initialisation",
    "paths",
    "jacobian",
    "landscape",
)


@dataclass(frozen=True)
class Analyse:
    """Analyse networks: how signal and gradient travel through their units.

    A network is a name (as initialised), a run's folder (trained, and at its snapshots), a weights file,
    or FILE.py:CALLABLE, your own module, whose code is then run.
    """

    what: Annotated[Positional[str], choice(*WHAT, "all"), arg(metavar="WHAT")]
    """decomposition, gradient, shortcut, responses, initialisation, paths, jacobian, landscape, or all."""
    networks: Annotated[Positional[tuple[str, ...]], arg(metavar="NETWORK_OR_RUN...")]
    """One network, or several side by side."""
    data: OptionalText = None
    """digits, cifar10, cifar100 or a PATH; otherwise the run's own data, and digits for all others."""
    data_folder: OptionalFolder = None
    """Where cifar10 and cifar100 lie; otherwise $KILOLAYER_DATA or ~/.cache/kilolayer."""
    download: Switch = False
    """Fetch cifar10 or cifar100 where it is missing."""
    image_size: OptionalWhole = None
    """Resize the images to this many pixels a side."""
    batch_size: Whole = 32
    """Training images to send through the network."""
    seed: Whole = 0
    """The initialisation, and which images."""
    seeds: Whole = 1
    """Initialisations to measure, from --seed on, where an analysis takes several."""
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


def analyse(options: Analyse) -> int:
    """Measures, prints, and writes what was asked for."""
    for name in ("batch_size", "seeds"):
        if getattr(options, name) < 1:
            flag, value = name.replace("_", "-"), getattr(options, name)
            raise InputError(f"--{flag} is {value}; allowed: a whole number from 1")
    if options.html is not None or options.out is not None:
        from kilolayer.report.optional import check_installed

        check_installed()
    from kilolayer.commands import analysis_output as output
    from kilolayer.commands.analysis_run import measured
    from kilolayer.commands.subjects import subjects

    found = measured(options.what, subjects(options))
    if options.json:
        output.print_json(found)
    else:
        output.show(found)
    if options.out is not None:
        output.write(found, options.out)
    if options.html is not None:
        output.write_page(found, options.html)
    if not options.json:
        output.show_written(options.out, options.html)
    return 0
