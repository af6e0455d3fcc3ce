"""Recipes in words: a table of all recipes, or of the fields in which some of them differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


DECAYS = {"all": "of all, BN too", "weights": "of weights only"}
"""Which parameters decay, by the value of `Recipe.decay`."""


def print_recipes(chosen: Sequence[Recipe], images: Mapping[str, int | None], *, overview: bool) -> None:
    """Prints the main fields of each recipe, or every field in which the recipes differ.

    `images` has the number of images that a recipe's steps are for; None where they do not depend on it.
    """
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]
    if overview:
        headings = OVERVIEW
        rows = [_overview(recipe, images[recipe.name]) for recipe in chosen]
    else:
        headings = ("", *(recipe.name for recipe in chosen))
        rows = list(_differing(chosen))
        rows.insert(1, ("images", *(_images(images[recipe.name]) for recipe in chosen)))
    print_table(Table("", headings, tuple(rows)), blocks=not overview, drop=LESS_NEEDED if overview else ())


OVERVIEW = ("recipe", "steps", "images", "batch", "momentum", "decay", "learning rate (by step)")
LESS_NEEDED = ("images", "momentum")
"""The columns that a narrow terminal leaves out, in this order; `kilolayer recipes NAME` has them all."""


def _overview(recipe: Recipe, images: int | None) -> tuple[str, ...]:
    momentum = field_text(recipe.optimizer).removeprefix("SGD, ").replace("momentum ", "")
    decay = f"{field_text(recipe.weight_decay)} {DECAYS[recipe.decay]}"
    steps, batch, rate = map(field_text, (recipe.iterations, recipe.batch_size, recipe.rate))
    return recipe.name, steps, _images(images), batch, momentum, decay, rate


def _images(number: int | None) -> str:
    return "any" if number is None else f"{number:,}"


def _differing(chosen: Sequence[Recipe]) -> list[tuple[str, ...]]:
    """A row for each field in which the recipes differ; all fields for a single recipe."""
    names = [field.name for field in fields(Recipe) if field.name != "name"]
    table = [(name, [getattr(recipe, name) for recipe in chosen]) for name in names]
    return [
        (name.replace("_", " "), *(DECAYS.get(value) or field_text(value) for value in values))
        for name, values in table
        if len(chosen) == 1 or any(value != values[0] for value in values)
    ]
