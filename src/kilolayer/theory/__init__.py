"""Predictions from a network's description alone: mean-field theory, shortcut products, path statistics.

Nothing is built or run. `kilolayer.measure` measures the same quantities on a network, beside the prediction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kilolayer.lazy import lazy_attributes

if TYPE_CHECKING:
    from kilolayer.theory.mean_field import (
        MeanFieldPrediction,
        MeanFieldTheory,
        no_prediction_reason,
        no_rule_reason,
        predict_propagation,
    )
    from kilolayer.theory.path_statistics import path_length_shares, predict_path_norms
    from kilolayer.theory.population_dynamics import MeanFieldInterpreter, Population
    from kilolayer.theory.shortcut_products import ShortcutFactor, ShortcutTheory

_HOMES = {
    "MeanFieldPrediction": "mean_field", "MeanFieldTheory": "mean_field",
    "no_prediction_reason": "mean_field", "no_rule_reason": "mean_field",
    "predict_propagation": "mean_field",
    "path_length_shares": "path_statistics", "predict_path_norms": "path_statistics",
    "MeanFieldInterpreter": "population_dynamics", "Population": "population_dynamics",
    "ShortcutFactor": "shortcut_products", "ShortcutTheory": "shortcut_products",
}  # fmt: skip

__getattr__, __dir__ = lazy_attributes(__name__, _HOMES)

__all__ = [
    "MeanFieldInterpreter",
    "MeanFieldPrediction",
    "MeanFieldTheory",
    "Population",
    "ShortcutFactor",
    "ShortcutTheory",
    "no_prediction_reason",
    "no_rule_reason",
    "path_length_shares",
    "predict_path_norms",
    "predict_propagation",
]
