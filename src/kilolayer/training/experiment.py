"""An experiment: a network, data, a recipe and a seed, as one value that JSON can hold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from kilolayer.data.describe import Data, default_augmentation
from kilolayer.errors import InputError
from kilolayer.networks.description import Network
from kilolayer.training.budget import budget
from kilolayer.training.recipes import Recipe

Precision = Literal["fp32", "bf16"]
Kernels = Literal["plain", "fused"]


@dataclass(frozen=True)
class Init:
    """A file of weights to begin from, and the SHA-256 of its bytes, so that another one is noticed."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Experiment:
    """Everything that decides a run's figures.

    `precision` "bf16" computes in autocast bfloat16 over fp32 weights. `channels_last` and `compile`
    change speed and memory, and rounding; so does `kernels` "fused", where `kilolayer.kernels` computes whole
    units at once in training. `memory` is "fastest", "balanced", "smallest" or bytes as "2GB"
    (see `kilolayer.training.memory`), and changes no bit of the figures. Without a validation split the
    error of every `evaluate_every`-th epoch is the test error, as the papers' curves show it; with one it
    is the validation error, and the test set is read once, at the end. `init` says which weights stand in
    place of the random ones at the beginning; `kilolayer.weights.begin` puts them there.
    """

    network: Network
    data: Data
    recipe: Recipe
    seed: int = 0
    precision: Precision = "fp32"
    channels_last: bool = False
    compile: bool = False
    kernels: Kernels = "plain"
    memory: str = "fastest"
    evaluate_every: int = 1
    init: Init | None = None

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise InputError(f"seed is {self.seed!r}; allowed: a whole number from 0")
        if self.precision not in ("fp32", "bf16"):
            raise InputError(f"precision is {self.precision!r}; allowed: 'fp32', 'bf16'")
        if self.kernels not in ("plain", "fused"):
            raise InputError(f"kernels is {self.kernels!r}; allowed: 'plain', 'fused'")
        budget(self.memory)
        if self.compile and self.memory != "fastest":
            raise InputError(f"compile and memory {self.memory!r} exclude each other; use memory 'fastest'")
        every = self.evaluate_every
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise InputError(f"evaluate_every is {self.evaluate_every!r}; allowed: a whole number from 1")


def fitted(network: Network, *, classes: int, in_chans: int, image_size: int) -> Network:
    """`network` for the classes, channels and size of a data set."""
    return replace(network, num_classes=classes, in_chans=in_chans, image_size=image_size)


def with_data(recipe: Recipe, data: Data) -> Recipe:
    """`recipe` with the augmentation that suits the data: a mirrored digit is no digit."""
    return replace(recipe, augmentation=default_augmentation(data))
