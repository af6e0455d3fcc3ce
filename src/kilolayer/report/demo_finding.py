"""The findings of the demo as sentences, and suggested commands."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kilolayer.measure.gradient import Gradient
from kilolayer.measure.series import share_text
from kilolayer.report.run_finding import LEARNED_SHARE
from kilolayer.runs import Run
from kilolayer.sweep.demo_plan import UNITS
from kilolayer.sweep.run_spec import RunSpec
from kilolayer.training import Experiment

ORIGINAL, PREACTIVATION = UNITS
FAILURE_GAP = 10.0
"""One unit counts as worse than the other from this difference in test error on, in percentage points."""

SMALLER_RATE = 0.3
"""The second suggested command multiplies the learning rate by this."""


@dataclass(frozen=True)
class InitialState:
    """A network at its initialisation: its gradient, and the standard deviation of x_L, which a BN after it
    divides by."""

    gradient: Gradient
    deviation: float

    @property
    def first_norm(self) -> float:
        """‖∂ε/∂x‖ at the first unit's input."""
        return self.gradient.units[0].norm

    @property
    def last_norm(self) -> float:
        """‖∂ε/∂x_L‖ after the last unit."""
        return self.gradient.ends[-1]

    @property
    def direct_share(self) -> float:
        """The share of the first stage's final ‖∂ε/∂x‖ that reaches its start through shortcuts alone."""
        return self.gradient.units[0].direct / self.gradient.ends[0] if self.gradient.ends[0] else math.nan


DemoRuns = Mapping[tuple[int, str], RunSpec]
InitialStates = Mapping[tuple[int, str], InitialState]


def demo_errors(runs: DemoRuns) -> dict[tuple[int, str], float]:
    """The test errors by depth and unit. A diverged run counts as guessing; a failed run is left out."""
    error_of = {}
    for key, run in runs.items():
        result = Run(run.path).result() or {}
        if "test_error" in result:
            error_of[key] = float(result["test_error"])
        elif result.get("status") == "diverged":
            error_of[key] = chance_error(run.experiment)
    return error_of


def chance_error(experiment: Experiment) -> float:
    """The error of guessing a class, in percent."""
    return 100 - 100 / experiment.network.num_classes


def demo_findings(runs: DemoRuns, initial_states: InitialStates) -> tuple[str, ...]:
    """What the deepest pair of networks shows: its errors, its gradients, and why the gradients differ."""
    depth = max(depth for depth, _ in runs)
    error_of = demo_errors(runs)
    error_sentence = _errors(depth, error_of, chance_error(next(iter(runs.values())).experiment))
    pair = initial_states[depth, ORIGINAL], initial_states[depth, PREACTIVATION]
    return (error_sentence, _size(*pair), _ends(*pair), _direct(*pair))


def _errors(depth: int, error_of: dict[tuple[int, str], float], chance: float) -> str:
    pair = [error_of.get((depth, unit)) for unit in (ORIGINAL, PREACTIVATION)]
    original, preactivation = pair
    if original is None or preactivation is None:
        return f"At {depth} layers one of the units has no test error, so nothing can be compared."
    result = (
        f"At {depth} layers the original unit ends at {original:.2f} % test error and the pre-activation "
        f"unit at {preactivation:.2f} %, with the same data, recipe and seed"
    )
    if min(original, preactivation) > LEARNED_SHARE * chance:
        return f"{result}: neither has learned much, since guessing is {chance:.0f} % wrong; train longer."
    if abs(original - preactivation) < FAILURE_GAP:
        return f"{result}: they lie within {FAILURE_GAP:.0f} points, so this depth shows no difference."
    worse, better = "original", "pre-activation"
    if preactivation > original:
        worse, better = better, worse
    verb = "fails" if max(original, preactivation) > LEARNED_SHARE * chance else "falls behind"
    return f"{result}: the {worse} network {verb} and the {better} one does not{_shallower(depth, error_of)}."


def _shallower(depth: int, error_of: dict[tuple[int, str], float]) -> str:
    """The greatest depth at which the two units' errors are still close."""
    gaps = {
        d: abs(error_of[d, ORIGINAL] - error_of[d, PREACTIVATION])
        for d, unit in error_of
        if unit == ORIGINAL and (d, PREACTIVATION) in error_of
    }
    alike = [d for d, gap in gaps.items() if d < depth and gap < FAILURE_GAP]
    return f"; at {max(alike)} layers they still lie within {FAILURE_GAP:.0f} points" if alike else ""


def _size(original: InitialState, preactivation: InitialState) -> str:
    larger = original.first_norm > preactivation.first_norm
    claim = "The original network's gradient has not vanished" if larger else "The gradients differ"
    times = _times(original.first_norm, preactivation.first_norm)
    return (
        f"{claim}: at initialisation ‖∂ε/∂x‖ at its first unit is {original.first_norm:.3g}, {times} the "
        f"pre-activation network's {preactivation.first_norm:.3g}."
    )


def _ends(original: InitialState, preactivation: InitialState) -> str:
    """Where the factor comes from: the end of the network, or the path through it."""
    why = (
        ", because only the pre-activation network has a BN there. It divides the gradient by the standard "
        f"deviation of x_L, which is {preactivation.deviation:.3g} here and grows with depth"
    )
    return (
        f"After the last unit it is already {_times(original.last_norm, preactivation.last_norm)} the other"
        f"{why if original.last_norm > preactivation.last_norm else ''}. On its way back to the first unit "
        f"the gradient grows {original.gradient.growth:.3g} times in the original network and "
        f"{preactivation.gradient.growth:.3g} times in the pre-activation network."
    )


def _direct(original: InitialState, preactivation: InitialState) -> str:
    return (
        "The difference on the way is the direct term. By P2, Eq. 5, ∂ε/∂x_l = ∂ε/∂x_L · (1 + ∂/∂x_l Σ F): "
        "the 1 passes through the shortcuts, whatever the weights are. In the pre-activation network "
        f"{share_text(preactivation.direct_share)} of the gradient at the end of the first stage reaches the "
        f"first unit this way. In the original network it is {share_text(original.direct_share)}, because "
        "the ReLU after every addition cuts it. The rest passes through the weights and changes with every "
        "step."
    )


def _times(a: float, b: float) -> str:
    if not a or not b:
        return "not to be compared with"
    return f"{a / b:.3g} times"


def next_commands(demo_runs: DemoRuns, folder: Path) -> tuple[tuple[str, str], ...]:
    """Three suggested commands as pairs (purpose, command line)."""
    depth = max(depth for depth, _ in demo_runs)
    original, preactivation = demo_runs[depth, ORIGINAL], demo_runs[depth, PREACTIVATION]
    recipe = original.experiment.recipe
    runs = [str(original.path), str(preactivation.path)]
    rate = f"{SMALLER_RATE * recipe.rate.peak:.2g}"
    slower = ["--model", f"resnet{depth}_cifar", "--iterations", str(recipe.iterations), "--lr", rate]
    return (
        (
            "See the gradient of the trained networks; the gradients above are at initialisation",
            _line("analyse", "gradient", *runs, "--html", str(folder / "gradient.html")),
        ),
        (
            f"Try a smaller learning rate for the original unit, {rate} instead of {recipe.rate.peak:g}",
            _line("train", *slower, "--validation", "0", "--seed", str(original.experiment.seed)),
        ),
        ("Change h, f and the depth, and watch signal and gradient", _line("lens")),
    )


def _line(*words: str) -> str:
    return shlex.join(["kilolayer", *words])
