"""From a cell to the experiments that reproduce it, at the paper's size or as a proxy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kilolayer.data.config import BUILT_IN_NAMES, Data
from kilolayer.errors import InputError
from kilolayer.networks import Network
from kilolayer.papers.plan import CLASSES, Plan
from kilolayer.papers.scale import FULL, Scale
from kilolayer.papers.schema import Cell
from kilolayer.training import Experiment, Recipe, network_for_data, recipe_by_name, recipe_for_data
from kilolayer.units import ExclusiveGate

IMAGES = {"digits": 1_437, "cifar10": 50_000, "cifar100": 50_000, "imagenet": 1_281_167}
"""Training images; an epoch's length in the recipes that count in epochs."""

_NATIVE_SIZE = {"digits": 8, "cifar10": 32, "cifar100": 32, "imagenet": 224}

SELECTED_BIASES = tuple(float(-b) for b in range(11))
"""The values of b_g that P2 searches: 0, −1 … −10."""


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
    """The experiment that gives one run of `cell`.

    `data` says where the images lie (the plan's own data set by name otherwise) or replaces them.
    `recipe_name` takes another recipe than the paper's, as "released"; the batch size that a row
    states stays. `setting` chooses among a cell's several plans. `options` are fields of
    `Experiment` (`precision`, …). Whatever is not the paper's size bears "proxy" in its recipe's
    name. Raises `InputError` for a cell that is literature only.
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
    """One run of each of the cell's settings; nothing where it is literature only."""
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
    """Where the paper selected b_g: an experiment for each b_g, judged on held-out training images.

    Cross-validation is this for several values of `fold`, each holding out other images.
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
    """Whether a run at this scale, on these data, is smaller than the paper's or on other images."""
    return bool(_proxy_parts(plan, _data(plan, data, scale), scale))


def proxy_sentence(plan: Plan, data: Data | None = None, scale: Scale = FULL) -> str:
    """What a run leaves out, to stand beside every figure of it; empty at the paper's own size."""
    parts = _proxy_parts(plan, _data(plan, data, scale), scale)
    return "proxy: " + ", ".join(parts) if parts else ""


def _proxy_parts(plan: Plan, data: Data, scale: Scale) -> tuple[str, ...]:
    other_images = data.source in IMAGES and data.source != plan.data
    size = None if data.image_size == _NATIVE_SIZE[plan.data] else data.image_size
    parts = replace(scale, subset=data.subset, image_size=size).parts(plan)
    parts = (f"{data.source} instead of {plan.data}", *parts) if other_images else parts
    # A smaller scale stays a proxy where it happens to change nothing of this plan.
    return parts if parts or scale.is_full else ("at the paper's own size",)


def training_flop(experiment: Experiment) -> int:
    """Floating-point operations of a training, about: 3 × 2 × multiply-adds × batch × iterations.

    Two operations each, forward once and backward twice; evaluation, BN and ReLU are left out.
    """
    return 6 * experiment.network.multiply_adds * experiment.recipe.batch_size * experiment.recipe.iterations


def _data(plan: Plan, data: Data | None, scale: Scale) -> Data:
    chosen = data or Data(plan.data)
    size = scale.image_size or chosen.image_size
    if size is None and plan.data == "imagenet":
        size = _NATIVE_SIZE["imagenet"]
    # ImageNet's figures are made without orientation and profiles everywhere.
    if plan.data == "imagenet" and chosen.source not in BUILT_IN_NAMES:
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
    size = scale.batch_size or plan.batch_size
    if size is not None:
        chosen = replace(chosen, batch_size=size)
    if scale.iterations is not None:
        chosen = chosen.with_iterations(scale.iterations)
    return recipe_for_data(chosen, data) if data.source == "digits" else chosen
