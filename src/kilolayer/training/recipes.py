"""Recipes: everything that a paper states about optimisation, as values.

`RECIPES` maps a name to a function of the number of training images, since some recipes count in
epochs. An epoch is ⌊images / batch size⌋ iterations, so that every batch is full.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from kilolayer.data.config import PHOTO_AUGMENTATION, Augmentation, Normalization
from kilolayer.errors import InputError, suggest
from kilolayer.training.optimizer import ADAMW_RATE_FACTOR, SGD, AdamW, Optimizer, check_fraction
from kilolayer.training.schedule import (
    OneCycle,
    ProgressiveDepth,
    ProgressiveResize,
    Schedule,
    Steps,
    Warmup,
    check_schedule_length,
)

MAX_ITERATIONS = 999_999_999
"""The names of saved states have nine digits for the iteration: with more, the newest would not sort last."""

MAX_WEIGHT_DECAY = 1e6
"""At any rate that trains, a higher weight decay flips the sign of the weights and soon overflows."""


@dataclass(frozen=True)
class Recipe:
    """How a network is optimised: `iterations` steps of `batch_size` images on the softmax cross-entropy.

    rate: the learning rate, a function of the iteration.
    batch_size: images per step, over all processes together.
    decay: which parameters decay: "all" (the released code) or "weights" (convolutions and classifier, but
        neither BN nor biases).
    trunk_rate: the learning rate of all layers but the classifier, as a share of the classifier's. 0 freezes
        the trunk: nothing in it has a gradient, and it computes as in evaluation (BN with its running
        statistics, no dropout).
    ema: 0, or the share of the run over which weights are averaged. Then the network that is evaluated, saved
        and selected has the exponential moving average of the weights (BN's running statistics among them),
        Σ β^(T−t)·w_t / Σ β^(T−t) over the steps t ≤ T with β = 1 − 1/(ema·iterations).

    Raises `InputError` where a value is out of range, or where length and schedule disagree:
    `with_iterations` changes both, `dataclasses.replace` one.

    >>> recipe = Recipe("mine", 64_000, Steps(0.1, ((32_000, 0.01),)))
    >>> recipe.with_iterations(640).rate
    Steps(start=0.1, drops=((320, 0.01),))
    """

    name: str
    iterations: int
    rate: Schedule
    batch_size: int = 128
    optimizer: Optimizer = field(default_factory=SGD)
    weight_decay: float = 1e-4
    decay: Literal["all", "weights"] = "all"
    label_smoothing: float = 0.0
    trunk_rate: float = 1.0
    ema: float = 0.0
    progressive_resize: ProgressiveResize = field(default_factory=ProgressiveResize)
    progressive_depth: ProgressiveDepth = field(default_factory=ProgressiveDepth)
    augmentation: Augmentation = field(default_factory=Augmentation)
    normalization: Normalization = "per_pixel_mean"

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_ITERATIONS:
                raise InputError(f"{name} is {value!r}; allowed: a whole number from 1 to {MAX_ITERATIONS:,}")
        check_schedule_length(self.rate, self.iterations)
        check_fraction("label_smoothing", self.label_smoothing)
        check_fraction("ema", self.ema)
        if self.trunk_rate != 1:
            check_fraction("trunk_rate", self.trunk_rate)
        check_fraction("weight_decay", self.weight_decay, MAX_WEIGHT_DECAY)
        if self.decay not in ("all", "weights"):
            raise InputError(f"decay is {self.decay!r}; allowed: 'all', 'weights'")

    @property
    def trunk_frozen(self) -> bool:
        """Whether only the classifier learns."""
        return self.trunk_rate == 0

    @property
    def ema_beta(self) -> float:
        """β, the share of the averaged weights that stays at every step; 0 without an average."""
        return max(0.0, 1 - 1 / (self.ema * self.iterations)) if self.ema else 0.0

    def with_optimizer(self, optimizer: Optimizer) -> Recipe:
        """The same recipe with another optimiser, its rates and weight decay converted.

        Between SGD and AdamW rates change by the factor `ADAMW_RATE_FACTOR` and weight decay by its inverse,
        so that a step shrinks the weights by the same share, rate·weight_decay.
        """
        if type(optimizer) is type(self.optimizer):
            return replace(self, optimizer=optimizer)
        factor = ADAMW_RATE_FACTOR if isinstance(optimizer, AdamW) else 1 / ADAMW_RATE_FACTOR
        return replace(
            self,
            optimizer=optimizer,
            rate=self.rate.scale_rate(factor),
            weight_decay=self.weight_decay / factor,
        )

    def with_iterations(self, iterations: int) -> Recipe:
        """The same recipe with another length, and its schedule in proportion."""
        if iterations == self.iterations:
            return self
        rate = self.rate.scale_length(iterations / self.iterations)
        return replace(self, name=f"{self.name}@{iterations}", iterations=iterations, rate=rate)


NESTEROV = SGD(nesterov=True)


def _paper_v1(images: int) -> Recipe:
    """P1, Sec. 4.2: 0.1, divided by 10 at 32k and 48k, stop at 64k."""
    return Recipe("paper-v1", 64_000, Steps(0.1, ((32_000, 0.01), (48_000, 0.001))))


def _paper(images: int) -> Recipe:
    """P2, Sec. 4: 0.01 for the first 400 iterations, then as P1."""
    return Recipe("paper", 64_000, Warmup(0.01, 400, Steps(0.1, ((32_000, 0.01), (48_000, 0.001)))))


def _in_epochs(
    name: str, images: int, epochs: int, drops: tuple[int, ...], batch_size: int, **options: Any
) -> Recipe:
    """0.1, divided by 10 after each number of epochs in `drops`."""
    epoch_length = max(1, images // batch_size)
    steps = tuple(
        (epoch * epoch_length, 0.1 / 10 ** (drop_index + 1)) for drop_index, epoch in enumerate(drops)
    )
    return Recipe(name, epochs * epoch_length, Steps(0.1, steps), batch_size, **options)


def _released(images: int) -> Recipe:
    """The code released with P2: batch 64, 200 epochs, drops at 81 and 122, Nesterov, no warm-up.

    That code counts epochs from 1 (`epoch >= 122 and 2 or epoch >= 81 and 1`): 80 and 121 epochs are complete
    before a drop.
    """
    return _in_epochs("released", images, 200, (80, 121), 64, optimizer=NESTEROV, normalization="channel")


def _resnext_cifar(name: str, images: int, drops: tuple[int, int], batch_size: int) -> Recipe:
    return _in_epochs(
        name,
        images,
        300,
        drops,
        batch_size,
        optimizer=NESTEROV,
        weight_decay=5e-4,
        normalization="channel",
    )


def _resnext(images: int) -> Recipe:
    """PX, appendix A: batch 128, 300 epochs, drops at 150 and 225, weight decay 5e-4."""
    return _resnext_cifar("resnext", images, (150, 225), 128)


def _resnext_256(images: int) -> Recipe:
    """PX, appendix A, with the batch of 256 that the authors' README names for the printed figures."""
    return _resnext_cifar("resnext-256", images, (150, 225), 256)


def _resnext_released(images: int) -> Recipe:
    """The code released with PX, on CIFAR: batch 128, 300 epochs, drops after 147 and 222.

    That code compares epoch/300, counted from 1, with 0.49 and 0.74.
    """
    return _resnext_cifar("resnext-released", images, (147, 222), 128)


def _resnext_imagenet(images: int) -> Recipe:
    """The code released with PX, on ImageNet: batch 256, 100 epochs, drops at 30, 60 and 90, Nesterov.

    PX, Sec. 4, states three drops in the schedule of that code's origin, and neither length nor Nesterov.
    """
    return _in_epochs(
        "resnext-imagenet",
        images,
        100,
        (30, 60, 90),
        256,
        optimizer=NESTEROV,
        normalization="channel",
    )


def _imagenet(images: int) -> Recipe:
    """P2, appendix: batch 256, drops at 30 and 60 epochs, no warm-up.

    The appendix states no end; 90 epochs are the default of the code that P2 names (fb.resnet.torch).
    """
    return _in_epochs("imagenet", images, 90, (30, 60), 256, normalization="channel")


def _short(images: int) -> Recipe:
    """Ours: 15 epochs of one linear cycle with Nesterov momentum, a fraction of the papers' length.

    The peak rate is 0.1 for a batch of 64, and in proportion.
    """
    batch_size = 128 if images > 10_000 else 64
    iterations = 15 * max(1, images // batch_size)
    return Recipe(
        "short",
        iterations,
        OneCycle(0.1 * batch_size / 64, iterations),
        batch_size,
        optimizer=NESTEROV,
        weight_decay=5e-4,
        decay="weights",
        normalization="channel",
    )


def _sprint(images: int) -> Recipe:
    """Ours: 5 epochs of one cycle in small batches, on images whose side grows from half to full.

    Chosen on validation images of CIFAR-10 (docs/results, Short recipes); crops move by 2 pixels.
    """
    iterations = 5 * max(1, images // 64)
    return Recipe(
        "sprint",
        iterations,
        OneCycle(0.1, iterations),
        64,
        optimizer=NESTEROV,
        weight_decay=5e-4,
        decay="weights",
        progressive_resize=ProgressiveResize(0.5, ((0.4, 0.75), (0.7, 1.0))),
        augmentation=Augmentation(pad=2),
        normalization="channel",
    )


def _finetune(images: int) -> Recipe:
    """Ours, to fine-tune given weights (`--init`): 20 epochs of one cycle at a low rate, on photographs.

    Chosen on validation images (docs/results, Fine-tuning).
    """
    batch_size = 64 if images > 10_000 else 32
    iterations = 20 * max(1, images // batch_size)
    return Recipe(
        "finetune",
        iterations,
        OneCycle(0.06 * batch_size / 64, iterations),
        batch_size,
        optimizer=NESTEROV,
        weight_decay=5e-4,
        decay="weights",
        augmentation=PHOTO_AUGMENTATION,
        normalization="channel",
    )


def _smoke(images: int) -> Recipe:
    """Ours: 8 iterations of batch 32, to see that everything works; its errors mean nothing."""
    return Recipe("smoke", 8, Steps(0.05), min(32, images))


RECIPES: dict[str, Callable[[int], Recipe]] = {
    "paper": _paper,
    "paper-v1": _paper_v1,
    "released": _released,
    "resnext": _resnext,
    "resnext-256": _resnext_256,
    "resnext-released": _resnext_released,
    "resnext-imagenet": _resnext_imagenet,
    "imagenet": _imagenet,
    "short": _short,
    "sprint": _sprint,
    "finetune": _finetune,
    "smoke": _smoke,
}


def recipe_by_name(name: str, num_images: int) -> Recipe:
    """The recipe called `name` for `num_images` training images.

    Raises `InputError` for an unknown name.

    >>> recipe_by_name("released", 50_000).iterations  # 200 epochs of 781 full batches
    156200
    """
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}; {suggest(name, list(RECIPES))}")
    return RECIPES[name](num_images)


def paper_images(name: str) -> int:
    """The number of training images that the recipe called `name` was made for; 50,000 for recipes of ours.

    >>> paper_images("imagenet"), paper_images("paper")
    (1281167, 50000)
    """
    return 1_281_167 if name in ("imagenet", "resnext-imagenet") else 50_000


def counts_in_epochs(name: str) -> bool:
    """Whether the steps of the recipe called `name` depend on the number of training images.

    >>> counts_in_epochs("released"), counts_in_epochs("paper")
    (True, False)
    """
    return recipe_by_name(name, 50_000) != recipe_by_name(name, 60_000)


def recipe_differences(*recipes: Recipe) -> list[tuple[str, ...]]:
    """The fields in which `recipes` differ: rows of the field's name and its value in each recipe.

    >>> recipe_differences(recipe_by_name("short", 640), recipe_by_name("smoke", 640))[0]
    ('name', 'short', 'smoke')
    """
    rows = []
    for row_field in fields(Recipe):
        values = tuple(str(getattr(recipe, row_field.name)) for recipe in recipes)
        if len(set(values)) > 1:
            rows.append((row_field.name, *values))
    return rows
