"""kilolayer recipes: the named recipes, or the differences between some of them."""

from __future__ import annotations

from dataclasses import dataclass

from kilolayer.cli.option_types import OptionalNames, OptionalWhole, Switch, check_positive
from kilolayer.system.printer import print_json
from kilolayer.training import RECIPES, recipe_by_name
from kilolayer.training.recipes import counts_in_epochs, paper_images
from kilolayer.values import to_json_value


@dataclass(frozen=True)
class RecipesOptions:
    """List the recipes; show one in full, or the differences between several."""

    names: OptionalNames = ()
    """The recipes to show."""
    images: OptionalWhole = None
    """The number of training images, on which recipes that count in epochs depend; otherwise the paper's own:
    50,000 of CIFAR, 1,281,167 of ImageNet."""
    json: Switch = False
    """Print JSON."""


def execute(options: RecipesOptions) -> int:
    """Prints the recipes."""
    from kilolayer.report.recipe_text import print_recipes
    from kilolayer.system.terminal import print_text

    check_positive(options, "images")
    images = {name: options.images or paper_images(name) for name in options.names or RECIPES}
    chosen = {recipe_by_name(name, number): number for name, number in images.items()}
    counted = {
        recipe.name: number if counts_in_epochs(recipe.name) else None for recipe, number in chosen.items()
    }
    if options.json:
        values = [
            to_json_value(recipe) | {"images": counted[recipe.name], "initialisation": None}
            for recipe in chosen
        ]
        print_json(values)
        return 0
    print_recipes(list(chosen), counted, overview=not options.names)
    told = (
        f"{options.images:,} training images"
        if options.images
        else "the data of its paper, or CIFAR's 50,000"
    )
    print_text(
        f"\nA recipe that counts in epochs adapts to your data; its steps are for {told} (--images N). "
        "No recipe sets the initialisation: it is the network's, He's normal unless its unit states another."
    )
    return 0
