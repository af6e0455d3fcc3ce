"""An experiment: a network, data, a recipe and a seed, as one value that JSON can hold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from kilolayer.data.describe import Data, default_augmentation
from kilolayer.errors import InputError
from kilolayer.networks.description import Network
from kilolayer.training.recipes import Recipe

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Experiment:
    """Everything that decides a run's figures.

    `precision` "bf16" computes in autocast bfloat16 over fp32 weights. `channels_last`, `compile` and
    `grad_checkpointing` change speed and memory, and rounding. Without a validation split the error
    of every `evaluate_every`-th epoch is the test error, as the papers' curves show it; with one it
    is the validation error, and the test set is read once, at the end.
    """

    network: Network
    data: Data
    recipe: Recipe
    seed: int = 0
    precision: Precision = "fp32"
    channels_last: bool = False
    compile: bool = False
    grad_checkpointing: bool = False
    evaluate_every: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise InputError(f"seed is {self.seed!r}; allowed: a whole number from 0")
        if self.precision not in ("fp32", "bf16"):
            raise InputError(f"precision is {self.precision!r}; allowed: 'fp32', 'bf16'")
        every = self.evaluate_every
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise InputError(f"evaluate_every is {self.evaluate_every!r}; allowed: a whole number from 1")


def fitted(network: Network, *, classes: int, in_chans: int, image_size: int) -> Network:
    """`network` for the classes, channels and size of a data set."""
    return replace(network, num_classes=classes, in_chans=in_chans, image_size=image_size)


def with_data(recipe: Recipe, data: Data) -> Recipe:
    """`recipe` with the augmentation that suits the data: a mirrored digit is no digit."""
    return replace(recipe, augmentation=default_augmentation(data))
