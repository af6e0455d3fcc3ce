"""Finds the modules of a network that are its residual units."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from kilolayer.errors import InputError
from kilolayer.units import ResidualUnit

NamedModules = tuple[tuple[str, nn.Module], ...]


def find_residual_units(model: nn.Module, names: Sequence[str] = ()) -> NamedModules:
    """The units of `model` with their names, in the order of registration.

    Args:
        model: any module.
        names: dotted names of its units, or patterns that match part by part, as "layer?.*". Without names
            the units are Kilolayer's `ResidualUnit` modules.

    Raises:
        InputError: the model has no `ResidualUnit`, or no module matches a name.

    >>> from kilolayer.networks import build, describe
    >>> model = build(describe("resnet8_cifar"))
    >>> len(find_residual_units(model))
    3
    """
    if names:
        selected = [pair for name in names for pair in _match_modules(model, name)]
        return tuple(dict(selected).items())
    units = [(name, part) for name, part in model.named_modules() if isinstance(part, ResidualUnit)]
    if not units:
        raise InputError(
            f"{type(model).__name__} has no residual units of Kilolayer's; name the modules that are its "
            "units, as --units 'layer?.*' (units=['layer?.*'])"
        )
    return tuple(units)


def _match_modules(model: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    parts = name.split(".")
    modules = dict(model.named_modules())
    matches = [pair for pair in modules.items() if _matches_pattern(pair[0].split("."), parts)]
    if not matches:
        near = get_close_matches(name, list(modules)[1:], n=3, cutoff=0.0)
        raise InputError(f"{type(model).__name__} has no module {name!r}; nearest: {', '.join(near)}")
    return matches


def _matches_pattern(parts: list[str], patterns: list[str]) -> bool:
    if len(parts) != len(patterns):
        return False
    return all(fnmatchcase(word, pattern) for word, pattern in zip(parts, patterns, strict=True))
