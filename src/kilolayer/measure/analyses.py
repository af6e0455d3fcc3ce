"""The registry of analyses: name, question and source of each, and the function that carries it out.

An analysis of your own is a module of this folder and a row of `ANALYSES`. The command line, the completion,
the documentation's table, and the text, JSON, SVG and HTML of its results follow from these two.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kilolayer.chart import Analysis
    from kilolayer.measure.analysis_input import AnalysisInput


@dataclass(frozen=True)
class AnalysisEntry:
    """One row of the registry, which imports nothing until it runs: `--help` need not wait for PyTorch."""

    question: str
    """The question that the analysis answers, as a reader would ask it."""
    source: str
    """Where its equation stands."""
    function: str
    """MODULE:FUNCTION, an importable module and in it a function of an `AnalysisInput` that returns an
    `Analysis`."""
    at_snapshots: bool = False
    """Also measured at every snapshot of a run; its result then has `tracked_metrics`."""
    mean_field: bool = False
    """Whether mean-field theory predicts a figure of it, for a network all of whose layers have a rule."""

    def run(self, analysis_input: AnalysisInput) -> Analysis:
        """Carries the analysis out."""
        module, _, name = self.function.partition(":")
        result: Analysis = getattr(import_module(module), name)(analysis_input)
        return result


ANALYSES: dict[str, AnalysisEntry] = {
    "decomposition": AnalysisEntry(
        "Which units contribute to the output of a stage? How much does the last ReLU cut off?",
        "P2, Eq. 4",
        "kilolayer.measure.decomposition:decomposition_of",
        at_snapshots=True,
    ),
    "gradient": AnalysisEntry(
        "How much gradient reaches unit l, and how much of it takes the shortcuts alone?",
        "P2, Eq. 5 and 8",
        "kilolayer.measure.gradient:gradient_of",
        at_snapshots=True,
    ),
    "shortcut": AnalysisEntry(
        "By which factor does my shortcut scale the signal?",
        "P2, Sec. 3",
        "kilolayer.measure.shortcut_factors:shortcut_factors_of",
        at_snapshots=True,
    ),
    "responses": AnalysisEntry(
        "How large are the layers' outputs? Which channels are dead?",
        "P1, Fig. 7",
        "kilolayer.measure.layer_responses:layer_responses_of",
        at_snapshots=True,
    ),
    "initialisation": AnalysisEntry(
        "Will this network train? What does mean-field theory say before I spend an hour?",
        "Yang and Schoenholz 2017",
        "kilolayer.measure.initialisation:measure_initialisation",
        mean_field=True,
    ),
    "paths": AnalysisEntry(
        "Through how many branches does the gradient pass? What happens when I delete a unit?",
        "Veit et al. 2016",
        "kilolayer.measure.path_ensemble:measure_paths",
        mean_field=True,
    ),
    "jacobian": AnalysisEntry(
        "How do perturbations grow with depth?",
        "P2, Eq. 5",
        "kilolayer.measure.jacobian:measure_jacobian",
        mean_field=True,
    ),
    "landscape": AnalysisEntry(
        "How does the loss look around the weights?",
        "Li et al. 2018",
        "kilolayer.measure.landscape:measure_landscape",
    ),
}
"""Every analysis by its name on the command line, in the order in which `all` runs them."""
