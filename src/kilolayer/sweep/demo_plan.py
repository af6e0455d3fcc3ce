"""The runs of the demo: original and pre-activation networks of growing depth, on the embedded digits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kilolayer.data.config import Data
from kilolayer.errors import InputError
from kilolayer.networks.families import cifar
from kilolayer.sweep.run_spec import RunSpec
from kilolayer.training import Experiment, recipe_by_name, recipe_for_data
from kilolayer.units import ARRANGEMENTS, BASIC

UNITS = {"original": "original unit (v1)", "full_preactivation": "pre-activation unit (v2)"}
TRAINING_IMAGES = 1437


def demo_runs(
    folder: Path, depths: Sequence[int], iterations: int, seed: int
) -> dict[tuple[int, str], RunSpec]:
    """The demo's runs by depth and unit. Shallow networks come first, so the table fills from the top."""
    if not depths:
        raise InputError("--depths is empty; allowed: depths of the form 6n+2, as 20 56 110")
    return {
        (depth, name): RunSpec(
            folder / f"{name}-{depth}", demo_experiment(depth, name, iterations, seed), folder
        )
        for depth in depths
        for name in UNITS
    }


def demo_experiment(depth: int, unit: str, iterations: int, seed: int) -> Experiment:
    """The experiment of one network. All networks have the same data, recipe and seed."""
    from kilolayer.training import choose_device, computation_options

    data = Data("digits")
    network = cifar(depth, replace(BASIC, arrangement=ARRANGEMENTS[unit]), in_chans=1, image_size=8)
    chosen = recipe_for_data(recipe_by_name("short", TRAINING_IMAGES), data).with_iterations(iterations)
    return Experiment(network, data, chosen, seed=seed, **computation_options(choose_device("cpu")))
