"""kilolayer show: one network: its counts, its unit drawn, its stages, its description."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import OmitArgPrefixes

from kilolayer.commands.assemble import described
from kilolayer.commands.flags import Name, OptionalFile, Switch
from kilolayer.commands.options import UnitOptions
from kilolayer.errors import InputError
from kilolayer.networks import Network
from kilolayer.values import to_json

if TYPE_CHECKING:
    from kilolayer.report.content import Table


@dataclass(frozen=True)
class Show:
    """Show a network: sizes, its unit drawn, its stages, and its description."""

    name: Name
    """A network's name, any admissible depth will do; or a run's folder or weights file, for its network."""
    svg: OptionalFile = None
    """Draw the unit into this SVG file."""
    json: Switch = False
    """Print only the description, as JSON."""
    unit: OmitArgPrefixes[UnitOptions] = UnitOptions()  # noqa: RUF009 - frozen


def show(options: Show) -> int:
    """Prints the network, and writes the drawing where one is asked for."""
    network = _network(options)
    if options.svg is not None:
        _draw(network, options.name, Path(options.svg))
    if options.json:
        print(to_json(network))
    else:
        _print(options.name, network)
    return 0


def _network(options: Show) -> Network:
    """The network of that name, or of the run or weights file that lies there."""
    path = Path(options.name)
    if not path.is_file() and not (path / "config.json").is_file():
        return described(options.name, options.unit)
    if options.unit != UnitOptions():
        raise InputError(f"{path} has its own units; options that change them are for a network's name")
    from kilolayer.runs import Run, read_weights

    return Run.open(path).experiment().network if path.is_dir() else read_weights(path).model.description


def _print(name: str, network: Network) -> None:
    from kilolayer.networks.drawing import unit_text
    from kilolayer.terminal import say, show_table

    sizes = f"{network.parameters:,} parameters, {network.multiply_adds:,} multiply-adds"
    say(f"{name}: {network.depth} layers, {sizes} at {network.image_size}×{network.image_size}\n")
    print(unit_text(network.unit), flush=True)
    print(flush=True)
    show_table(_stages(network), drop=("output",))
    say("\nthe description as JSON: --json")


def _stages(network: Network) -> Table:
    from kilolayer.networks.drawing import stage_table
    from kilolayer.report.content import Table

    rows = (
        (row.stage, row.output, row.units, f"{row.parameters:,}", f"{row.multiply_adds:,}")
        for row in stage_table(network)
    )
    return Table("", ("stage", "output", "units", "parameters", "multiply-adds"), tuple(rows))


def _draw(network: Network, name: str, path: Path) -> None:
    from kilolayer.networks.drawing import unit_svg

    try:
        path.write_text(unit_svg(network.unit, title=name), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
