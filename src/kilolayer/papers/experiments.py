"""The experiments that reproduce a cell, at the paper's size or as a proxy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kilolayer.data.config import Data
from kilolayer.data.registry import DATASETS
from kilolayer.errors import InputError
from kilolayer.networks import Network
from kilolayer.papers.plan import CLASSES, Plan
from kilolayer.papers.scale import FULL, Scale
from kilolayer.papers.schema import Cell
from kilolayer.training import Experiment, Recipe, network_for_data, recipe_by_name, recipe_for_data
from kilolayer.units import ExclusiveGate

IMAGES = {"digits": 1_437, "cifar10": 50_000, "cifar100": 50_000, "imagenet": 1_281_167}
"""Number of training images, which is the length of an epoch."""

_NATIVE_SIZE = {"digits": 8, "cifar10": 32, "cifar100": 32, "imagenet": 224}

SELECTED_BIASES = tuple(float(-b) for b in range(11))
"""The values of b_g that P2 compares: 0, −1, …, −10."""


def cell_experiment(
    cell: Cell,
    seed: int = 0,
    *,
    data: Data | None = None,
    recipe_name: str | None = None,
    scale: Scale = FULL,
    setting: int = 0,
    **options: Any,
) -> Experiment:
    """The experiment for one run of `cell`.

    `data` is the place of the images, or other images; the default is the plan's data set by its name.
    `recipe_name` replaces the plan's recipe, as "released" does. `setting` chooses one of a cell's plans.
    `options` are fields of `Experiment` (`precision`, …). At a smaller scale the recipe's name begins with
    "proxy".

    >>> from kilolayer.papers import find_table
    >>> experiment = cell_experiment(find_table("p2-table-2").cell("original", "ResNet-164"), seed=3)
    >>> experiment.network.depth, experiment.recipe.name, experiment.seed
    (164, 'paper', 3)

    Raises:
        InputError: the cell has no experiment (its reason is named), or no such setting.
    """
    if not cell.plans:
        raise InputError(f"{cell.table}, {cell.row!r}: no experiment, {cell.reason}")
    if not 0 <= setting < len(cell.plans):
        raise InputError(f"setting is {setting!r}; allowed: from 0 to {len(cell.plans) - 1}")
    plan = cell.plans[setting]
    images = _data(plan, data, scale)
    chosen = _recipe(plan, recipe_name or plan.recipe, images, scale)
    if _proxy_parts(plan, images, scale):
        chosen = replace(chosen, name=f"proxy of {chosen.name}")
    options = {"evaluate_every": scale.evaluate_every, **options}
    return Experiment(_network(plan, images, scale), images, chosen, seed, **options)


def cell_experiments(cell: Cell, seed: int = 0, **options: Any) -> tuple[Experiment, ...]:
    """One experiment for each setting of the cell; none for a cell that has no plan.

    >>> from kilolayer.papers import find_table
    >>> cell = find_table("p2-table-1").cell("exclusive gating: b_g = 0 … −5", "error")
    >>> len(cell_experiments(cell))
    6
    """
    return tuple(cell_experiment(cell, seed, setting=i, **options) for i in range(len(cell.plans)))


def bias_search_experiments(
    cell: Cell,
    seed: int = 0,
    *,
    held_out: int = 5_000,
    fold: int = 0,
    data: Data | None = None,
    **options: Any,
) -> dict[float, Experiment]:
    """For a cell whose b_g the paper selected: an experiment for each b_g, tested on held-out training
    images.

    Every `fold` holds out other images; several folds together are a cross-validation.

    >>> from kilolayer.papers import find_table
    >>> cell = find_table("p2-table-1").cell("exclusive gating: b_g = −6", "error")
    >>> list(bias_search_experiments(cell))[:3]
    [0.0, -1.0, -2.0]

    Raises:
        InputError: the paper selected no b_g for this cell.
    """
    gate = cell.plan.unit.h if cell.plan else None
    if cell.plan is None or not cell.plan.select or not isinstance(gate, ExclusiveGate):
        raise InputError(f"{cell.table}, {cell.row!r}: nothing was selected for this cell")
    judged = replace(data or Data(cell.plan.data), validation=held_out, split_seed=fold)
    by_bias = {}
    for bias in SELECTED_BIASES:
        plan = cell.plan.with_changes(h=replace(gate, bias=bias))
        by_bias[bias] = cell_experiment(replace(cell, plans=(plan,)), seed, data=judged, **options)
    return by_bias


def is_proxy(plan: Plan, data: Data | None = None, scale: Scale = FULL) -> bool:
    """Whether a run at this scale, with these data, is smaller than the paper's run, or uses other images.

    >>> is_proxy(Plan("cifar10")), is_proxy(Plan("cifar10"), scale=Scale("small", subset=1000))
    (False, True)
    """
    return bool(_proxy_parts(plan, _data(plan, data, scale), scale))


def proxy_sentence(plan: Plan, data: Data | None = None, scale: Scale = FULL) -> str:
    """What a run leaves out, as a sentence for its report; empty at the paper's own size.

    >>> proxy_sentence(Plan("cifar10"), scale=Scale("small", depths=56, subset=1000))
    'proxy: depth 56 instead of 110, 1,000 images'
    """
    parts = _proxy_parts(plan, _data(plan, data, scale), scale)
    return "proxy: " + ", ".join(parts) if parts else ""


def _proxy_parts(plan: Plan, data: Data, scale: Scale) -> tuple[str, ...]:
    other_images = data.source in IMAGES and data.source != plan.data
    size = None if data.image_size == _NATIVE_SIZE[plan.data] else data.image_size
    parts = replace(scale, subset=data.subset, image_size=size).parts(plan)
    parts = (f"{data.source} instead of {plan.data}", *parts) if other_images else parts
    # A smaller scale stays a proxy even if it changes nothing of this plan.
    return parts if parts or scale.is_full else ("at the paper's own size",)


def training_flop(experiment: Experiment) -> int:
    """Floating-point operations of a training, approximately: 6 · multiply-adds · batch size · iterations.

    A multiply-add is two operations, and the backward pass costs twice the forward pass. Evaluation, BN and
    ReLU are left out.

    >>> from kilolayer.papers import find_table
    >>> f"{training_flop(cell_experiment(find_table('p1-table-6').cell('ResNet-20', 'error'))):.1e}"
    '2.0e+15'
    """
    return 6 * experiment.network.multiply_adds * experiment.recipe.batch_size * experiment.recipe.iterations


def _data(plan: Plan, data: Data | None, scale: Scale) -> Data:
    chosen = data or Data(plan.data)
    size = scale.image_size or chosen.image_size
    if size is None and plan.data == "imagenet":
        size = _NATIVE_SIZE["imagenet"]
    # Published ImageNet figures ignore the orientation and colour profile of a picture.
    if plan.data == "imagenet" and chosen.source not in DATASETS:
        chosen = replace(chosen, appearance="stored")
    return replace(chosen, image_size=size, subset=scale.subset or chosen.subset)


def _network(plan: Plan, data: Data, scale: Scale) -> Network:
    digits = data.source == "digits"
    size = data.image_size or _NATIVE_SIZE["digits" if digits else plan.data]
    classes = 10 if digits else CLASSES[plan.data]
    return network_for_data(
        scale.network(plan), classes=classes, in_chans=1 if digits else 3, image_size=size
    )


def _recipe(plan: Plan, name: str, data: Data, scale: Scale) -> Recipe:
    total = IMAGES["digits"] if data.source == "digits" else IMAGES[plan.data]
    images = total - data.validation
    chosen = recipe_by_name(name, min(images, data.subset or images))
    if scale.batch_size is not None:
        chosen = replace(chosen, batch_size=scale.batch_size)
    if scale.iterations is not None:
        chosen = chosen.with_iterations(scale.iterations)
    return recipe_for_data(chosen, data) if data.source == "digits" else chosen
