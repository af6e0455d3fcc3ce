"""kilolayer models: the named networks with their exact sizes."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated

import tyro

from kilolayer.cli.option_types import Switch
from kilolayer.errors import InputError
from kilolayer.networks import describe, list_models
from kilolayer.system.printer import print_json


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
    from kilolayer.report.network_text import model_facts, print_networks

    names = _matching(options.pattern)
    if options.json:
        print_json([model_facts(name) for name in names])
    else:
        print_networks(names)
    return 0


def _matching(pattern: str) -> list[str]:
    if names := list_models(pattern):
        return names
    try:
        describe(pattern)
    except InputError:
        near = get_close_matches(pattern.strip("*"), list_models(), n=3, cutoff=0.0)
        raise InputError(f"no model matches {pattern!r}; nearest: {', '.join(near)}") from None
    return [pattern]
