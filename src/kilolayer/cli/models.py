"""kilolayer models: the named networks with their exact sizes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any

import tyro

from kilolayer.cli.option_types import Switch
from kilolayer.errors import InputError
from kilolayer.networks import Network, describe, list_models
from kilolayer.units.branch import Aggregated, Basic, Bottleneck, OneLayer


@dataclass(frozen=True)
class ModelsOptions:
    """List the named networks with their exact sizes.

    Counts are for CIFAR-10 (names ending in _cifar) and ImageNet.

    Errors are the papers', in percent.
    """

    pattern: Annotated[
        tyro.conf.Positional[str], tyro.conf.arg(metavar="[PATTERN]", help_behavior_hint="")
    ] = "*"
    """Only the names that match, such as 'preact*' or '*_cifar'."""
    json: Switch = False
    """Print a JSON list."""


def execute(options: ModelsOptions) -> int:
    """Prints the table, or JSON."""
    names = _matching(options.pattern)
    if options.json:
        print(json.dumps([model_facts(name) for name in names], indent=2))
    else:
        _print_table(names)
    return 0


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
    from kilolayer.papers import reported_errors

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


def _matching(pattern: str) -> list[str]:
    if names := list_models(pattern):
        return names
    try:
        describe(pattern)
    except InputError:
        near = get_close_matches(pattern.strip("*"), list_models(), n=3, cutoff=0.0)
        raise InputError(f"no model matches {pattern!r}; nearest: {', '.join(near)}") from None
    return [pattern]


def _print_table(names: list[str]) -> None:
    from kilolayer.report.document import Table
    from kilolayer.system.terminal import print_table, print_text

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
