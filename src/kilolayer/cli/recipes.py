"""kilolayer recipes: the named recipes, or the differences between some of them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from kilolayer.cli.option_types import OptionalNames, Switch, Whole
from kilolayer.errors import InputError
from kilolayer.training import (
    RECIPES,
    SGD,
    AdamW,
    OneCycle,
    ProgressiveDepth,
    ProgressiveResize,
    Recipe,
    Steps,
    Warmup,
    recipe_by_name,
)
from kilolayer.values import to_json


@dataclass(frozen=True)
class RecipesOptions:
    """List the recipes; show one in full, or the differences between several."""

    names: OptionalNames = ()
    """The recipes to show."""
    images: Whole = 50_000
    """The number of training images, on which recipes that count in epochs depend."""
    json: Switch = False
    """Print JSON."""


def execute(options: RecipesOptions) -> int:
    """Prints the recipes."""
    from kilolayer.system.terminal import print_text

    if options.images < 1:
        raise InputError(f"--images is {options.images}; allowed: a whole number from 1")
    chosen = [recipe_by_name(name, options.images) for name in options.names or RECIPES]
    if options.json:
        print(to_json(chosen))
    else:
        _print(chosen, overview=not options.names)
        print_text(
            f"\nSteps are for {options.images:,} training images (--images N). Recipes that count in epochs "
            "adapt to your data."
        )
    return 0


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


def _print(chosen: list[Recipe], *, overview: bool) -> None:
    from kilolayer.report.document import Table
    from kilolayer.system.terminal import print_table

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


def _differing(chosen: list[Recipe]) -> list[tuple[str, ...]]:
    """A row for each field in which the recipes differ; all fields for a single recipe."""
    names = [field.name for field in fields(Recipe) if field.name != "name"]
    table = [(name, [getattr(recipe, name) for recipe in chosen]) for name in names]
    return [
        (name.replace("_", " "), *map(field_text, values))
        for name, values in table
        if len(chosen) == 1 or any(value != values[0] for value in values)
    ]
