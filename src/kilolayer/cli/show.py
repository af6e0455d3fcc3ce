"""kilolayer show: a network's sizes, its unit as a drawing, its stages, and its description."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import OmitArgPrefixes

from kilolayer.cli.assemble import describe_with_options
from kilolayer.cli.option_types import NameArgument, OptionalFile, Switch
from kilolayer.cli.options import UnitOptions
from kilolayer.errors import InputError
from kilolayer.networks import Network
from kilolayer.system.printer import print_json_text
from kilolayer.values import to_json


@dataclass(frozen=True)
class ShowOptions:
    """Show a network: its sizes, a drawing of its unit, its stages, and its description."""

    name: NameArgument
    """A network's name, with any valid depth; or the folder of a run, or a weights file."""
    svg: OptionalFile = None
    """Draw the unit into this SVG file."""
    json: Switch = False
    """Print only the description, as JSON."""
    unit: OmitArgPrefixes[UnitOptions] = UnitOptions()  # noqa: RUF009 - frozen


def execute(options: ShowOptions) -> int:
    """Prints the network, and writes the drawing that --svg names."""
    network = _network(options)
    if options.svg is not None:
        _draw(network, options.name, Path(options.svg))
    if options.json:
        print_json_text(to_json(network))
    else:
        from kilolayer.report.network_text import print_network

        print_network(options.name, network)
    return 0


def _network(options: ShowOptions) -> Network:
    """The network of this name, or of the run or weights file at this path."""
    path = Path(options.name)
    if not path.is_file() and not (path / "config.json").is_file():
        return describe_with_options(options.name, options.unit)
    if options.unit != UnitOptions():
        raise InputError(f"{path} has its own units; options that change units need a network's name")
    from kilolayer.runs import Run, read_weights

    return Run.open(path).experiment().network if path.is_dir() else read_weights(path).model.description


def _draw(network: Network, name: str, path: Path) -> None:
    from kilolayer.report.unit_svg import unit_svg

    try:
        path.write_text(unit_svg(network.unit, title=name), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
