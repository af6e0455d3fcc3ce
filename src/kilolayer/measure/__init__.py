"""Measurements of any network, each beside the theory that predicts it.

An analysis runs a model, Kilolayer's or yours, on a batch, and returns a frozen value with a finding,
figures and charts; the model is left as it was. `kilolayer.measure.analyses.ANALYSES` lists the analyses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kilolayer.lazy import lazy_attributes
from kilolayer.measure.analyses import ANALYSES, AnalysisEntry

if TYPE_CHECKING:
    from kilolayer.measure.analysis_input import AnalysisInput
    from kilolayer.measure.decomposition import Decomposition, measure_decomposition
    from kilolayer.measure.gradient import Gradient, measure_gradient
    from kilolayer.measure.initialisation import Initialisation, measure_initialisation, measure_propagation
    from kilolayer.measure.jacobian import Jacobian, measure_jacobian
    from kilolayer.measure.jacobian_products import JacobianProducts
    from kilolayer.measure.landscape import Landscape, measure_landscape
    from kilolayer.measure.layer_responses import LayerResponses, measure_layer_responses
    from kilolayer.measure.lesions import LesionStudy, measure_lesions
    from kilolayer.measure.overfit_probe import OverfitProbe, probe_overfit
    from kilolayer.measure.path_ensemble import PathEnsemble, measure_paths
    from kilolayer.measure.path_gradients import PathGradients, measure_path_gradients
    from kilolayer.measure.preservation import preserve_state
    from kilolayer.measure.shortcut_factors import ShortcutFactors, measure_shortcut_factors
    from kilolayer.measure.unit_chain import UnitChain, UnitPass
    from kilolayer.measure.unit_vjp import UnitVJP

_HOMES = {
    "AnalysisInput": "analysis_input",
    "Decomposition": "decomposition", "measure_decomposition": "decomposition",
    "Gradient": "gradient", "measure_gradient": "gradient",
    "Initialisation": "initialisation", "measure_initialisation": "initialisation",
    "measure_propagation": "initialisation",
    "Jacobian": "jacobian", "measure_jacobian": "jacobian",
    "JacobianProducts": "jacobian_products",
    "Landscape": "landscape", "measure_landscape": "landscape",
    "LayerResponses": "layer_responses", "measure_layer_responses": "layer_responses",
    "LesionStudy": "lesions", "measure_lesions": "lesions",
    "OverfitProbe": "overfit_probe", "probe_overfit": "overfit_probe",
    "PathEnsemble": "path_ensemble", "measure_paths": "path_ensemble",
    "PathGradients": "path_gradients", "measure_path_gradients": "path_gradients",
    "preserve_state": "preservation",
    "ShortcutFactors": "shortcut_factors", "measure_shortcut_factors": "shortcut_factors",
    "UnitChain": "unit_chain", "UnitPass": "unit_chain",
    "UnitVJP": "unit_vjp",
}  # fmt: skip

__getattr__, __dir__ = lazy_attributes(__name__, _HOMES)

__all__ = [
    "ANALYSES",
    "AnalysisEntry",
    "AnalysisInput",
    "Decomposition",
    "Gradient",
    "Initialisation",
    "Jacobian",
    "JacobianProducts",
    "Landscape",
    "LayerResponses",
    "LesionStudy",
    "OverfitProbe",
    "PathEnsemble",
    "PathGradients",
    "ShortcutFactors",
    "UnitChain",
    "UnitPass",
    "UnitVJP",
    "measure_decomposition",
    "measure_gradient",
    "measure_initialisation",
    "measure_jacobian",
    "measure_landscape",
    "measure_layer_responses",
    "measure_lesions",
    "measure_path_gradients",
    "measure_paths",
    "measure_propagation",
    "measure_shortcut_factors",
    "preserve_state",
    "probe_overfit",
]
