"""Training: recipes and schedules as values, and a loop that is a generator of steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kilolayer.lazy import lazy_attributes
from kilolayer.training.experiment import Experiment, network_for_data, recipe_for_data
from kilolayer.training.optimizer import SGD, AdamW, Optimizer
from kilolayer.training.recipes import RECIPES, Recipe, recipe_by_name, recipe_differences
from kilolayer.training.schedule import OneCycle, ProgressiveDepth, ProgressiveResize, Schedule, Steps, Warmup

if TYPE_CHECKING:
    from kilolayer.training.cuda_graph import choose_graph
    from kilolayer.training.device import (
        DistributedContext,
        choose_device,
        choose_kernels,
        choose_precision,
        computation_options,
        distributed_context,
        evaluation_mode_for,
    )
    from kilolayer.training.evaluation import Evaluation, evaluate
    from kilolayer.training.train_state import NonFinite
    from kilolayer.training.trainer import EpochMetrics, FinalMetrics, StepResult, Trainer

_WITH_TORCH = {
    "DistributedContext": "device",
    "choose_device": "device",
    "choose_kernels": "device",
    "choose_precision": "device",
    "computation_options": "device",
    "evaluation_mode_for": "device",
    "distributed_context": "device",
    "Evaluation": "evaluation",
    "evaluate": "evaluation",
    "choose_graph": "cuda_graph",
    "EpochMetrics": "trainer",
    "FinalMetrics": "trainer",
    "StepResult": "trainer",
    "Trainer": "trainer",
    "NonFinite": "train_state",
}

__getattr__, __dir__ = lazy_attributes(__name__, _WITH_TORCH)

__all__ = [
    "RECIPES",
    "SGD",
    "AdamW",
    "DistributedContext",
    "EpochMetrics",
    "Evaluation",
    "Experiment",
    "FinalMetrics",
    "NonFinite",
    "OneCycle",
    "Optimizer",
    "ProgressiveDepth",
    "ProgressiveResize",
    "Recipe",
    "Schedule",
    "StepResult",
    "Steps",
    "Trainer",
    "Warmup",
    "choose_device",
    "choose_graph",
    "choose_kernels",
    "choose_precision",
    "computation_options",
    "distributed_context",
    "evaluate",
    "evaluation_mode_for",
    "network_for_data",
    "recipe_by_name",
    "recipe_differences",
    "recipe_for_data",
]
