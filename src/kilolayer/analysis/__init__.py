"""The old names of `theory`, `measure` and `statistics`. Each one warns and names the new one."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

# Old module, new module, and old=new for every name that changed; a name that lies elsewhere has its module.
_PLACES = """
addition         measure.residual_tracer        Way=TracedTensor Watch=ResidualTracer
chain            measure.unit_chain             Chain=UnitChain
chart            chart                          Conclusive=HasFinding
comparison       statistics.comparison          Pair=RowPair compare=compare_with_paper
decomposition    measure.decomposition          decomposition=measure_decomposition
ensemble         theory.population_dynamics     Ensemble=Population Dynamics=MeanFieldInterpreter Back=BackwardMap add=add_populations times=scale_population
first_steps      measure.overfit_probe          FirstSteps=OverfitProbe first_steps=probe_overfit entropy=label_entropy
gradient         measure.gradient               gradient=measure_gradient unit_gradients=unit_gradient_norms UnitTerms=GradientTerms WHOLE=LOSSLESS
initialisation   measure.initialisation         initialisation=measure_initialisation measure=measure_propagation Start=Propagation
jacobian         measure.jacobian               jacobian=measure_jacobian LOST=NEGLIGIBLE
lanczos          measure.lanczos                singular_values=lanczos_singular_values quantile=weighted_quantile
landscape        measure.landscape              landscape=measure_landscape directions=filter_normalised_directions
layer_responses  measure.layer_responses        Responses=LayerResponses Activity=ReluActivity
lesions          measure.lesions                lesions=measure_lesions Lesions=LesionStudy
linear           measure.unit_vjp               UnitGradient=UnitVJP
mean_field       theory.mean_field              predict=predict_propagation Prediction=MeanFieldPrediction silent=no_prediction_reason Theory=MeanFieldTheory
numbers          measure.scalars                mean=mean_present product=product_present positive=positive_or_none
order            measure.execution_order        Order=ExecutionOrder find_order=record_execution_order forward_is=replace_forward model_from=run_from_unit
over_training    measure.snapshot_trends        over_training=collect_trends OverTraining=SnapshotTrends Followed=TrackedAnalysis
path_gradients   measure.path_gradients         path_gradients=measure_path_gradients path_counts=theory.path_statistics.path_length_shares predicted_lengths=theory.path_statistics.predict_path_norms LONGEST=theory.path_statistics.MAX_LENGTH Lengths=theory.path_statistics.Lengths
paths            measure.path_ensemble          paths=measure_paths Paths=PathEnsemble
permutation      statistics.permutation_tests   sign_flip=sign_flip_test tau_test=kendall_tau_test holm=holm_adjust
published        statistics.published           Published=PublishedResult
responses        measure.layer_responses        responses=measure_layer_responses Responses=LayerResponses Activity=ReluActivity
run_responses    measure.layer_responses        run_responses=measure_run_responses
shortcut         measure.shortcut_factors       shortcut=measure_shortcut_factors Shortcut=ShortcutFactors
shortcut_factors measure.shortcut_factors       Shortcut=ShortcutFactors
shortcut_theory  theory.shortcut_products       Factor=ShortcutFactor KNOWN=LAYERS_WITH_GAIN
statistics       statistics.agreement           Summary=RunSummary summarize=summarize_runs Verdict=Agreement verdict=judge_agreement errors=error_rates LEAST_RUNS=MIN_RUNS CHANCE=CHANCE_ERROR Values=FloatArray Word=AgreementWord
subject          measure.analysis_input         Subject=AnalysisInput
tangents         measure.jacobian_products      Tangents=JacobianProducts
trainability     measure.trainability           Verdict=TrainabilityVerdict judge=judge_trainability
undisturbed      measure.preservation           undisturbed=preserve_state
units            measure.unit_selection         residual_units=find_residual_units
wording          measure.series                 by_unit=unit_series percent=share_text
"""  # noqa: E501 - a table
_OWN = (
    "Pair=RowPair Published=PublishedResult Summary=RunSummary Verdict=Agreement compare=compare_with_paper "
    "holm=holm_adjust sign_flip=sign_flip_test summarize=summarize_runs "
    "tau_test=kendall_tau_test verdict=judge_agreement"
)


def _forward(old: str, new: str, renamed: dict[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of the old module `old`, whose names are now in `new`."""

    def attribute(name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        home, _, target = renamed.get(name, name).rpartition(".")
        module = f"kilolayer.{home}" if home else new
        value = getattr(import_module(module), target)
        warnings.warn(f"{old}.{name} is now {module}.{target}", DeprecationWarning, stacklevel=2)
        return value

    return attribute


def _names(pairs: str) -> dict[str, str]:
    return dict(pair.split("=") for pair in pairs.split())


for _line in _PLACES.strip().splitlines():
    _old, _new, _renamed = _line.split(maxsplit=2)
    _module = ModuleType(f"{__name__}.{_old}", f"Now kilolayer.{_new}.")
    _module.__dict__["__getattr__"] = _forward(_module.__name__, f"kilolayer.{_new}", _names(_renamed))
    sys.modules[_module.__name__] = globals()[_old] = _module

__getattr__ = _forward(__name__, "kilolayer.statistics", _names(_OWN))


def __dir__() -> list[str]:
    modules = (line.split()[0] for line in _PLACES.strip().splitlines())
    return sorted({*modules, *_names(_OWN)})
