"""Recipes in words: a table of all recipes, or of the fields in which some of them differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from kilolayer.report.document import Table
from kilolayer.system.terminal import print_table
from kilolayer.training import (
    SGD,
    AdamW,
    OneCycle,
    ProgressiveDepth,
    ProgressiveResize,
    Recipe,
    Steps,
    Warmup,
)


def field_text(value: Any) -> str:
    """The value of a recipe's field in words."""
    match value:
        case Steps(start, drops):
            return "".join([f"{start:g}", *(f", {rate:g} from {at:,}" for at, rate in drops)])
        case Warmup(rate, until, then):
            return f"{rate:g} up to {until:,}, then {field_text(then)}"
        case OneCycle(peak, _, rise):
            return f"linear 0 to {peak:g} in {rise:.0%} of the steps, then to 0"
        case ProgressiveResize(start, changes) | ProgressiveDepth(start, changes):
            later = (f", {scale:g} from {share:.0%} of the steps" for share, scale in changes)
            return "".join([f"{start:g}", *later])
        case SGD(momentum, nesterov):
            kind = "Nesterov momentum" if nesterov else "momentum"
            return f"SGD, {kind} {momentum:g}"
        case AdamW(betas, eps):
            return f"AdamW, betas {betas[0]:g} and {betas[1]:g}, eps {eps:g}"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:g}"
        case _:
            return _augmentation(value) if hasattr(value, "cutout") else str(value).replace("_", " ")


def _augmentation(value: Any) -> str:
    parts = [f"pad {value.pad} and crop"] if value.pad else []
    if crop := value.resized_crop:
        parts += [f"crop {crop.area[0]:.0%} to {crop.area[1]:.0%} of the area and resize"]
    parts += ["mirror"] if value.flip else []
    parts += [f"cutout {value.cutout}"] if value.cutout else []
    if jitter := value.color_jitter:
        by = (f"{name} ±{getattr(jitter, name):.0%}" for name in ("contrast", "brightness", "saturation"))
        parts += by
    return ", ".join(parts) or "none"


def print_recipes(chosen: Sequence[Recipe], *, overview: bool) -> None:
    """Prints the main fields of each recipe, or every field in which the recipes differ."""
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]
    if overview:
        headings = ("recipe", "steps", "batch", "decay", "learning rate (by step)")
        rows = [
            (r.name, *map(field_text, (r.iterations, r.batch_size, r.weight_decay, r.rate))) for r in chosen
        ]
    else:
        headings = ("", *(recipe.name for recipe in chosen))
        rows = list(_differing(chosen))
    print_table(Table("", headings, tuple(rows)), blocks=not overview)


def _differing(chosen: Sequence[Recipe]) -> list[tuple[str, ...]]:
    """A row for each field in which the recipes differ; all fields for a single recipe."""
    names = [field.name for field in fields(Recipe) if field.name != "name"]
    table = [(name, [getattr(recipe, name) for recipe in chosen]) for name in names]
    return [
        (name.replace("_", " "), *map(field_text, values))
        for name, values in table
        if len(chosen) == 1 or any(value != values[0] for value in values)
    ]
