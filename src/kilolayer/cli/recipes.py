"""kilolayer recipes: the named recipes, or the differences between some of them."""

from __future__ import annotations

from dataclasses import dataclass

from kilolayer.cli.option_types import OptionalNames, Switch, Whole, check_positive
from kilolayer.training import RECIPES, recipe_by_name
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
    from kilolayer.report.recipe_text import print_recipes
    from kilolayer.system.terminal import print_text

    check_positive(options, "images")
    chosen = [recipe_by_name(name, options.images) for name in options.names or RECIPES]
    if options.json:
        print(to_json(chosen))
    else:
        print_recipes(chosen, overview=not options.names)
        print_text(
            f"\nSteps are for {options.images:,} training images (--images N). Recipes that count in epochs "
            "adapt to your data."
        )
    return 0
