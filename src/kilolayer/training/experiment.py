"""An experiment: a network, data, a recipe and a seed, as one value that JSON can hold."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from kilolayer.data.config import Augmentation, Data, default_augmentation
from kilolayer.errors import InputError
from kilolayer.networks.description import Network
from kilolayer.networks.progressive_depth import active_network, check_progressive_depth
from kilolayer.training.memory_budget import parse_memory
from kilolayer.training.recipes import Recipe

Precision = Literal["fp32", "bf16"]
MemoryFormat = Literal["channels_first", "channels_last"]
Kernels = Literal["plain", "fused"]
CompileMode = Literal["off", "units", "model"]
EvaluationMode = Literal["plain", "folded"]


@dataclass(frozen=True)
class InitialWeights:
    """A file of weights to begin with, and the SHA-256 of its bytes, so that a changed file is noticed.

    normalization: whose mean and scale normalise the input: those of the training "data", or those of the
        "file", which is one of ours and says how the images of its training were normalised.
    """

    path: str
    sha256: str
    normalization: Literal["data", "file"] = "data"


@dataclass(frozen=True)
class Experiment:
    """Everything that decides the figures of a run.

    seed: decides initial weights, order, augmentation and dropout.
    precision: "fp32", or "bf16": bfloat16 autocast over fp32 weights.
    memory_format, compile, graph, kernels, evaluation: change speed, memory and rounding. `compile` compiles
        each kind of unit, or the whole model; `graph` replays each step as one CUDA graph; `kernels` "fused"
        computes whole units at once in training (`kilolayer.kernels`); `evaluation` "folded" evaluates the
        network with BN folded into its convolutions (`kilolayer.kernels.fold`).
    activation_memory: "fastest", "balanced", "smallest", or bytes as "2GB" (see
        `kilolayer.training.memory_plan`); changes no bit of the figures.
    evaluate_every: epochs between two evaluations. Without a validation split they are on the test set, as in
        the papers' curves; with one they are on it, and the test set is read once, at the end.
    init: the weights to begin with in place of random ones; `kilolayer.weights.load_initial_weights` loads
        them.

    Raises `InputError` for values out of range and for combinations that are impossible.
    """

    network: Network
    data: Data
    recipe: Recipe
    seed: int = 0
    precision: Precision = "fp32"
    memory_format: MemoryFormat = "channels_first"
    compile: CompileMode = "off"
    graph: bool = False
    kernels: Kernels = "plain"
    evaluation: EvaluationMode = "plain"
    activation_memory: str = "fastest"
    evaluate_every: int = 1
    init: InitialWeights | None = None

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise InputError(f"seed is {self.seed!r}; allowed: a whole number from 0 to {2**63 - 1}")
        if self.precision not in ("fp32", "bf16"):
            raise InputError(f"precision is {self.precision!r}; allowed: 'fp32', 'bf16'")
        if self.memory_format not in ("channels_first", "channels_last"):
            raise InputError(
                f"memory_format is {self.memory_format!r}; allowed: 'channels_first', 'channels_last'"
            )
        if self.kernels not in ("plain", "fused"):
            raise InputError(f"kernels is {self.kernels!r}; allowed: 'plain', 'fused'")
        if self.evaluation not in ("plain", "folded"):
            raise InputError(f"evaluation is {self.evaluation!r}; allowed: 'plain', 'folded'")
        if self.compile not in ("off", "units", "model"):
            raise InputError(f"compile is {self.compile!r}; allowed: 'off', 'units', 'model'")
        parse_memory(self.activation_memory)
        if self.compile != "off" and self.activation_memory != "fastest":
            raise InputError(
                f"compile and activation_memory {self.activation_memory!r} exclude each other; use 'fastest'"
            )
        every = self.evaluate_every
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise InputError(f"evaluate_every is {self.evaluate_every!r}; allowed: a whole number from 1")
        self._check_progressive_resize()
        self._check_trunk()
        if self.recipe.progressive_depth.changes:
            check_progressive_depth(self.network)
            if self.init is not None:
                raise InputError(
                    "progressive_depth begins with F = 0, and init gives weights; use one of them"
                )

    def _check_trunk(self) -> None:
        if not self.recipe.trunk_frozen:
            return
        if self.init is None:
            raise InputError(
                "the trunk is frozen, but its weights are random; give weights with --init, or leave out "
                "--freeze-trunk"
            )
        if self.kernels == "fused":
            raise InputError(
                "the trunk is frozen, and fused kernels are for units that learn; use kernels plain"
            )

    def _check_progressive_resize(self) -> None:
        full, total_stride = self.network.image_size, self.network.total_stride
        for _, side in self.recipe.progressive_resize.phase_sides(full, self.recipe.iterations):
            if side < total_stride:
                least = math.ceil(1000 * total_stride / full) / 1000
                raise InputError(
                    f"progressive_resize: images of {side} of {full} pixels a side are too small for a "
                    f"network that divides them by {total_stride}; allowed: scales from {least:g}"
                )

    @property
    def channels_last(self) -> bool:
        """Whether weights and images lie in memory with their channels last."""
        return self.memory_format == "channels_last"

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of a forward pass over all images of the run, at each step's size and depth."""
        return self.multiply_adds_until(self.recipe.iterations)

    def multiply_adds_until(self, iteration: int) -> int:
        """Multiply-adds of one forward pass over the images of the steps before `iteration`."""
        recipe, total = self.recipe, 0
        schedules = recipe.progressive_resize, recipe.progressive_depth
        starts = {first for schedule in schedules for first, _ in schedule.phases(recipe.iterations)}
        for first, end in pairwise(sorted({start for start in starts if start < iteration} | {iteration})):
            side = recipe.progressive_resize.side_at(self.network.image_size, first, recipe.iterations)
            network = active_network(
                self.network, recipe.progressive_depth.share_at(first, recipe.iterations)
            )
            total += (end - first) * replace(network, image_size=side).multiply_adds
        return recipe.batch_size * total


def memory_format_for(precision: Precision) -> MemoryFormat:
    """The memory format in which convolutions in `precision` are fastest.

    >>> memory_format_for("bf16")
    'channels_last'
    """
    return "channels_last" if precision == "bf16" else "channels_first"


def network_for_data(network: Network, *, classes: int, in_chans: int, image_size: int) -> Network:
    """`network` with the classes, channels and image size of a data set."""
    return replace(network, num_classes=classes, in_chans=in_chans, image_size=image_size)


def recipe_for_data(recipe: Recipe, data: Data) -> Recipe:
    """`recipe`, with the augmentation that suits `data`: a mirrored digit is no digit."""
    suited = default_augmentation(data)
    return recipe if suited == Augmentation() else replace(recipe, augmentation=suited)
