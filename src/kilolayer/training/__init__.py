"""Training: recipes and schedules as values, and a loop that is a generator of steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kilolayer.lazy import lazy_attributes
from kilolayer.training.experiment import Experiment, network_for_data, recipe_for_data
from kilolayer.training.optimizer import SGD, AdamW, Optimizer
from kilolayer.training.recipes import RECIPES, Recipe, recipe_by_name, recipe_differences
from kilolayer.training.schedule import OneCycle, ProgressiveDepth, ProgressiveResize, Schedule, Steps, Warmup

if TYPE_CHECKING:
    from kilolayer.training.computation import (
        choose_kernels,
        choose_precision,
        computation_options,
        evaluation_mode_for,
    )
    from kilolayer.training.cuda_graph import choose_graph
    from kilolayer.training.device import choose_device
    from kilolayer.training.distributed import DistributedContext, distributed_context
    from kilolayer.training.evaluation import Evaluation, evaluate
    from kilolayer.training.train_state import NonFinite, TrainState
    from kilolayer.training.trainer import EpochMetrics, FinalMetrics, StepResult, Trainer

_WITH_TORCH = {
    "choose_kernels": "computation",
    "choose_precision": "computation",
    "computation_options": "computation",
    "evaluation_mode_for": "computation",
    "choose_graph": "cuda_graph",
    "choose_device": "device",
    "DistributedContext": "distributed",
    "distributed_context": "distributed",
    "Evaluation": "evaluation",
    "evaluate": "evaluation",
    "NonFinite": "train_state",
    "TrainState": "train_state",
    "EpochMetrics": "trainer",
    "FinalMetrics": "trainer",
    "StepResult": "trainer",
    "Trainer": "trainer",
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
    "TrainState",
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
