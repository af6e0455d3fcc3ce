"""The demo's closing table, and its page with findings and curves."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from kilolayer.data import load
from kilolayer.data.augmentation import batch_at
from kilolayer.data.normalization import measure_statistics
from kilolayer.errors import InputError
from kilolayer.measure.gradient import measure_gradient
from kilolayer.measure.unit_chain import UnitChain
from kilolayer.networks import build
from kilolayer.report.chart_figures import chart_figure
from kilolayer.report.curves import Curve
from kilolayer.report.demo_finding import (
    ORIGINAL,
    DemoRuns,
    InitialState,
    InitialStates,
    chance_error,
    demo_errors,
    demo_findings,
    next_commands,
)
from kilolayer.report.document import Figure, Listing, Page, Section, Table
from kilolayer.report.page import write_page
from kilolayer.report.plots import DepthLine, Profile, error_against_depth, profile_by_unit, training_curves
from kilolayer.runs import Run
from kilolayer.runs.start_environment import current_command
from kilolayer.sweep.demo_plan import UNITS
from kilolayer.system.printer import print_line
from kilolayer.system.terminal import print_table, print_text
from kilolayer.training import Experiment
from kilolayer.values import to_json

HEADER = ("depth", "unit", "test error %", "training loss", "gradient norm at the first unit")
PROBED_IMAGES = 128


def measure_initial_state(experiment: Experiment) -> InitialState:
    """Measures the network at its initialisation, on its first training images."""
    splits = load(experiment.data)
    statistics = measure_statistics(splits.train, experiment.recipe.normalization)
    torch.manual_seed(experiment.seed)
    model = build(experiment.network)
    x, labels = batch_at(
        splits.train, statistics, experiment.recipe.augmentation, experiment.seed, 0, range(PROBED_IMAGES)
    )
    return InitialState(measure_gradient(model, x, labels), _deviation(model, x))


@torch.no_grad()
def _deviation(model: nn.Module, x: Tensor) -> float:
    """√Var(x_L): the variance over images and positions, averaged over channels."""
    *_, last = UnitChain(model).forward(x)
    return math.sqrt(float(last.out.double().transpose(0, 1).flatten(1).var(1).mean()))


def summary_rows(runs: DemoRuns, initial_states: InitialStates) -> list[tuple[str, ...]]:
    """The rows of the closing table, one for each network."""
    return [
        (str(depth), UNITS[unit], *_figures(Run(run.path)), f"{initial_states[depth, unit].first_norm:.3g}")
        for (depth, unit), run in runs.items()
    ]


def _figures(run: Run) -> tuple[str, str]:
    result, rows = run.result() or {}, run.metrics()
    error = result.get("test_error")
    text = str(result.get("status", "not run")) if error is None else f"{error:.2f}"
    return text, f"{rows[-1].get('train_loss', math.nan):.3f}" if rows else "–"


def print_demo_summary(runs: DemoRuns, initial_states: InitialStates, folder: Path, page: Path) -> None:
    """Prints the closing table, the findings, and the suggested commands."""
    print_text("\nDepth against unit, on handwritten digits (one seed)\n", style="bold")
    print_table(Table("", HEADER, tuple(summary_rows(runs, initial_states))), drop=("training loss",))
    for sentence in demo_findings(runs, initial_states):
        print_text(f"\n{sentence}")
    print_text("\nnext:")
    for purpose, line in next_commands(runs, folder):
        print_text(f"  # {purpose}", hanging=4)
        print_text(f"  {line}")
    print_line(f"report: {page.resolve()}")


def write_demo_report(runs: DemoRuns, initial_states: InitialStates, folder: Path) -> Path:
    """Writes the page, which opens with the findings, and returns its path."""
    deepest = max(depth for depth, _ in runs)
    outcome, *reasons = demo_findings(runs, initial_states)
    page = Page(
        title="Identity mappings, seen on handwritten digits",
        subtitle="Original and pre-activation residual units at growing depth",
        sections=(
            Section("Findings", (outcome,), (_error_by_depth(runs),)),
            Section(
                "The backward gradient",
                (*reasons, GRADIENT),
                (_gradient_figure(initial_states, deepest), _direct_figure(initial_states, deepest)),
            ),
            Section("All networks", CLAIM, (_table(runs, initial_states),)),
            Section(
                "Training curves",
                (),
                tuple(_curves(runs, depth) for depth in sorted({d for d, _ in runs}, reverse=True)),
            ),
            Section("Next steps", (), _next(runs, folder)),
            Section("Recipe", (), (_recipe(runs),)),
        ),
        provenance=_provenance(runs),
    )
    return write_page(page, folder / "report.html")


CLAIM = (
    "Both units train the same number of layers on the same images in the same order. In the original "
    "unit (P1) a ReLU follows every addition. In the pre-activation unit (P2) BN and ReLU stand before "
    "the convolutions, so only additions lie between the first unit and the last.",
    "P2 reports that the difference grows with depth. At 110 layers on CIFAR-10 the two units reach 6.61 % "
    "and 6.37 %, at 1001 layers 7.61 % and 4.92 %; the loss of the original 1001 layers falls slowly at "
    "first. This page shows that slow start on small images with a short recipe. It has one seed and does "
    "not reproduce the paper's figures.",
)
GRADIENT = f"Both figures show the networks as initialised, on the first {PROBED_IMAGES} training images."


def _table(planned: DemoRuns, starts: InitialStates) -> Table:
    return Table(
        "Test error, training loss and the first gradient, by depth and unit; lower errors are better.",
        HEADER,
        tuple(summary_rows(planned, starts)),
        "Digits: 1,437 training and 360 test images of 8 × 8 pixels. The gradient norm is the one at "
        "initialisation, at the input of the first unit.",
    )


def _error_by_depth(planned: DemoRuns) -> Figure:
    error_of = demo_errors(planned)
    lines = []
    for unit, label in UNITS.items():
        points = [(depth, error) for (depth, name), error in error_of.items() if name == unit]
        lines.append(DepthLine(label, tuple(d for d, _ in points), tuple((error,) for _, error in points)))
    drawing = error_against_depth(lines, "Test error by depth")
    chance = chance_error(next(iter(planned.values())).experiment)
    caption = f"Test error against depth; lower is better, and guessing is {chance:.0f} % wrong."
    return Figure(caption, drawing, "Test error against depth, a line for each unit")


def _curves(planned: DemoRuns, depth: int) -> Figure:
    curves = [
        Curve.from_metrics(label, Run(planned[depth, unit].path).metrics()) for unit, label in UNITS.items()
    ]
    drawing = training_curves(curves, f"Training at {depth} layers")
    caption = f"{depth} layers: training loss above, test error below. Lower is better."
    return Figure(caption, drawing, f"Training loss and test error of both units at {depth} layers")


def _gradient_figure(starts: InitialStates, depth: int) -> Figure:
    profiles = [
        Profile(label, tuple(unit.norm for unit in starts[depth, name].gradient.units))
        for name, label in UNITS.items()
    ]
    stages = starts[depth, ORIGINAL].gradient.charts()[0].stages
    drawing = profile_by_unit(profiles, f"Gradient norm at {depth} layers", "gradient norm ‖∂ε/∂x_l‖", stages)
    return Figure(
        f"Gradient norm at the input of every unit, {depth} layers. The gradient arrives from the right "
        "and grows on its way. At a vertical line the network's shape changes.",
        drawing,
        "Gradient norm by unit",
    )


def _direct_figure(starts: InitialStates, depth: int) -> Figure:
    panels = [(label, starts[depth, name].gradient.charts()[1]) for name, label in UNITS.items()]
    return Figure(
        f"{depth} layers: the share of the gradient at the end of a stage that reaches each of its units "
        "through shortcuts alone. The first unit of a later stage changes the shape, which costs a part of "
        "it in both networks.",
        chart_figure(panels),
        "Share of the gradient that comes through shortcuts, by unit",
    )


def _next(planned: DemoRuns, folder: Path) -> tuple[Listing, ...]:
    return tuple(Listing(f"{purpose}.", line) for purpose, line in next_commands(planned, folder))


def _recipe(planned: DemoRuns) -> Listing:
    experiment = next(iter(planned.values())).experiment
    return Listing("The recipe, the same for every network.", to_json(experiment.recipe))


def _reason(planned: DemoRuns) -> str:
    """Why the demo's first run failed."""
    result = Run(next(iter(planned.values())).path).result() or {}
    return str(result.get("reason", "it has no result"))


def _provenance(planned: DemoRuns) -> tuple[tuple[str, str], ...]:
    starts = [start for run in planned.values() for start in Run(run.path).environments()]
    if not starts:
        raise InputError(f"none of the demo's networks was trained: {_reason(planned)}")
    start = starts[0]
    versions = f"kilolayer {start['kilolayer']}, PyTorch {start['torch']}, Python {start['python']}"
    machine = f"{start['processor']}, {start['cores']} cores, {start['threads']} threads a network"
    return (
        ("command", current_command()),
        ("versions", versions),
        ("machine", machine),
        ("date", start["date"]),
    )
