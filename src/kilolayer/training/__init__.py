"""Training: recipes and schedules as values, and a loop that is a generator of steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kilolayer.lazy import lazily
from kilolayer.training.experiment import Experiment, fitted, with_data
from kilolayer.training.optimizer import SGD, AdamW, Optimizer
from kilolayer.training.recipes import RECIPES, Recipe, differences, recipe
from kilolayer.training.schedule import Growth, OneCycle, Resolution, Schedule, Steps, Warmup

if TYPE_CHECKING:
    from kilolayer.training.device import (
        Place,
        choose_device,
        choose_kernels,
        choose_precision,
        computing,
        evaluation_with,
        place,
    )
    from kilolayer.training.evaluation import Evaluation, evaluate
    from kilolayer.training.graph import choose_graph
    from kilolayer.training.loop import Epoch, Final, Step, Training
    from kilolayer.training.state import NonFinite

_WITH_TORCH = {
    "Place": "device", "choose_device": "device", "choose_kernels": "device",
    "choose_precision": "device", "computing": "device", "evaluation_with": "device", "place": "device",
    "Evaluation": "evaluation", "evaluate": "evaluation", "choose_graph": "graph",
    "Epoch": "loop", "Final": "loop", "Step": "loop", "Training": "loop",
    "NonFinite": "state",
}  # fmt: skip

__getattr__, __dir__ = lazily(__name__, _WITH_TORCH)

__all__ = [
    "RECIPES",
    "SGD",
    "AdamW",
    "Epoch",
    "Evaluation",
    "Experiment",
    "Final",
    "Growth",
    "NonFinite",
    "OneCycle",
    "Optimizer",
    "Place",
    "Recipe",
    "Resolution",
    "Schedule",
    "Step",
    "Steps",
    "Training",
    "Warmup",
    "choose_device",
    "choose_graph",
    "choose_kernels",
    "choose_precision",
    "computing",
    "differences",
    "evaluate",
    "evaluation_with",
    "fitted",
    "place",
    "recipe",
    "with_data",
]
