"""What the demo has shown, in sentences drawn from its runs, and what to try next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kilolayer.cli.demo import UNITS
from kilolayer.measure.gradient import Gradient
from kilolayer.measure.series import percent_text
from kilolayer.report.run_finding import LEARNED_SHARE
from kilolayer.runs import Run
from kilolayer.sweep.run_spec import RunSpec
from kilolayer.training import Experiment

ORIGINAL, PREACTIVATION = UNITS
FAILURE_GAP = 10.0
"""Points of test error by which one unit must be worse to have failed beside the other."""

SMALLER_RATE = 0.3
"""Of the learning rate: what the second of the commands tries."""


@dataclass(frozen=True)
class InitialState:
    """A network at its initialisation: its gradient, and x_L's deviation, which a BN behind it sees."""

    gradient: Gradient
    deviation: float

    @property
    def first_norm(self) -> float:
        """‖∂ε/∂x‖ at the first unit's input."""
        return self.gradient.units[0].norm

    @property
    def last_norm(self) -> float:
        """‖∂ε/∂x_L‖ behind the last unit."""
        return self.gradient.ends[-1]

    @property
    def direct_share(self) -> float:
        """Of ‖∂ε/∂x_L‖ at the end of the first stage, what arrives at its start through shortcuts alone."""
        return self.gradient.units[0].direct / self.gradient.ends[0] if self.gradient.ends[0] else math.nan


DemoRuns = Mapping[tuple[int, str], RunSpec]
InitialStates = Mapping[tuple[int, str], InitialState]


def demo_errors(runs: DemoRuns) -> dict[tuple[int, str], float]:
    """The test errors by depth and unit; a run that diverged counts as guessing, a failed one not at all."""
    found = {}
    for place, one in runs.items():
        result = Run(one.path).result() or {}
        if "test_error" in result:
            found[place] = float(result["test_error"])
        elif result.get("status") == "diverged":
            found[place] = chance_error(one.experiment)
    return found


def chance_error(experiment: Experiment) -> float:
    """The error of guessing a class, in percent."""
    return 100 - 100 / experiment.network.num_classes


def demo_findings(runs: DemoRuns, initial_states: InitialStates) -> tuple[str, ...]:
    """What the deepest pair of networks shows: its errors, then its gradients and why they differ."""
    depth = max(depth for depth, _ in runs)
    found = demo_errors(runs)
    shown = _errors(depth, found, chance_error(next(iter(runs.values())).experiment))
    pair = initial_states[depth, ORIGINAL], initial_states[depth, PREACTIVATION]
    return (shown, _size(*pair), _ends(*pair), _direct(*pair))


def _errors(depth: int, found: dict[tuple[int, str], float], chance: float) -> str:
    pair = [found.get((depth, unit)) for unit in (ORIGINAL, PREACTIVATION)]
    original, preactivation = pair
    if original is None or preactivation is None:
        return f"At {depth} layers not both units came to a test error, so nothing can be compared there."
    said = (
        f"At {depth} layers the original unit ends at {original:.2f} % test error and the pre-activation "
        f"unit at {preactivation:.2f} %, with the same data, recipe and seed"
    )
    if min(original, preactivation) > LEARNED_SHARE * chance:
        return f"{said}: neither has learned much, since guessing is {chance:.0f} % wrong; train for longer."
    if abs(original - preactivation) < FAILURE_GAP:
        return f"{said}: they lie within {FAILURE_GAP:.0f} points, so no difference shows at this depth."
    worse, better = "original", "pre-activation"
    if preactivation > original:
        worse, better = better, worse
    verb = "fails" if max(original, preactivation) > LEARNED_SHARE * chance else "falls behind"
    return f"{said}: the {worse} network {verb} and the {better} one does not{_shallower(depth, found)}."


def _shallower(depth: int, found: dict[tuple[int, str], float]) -> str:
    """The greatest depth at which they are still alike."""
    gaps = {
        d: abs(found[d, ORIGINAL] - found[d, PREACTIVATION])
        for d, unit in found
        if unit == ORIGINAL and (d, PREACTIVATION) in found
    }
    alike = [d for d, gap in gaps.items() if d < depth and gap < FAILURE_GAP]
    return f"; at {max(alike)} layers they still lie within {FAILURE_GAP:.0f} points" if alike else ""


def _size(original: InitialState, preactivation: InitialState) -> str:
    larger = original.first_norm > preactivation.first_norm
    said = "The original network's gradient has not vanished" if larger else "The gradients differ"
    times = _times(original.first_norm, preactivation.first_norm)
    return (
        f"{said}: at initialisation ‖∂ε/∂x‖ at its first unit is {original.first_norm:.3g}, {times} the "
        f"pre-activation network's {preactivation.first_norm:.3g}."
    )


def _ends(original: InitialState, preactivation: InitialState) -> str:
    """Whence the factor: from the end of the network, or from the way through it."""
    why = (
        ", for only the pre-activation network has a BN there, which divides the gradient by the deviation "
        f"of x_L ({preactivation.deviation:.3g} here, and growing with depth)"
    )
    return (
        f"Behind the last unit it is already {_times(original.last_norm, preactivation.last_norm)} the other"
        f"{why if original.last_norm > preactivation.last_norm else ''}. On the way back to the first unit "
        f"the gradient grows {original.gradient.growth:.3g} times in the original network and "
        f"{preactivation.gradient.growth:.3g} times in the pre-activation network."
    )


def _direct(original: InitialState, preactivation: InitialState) -> str:
    return (
        "What differs on the way is the direct term. By P2, Eq. 5, ∂ε/∂x_l = ∂ε/∂x_L · (1 + ∂/∂x_l Σ F): the "
        "1 comes through the shortcuts, whatever the weights are. Of the gradient at the end of the first "
        f"stage {percent_text(preactivation.direct_share)} comes to the first unit this way in the pre-activation "
        f"network, and {percent_text(original.direct_share)} in the original one, where the ReLU after every addition "
        "cuts it. All else comes through the weights, and changes with every step."
    )


def _times(a: float, b: float) -> str:
    if not a or not b:
        return "not to be compared with"
    return f"{a / b:.3g} times"


def next_commands(demo_runs: DemoRuns, folder: Path) -> tuple[tuple[str, str], ...]:
    """Three (what for, command line) to go on with."""
    depth = max(depth for depth, _ in demo_runs)
    original, preactivation = demo_runs[depth, ORIGINAL], demo_runs[depth, PREACTIVATION]
    recipe = original.experiment.recipe
    runs = [str(original.path), str(preactivation.path)]
    rate = f"{SMALLER_RATE * recipe.rate.peak:.2g}"
    slower = ["--model", f"resnet{depth}_cifar", "--iterations", str(recipe.iterations), "--lr", rate]
    return (
        (
            "See the gradient of the trained networks; those above are at initialisation",
            _line("analyse", "gradient", *runs, "--html", str(folder / "gradient.html")),
        ),
        (
            f"Try whether smaller steps, {rate} for {recipe.rate.peak:g}, suit the original unit",
            _line("train", *slower, "--validation", "0", "--seed", str(original.experiment.seed)),
        ),
        ("Change h, f and the depth, and see what becomes of signal and gradient", _line("lens")),
    )


def _line(*words: str) -> str:
    return shlex.join(["kilolayer", *words])
