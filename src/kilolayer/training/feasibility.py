"""Whether an experiment can be trained on its data by so many processes, checked before anything is built."""

from __future__ import annotations

from dataclasses import replace

from kilolayer.data import Splits
from kilolayer.errors import InputError
from kilolayer.training.experiment import Experiment

MAX_EPOCHS = 999_999
"""The names of saved states have six digits for the epoch."""


def check_feasible(experiment: Experiment, splits: Splits, world_size: int) -> None:
    """Raises `InputError` where network, batch, data and number of processes do not fit together."""
    recipe, network, images = experiment.recipe, experiment.network, len(splits.train)
    batch_size = recipe.batch_size
    if batch_size > images:
        raise InputError(
            f"batch size {batch_size} is larger than the training set of {images} images; "
            f"take at most {images}"
        )
    if batch_size % world_size:
        raise InputError(
            f"batch size {batch_size} cannot be shared among {world_size} processes; "
            f"take a multiple of {world_size}"
        )
    # The BNs of a frozen trunk keep their statistics and measure none.
    if batch_size == world_size and not recipe.trunk_frozen:
        _check_variance(experiment, splits.image_size, world_size)
    epochs = -(-recipe.iterations // (images // batch_size))
    if epochs > MAX_EPOCHS:
        raise InputError(
            f"{recipe.iterations:,} steps of {batch_size} of {images:,} images are {epochs:,} epochs; "
            f"allowed: up to {MAX_EPOCHS:,}"
        )
    if network.num_classes != splits.num_classes or network.in_chans != splits.in_chans:
        raise InputError(
            f"the network has {network.num_classes} classes and {network.in_chans} input channels, "
            f"the data {splits.num_classes} and {splits.in_chans}"
        )


def _check_variance(experiment: Experiment, image_size: int, world_size: int) -> None:
    """Raises `InputError` where a BN would see one value per channel, with one image per process."""
    recipe = experiment.recipe
    for _, side in recipe.progressive_resize.phase_sides(image_size, recipe.iterations):
        network = replace(experiment.network, image_size=side)
        part = next((part for part, read in network.normalised_sides() if read == 1), None)
        if part is not None:
            larger = ", or a larger --progressive-resize" if side < image_size else ""
            raise InputError(
                f"a BN in {part} would see one value per channel, which has no variance: one image per "
                f"process at batch size {recipe.batch_size}, in a map of 1×1 pixels for images of {side}; "
                f"take a --batch-size of {2 * world_size} or more{larger}"
            )
