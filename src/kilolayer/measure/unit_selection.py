"""Finds the modules of a network that are its residual units."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
        names: dotted names of its units, or patterns that match part by part, as "layer?.*". A number in
            brackets behind the name of a module, as "blocks.3[1]" or "blocks.*[1]", names one addition of
            it. Without names the units are Kilolayer's `ResidualUnit` modules.

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


def named_additions(model: nn.Module, names: Sequence[str]) -> dict[str, frozenset[int]]:
    """The additions, from 1, that `names` ask for, of modules that are not named as a whole.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> named_additions(model, ["*[2]", "1"])
    {'0': frozenset({2})}
    """
    additions: dict[str, frozenset[int]] = {}
    whole: set[str] = set()
    for name in names:
        addition = _addition(model, name)
        for module, _ in _match_modules(model, name):
            if addition:
                additions[module] = additions.get(module, frozenset()) | {addition}
            else:
                whole.add(module)
    return {module: numbers for module, numbers in additions.items() if module not in whole}


def check_additions(additions: Mapping[str, frozenset[int]], held: Mapping[str, int]) -> None:
    """Checks that the modules hold the additions that were named. Raises `InputError`.

    Args:
        additions: the numbers that were named, by module.
        held: how many additions each module has.
    """
    for module, numbers in additions.items():
        count = held[module]
        if missing := [number for number in sorted(numbers) if number > count]:
            names = f"{module}[1] to {module}[{count}]" if count > 1 else "one, the module itself"
            raise InputError(f"there is no '{module}[{missing[0]}]': the additions of {module!r} are {names}")


_ADDITION = re.compile(r"(.*[^.])\[([1-9]\d*)\]")


def _addition(model: nn.Module, name: str) -> int | None:
    """The number in brackets behind the name of a module; None where the name is one of modules alone."""
    match = _ADDITION.fullmatch(name)
    return int(match[2]) if match and _modules_of(model, match[1]) else None


def _match_modules(model: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    match = _ADDITION.fullmatch(name)
    matches = (match and _modules_of(model, match[1])) or _modules_of(model, name)
    if not matches:
        modules = [module for module, _ in model.named_modules()][1:]
        near = get_close_matches(name, modules, n=3, cutoff=0.0)
        raise InputError(f"{type(model).__name__} has no module {name!r}; nearest: {', '.join(near)}")
    return matches


def _modules_of(model: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    parts = name.split(".")
    named = (pair for pair in model.named_modules() if pair[0])  # the model itself has no name
    return [pair for pair in named if _matches_pattern(pair[0].split("."), parts)]


def _matches_pattern(parts: list[str], patterns: list[str]) -> bool:
    if len(parts) != len(patterns):
        return False
    return all(fnmatchcase(word, pattern) for word, pattern in zip(parts, patterns, strict=True))
