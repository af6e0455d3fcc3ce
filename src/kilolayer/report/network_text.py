"""Networks in words: the facts of a named network, a table of networks, and one network with its stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kilolayer.networks import Network, describe
from kilolayer.networks.stage_table import stage_table
from kilolayer.report.document import Table
from kilolayer.report.unit_text import unit_text
from kilolayer.system.printer import print_line
from kilolayer.system.terminal import print_table, print_text
from kilolayer.units.branch import Aggregated, Basic, Bottleneck, OneLayer


def model_facts(name: str) -> dict[str, Any]:
    """The facts about a named network as a JSON value."""
    network = describe(name)
    return {
        "name": name,
        "depth": network.depth,
        "unit": unit_kind(network),
        "parameters": network.parameters,
        "multiply_adds": network.multiply_adds,
        "family": "cifar" if name.endswith("_cifar") else "imagenet",
        "image_size": network.image_size,
        "paper_error": paper_error(name),
    }


def paper_error(name: str) -> dict[str, Any] | None:
    """The first top-1 error in percent that the papers report of this network, and where."""
    from kilolayer.papers import reported_errors  # all tables; `show` needs none

    reported = reported_errors(name)
    return reported[0]._asdict() if reported else None


def unit_kind(network: Network) -> str:
    """The kind of F in a word: basic, bottleneck, one-layer, wide ×10, or ResNeXt's 32×4d."""
    branch = network.unit.branch
    match branch:
        case Aggregated():
            return f"{branch.cardinality}×{branch.d}d"
        case OneLayer():
            return "one-layer"
        case Basic(widen) | Bottleneck(widen) if widen > 1:
            return f"wide ×{widen}"
        case _:
            return type(branch).__name__.lower()


def print_networks(names: Sequence[str]) -> None:
    """Prints a table of the named networks."""
    rows = tuple(_cells(model_facts(name)) for name in names)
    header = ("name", "depth", "unit", "parameters", "mult-add", "papers' error %")
    print_table(Table("", header, rows), drop=("unit", "mult-add"))
    print_text("\npapers' error: the top-1 error that a paper reports, on CIFAR-10 (_cifar) or ImageNet.")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    error = row["paper_error"]
    reported = f"{error['value']:.2f}" if error else ""
    sizes = f"{row['parameters']:,}", short_count(row["multiply_adds"])
    return row["name"], str(row["depth"]), row["unit"], *sizes, reported


def short_count(count: int) -> str:
    """A count with three or four digits: 40.6 M, 1.49 G."""
    unit, size = ("G", 1e9) if count >= 1e9 else ("M", 1e6)
    return (
        f"{count / size:.4g} {unit}"
        if count / size >= 1000
        else f"{count / size:#.3g} {unit}".replace(". ", " ")
    )


def print_network(name: str, network: Network) -> None:
    """Prints a network's sizes, its unit as a drawing, and its stages."""
    sizes = f"{network.parameters:,} parameters, {network.multiply_adds:,} multiply-adds"
    print_text(f"{name}: {network.depth} layers, {sizes} at {network.image_size}×{network.image_size}\n")
    for line in (*unit_text(network.unit).split("\n"), ""):
        print_line(line)
    print_table(_stages(network), drop=("output",))
    print_text("\nthe description as JSON: --json")


def _stages(network: Network) -> Table:
    rows = (
        (row.stage, row.output, row.units, f"{row.parameters:,}", f"{row.multiply_adds:,}")
        for row in stage_table(network)
    )
    return Table("", ("stage", "output", "units", "parameters", "multiply-adds"), tuple(rows))
