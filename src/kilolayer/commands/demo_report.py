"""What the demo shows at its end: a table, and a page with the curves."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from kilolayer.analysis.chain import Chain
from kilolayer.analysis.gradient import gradient
from kilolayer.commands.demo import UNITS
from kilolayer.commands.demo_finding import (
    ORIGINAL,
    Plan,
    Start,
    Starts,
    errors,
    findings,
    guessing,
    next_commands,
)
from kilolayer.data import load
from kilolayer.data.augment import batch
from kilolayer.data.statistics import measure
from kilolayer.errors import InputError
from kilolayer.networks import build
from kilolayer.report.chart_figures import chart_figure
from kilolayer.report.content import Figure, Listing, Page, Section, Table
from kilolayer.report.curves import Curve
from kilolayer.report.depth import DepthLine, Profile, by_unit, error_against_depth
from kilolayer.report.page import write
from kilolayer.report.plots import training
from kilolayer.runs import Run
from kilolayer.runs.environment import command
from kilolayer.terminal import say, show_table
from kilolayer.training import Experiment
from kilolayer.values import to_json

HEADER = ("depth", "unit", "test error %", "training loss", "gradient norm at the first unit")
PROBED_IMAGES = 128


def measure_start(experiment: Experiment) -> Start:
    """The network as it was initialised, on its first training images."""
    splits = load(experiment.data)
    statistics = measure(splits.train, experiment.recipe.normalization)
    torch.manual_seed(experiment.seed)
    model = build(experiment.network)
    x, labels = batch(
        splits.train, statistics, experiment.recipe.augmentation, experiment.seed, 0, range(PROBED_IMAGES)
    )
    return Start(gradient(model, x, labels), _deviation(model, x))


@torch.no_grad()
def _deviation(model: nn.Module, x: Tensor) -> float:
    """√ of the variance of x_L over images and positions, mean over channels."""
    *_, last = Chain(model).forward(x)
    return math.sqrt(float(last.out.double().transpose(0, 1).flatten(1).var(1).mean()))


def rows_of(planned: Plan, starts: Starts) -> list[tuple[str, ...]]:
    """The closing table, a row for every network."""
    return [
        (str(depth), UNITS[unit], *_figures(Run(one.path)), f"{starts[depth, unit].first:.3g}")
        for (depth, unit), one in planned.items()
    ]


def _figures(run: Run) -> tuple[str, str]:
    result, rows = run.result() or {}, run.metrics()
    error = result.get("test_error")
    text = str(result.get("status", "not run")) if error is None else f"{error:.2f}"
    return text, f"{rows[-1]['train_loss']:.3f}" if rows else "–"


def print_summary(planned: Plan, starts: Starts, folder: Path, page: Path) -> None:
    """The closing table on the terminal, what it shows, and what to do next."""
    say("\nDepth against unit, on handwritten digits (one seed)\n", style="bold")
    show_table(Table("", HEADER, tuple(rows_of(planned, starts))), drop=("training loss",))
    for sentence in findings(planned, starts):
        say(f"\n{sentence}")
    say("\nnext:")
    for purpose, line in next_commands(planned, folder):
        say(f"  # {purpose}", hanging=4)
        say(f"  {line}")
    print(f"report: {page.resolve()}")


def write_report(planned: Plan, starts: Starts, folder: Path) -> Path:
    """The page, which opens with what was found; returns its path."""
    deepest = max(depth for depth, _ in planned)
    outcome, *reasons = findings(planned, starts)
    page = Page(
        title="Identity mappings, seen on handwritten digits",
        subtitle="Original and pre-activation residual units at growing depth",
        sections=(
            Section("What was found", (outcome,), (_error_by_depth(planned),)),
            Section(
                "The gradient on its way back",
                (*reasons, GRADIENT),
                (_gradient_figure(starts, deepest), _direct_figure(starts, deepest)),
            ),
            Section("Every network", CLAIM, (_table(planned, starts),)),
            Section(
                "Training curves",
                (),
                tuple(_curves(planned, depth) for depth in sorted({d for d, _ in planned}, reverse=True)),
            ),
            Section("What to do next", (), _next(planned, folder)),
            Section("Recipe", (), (_recipe(planned),)),
        ),
        provenance=_provenance(planned),
    )
    return write(page, folder / "report.html")


CLAIM = (
    "Both columns train the same number of layers on the same images in the same order. In the original "
    "unit (P1) a ReLU follows every addition; in the pre-activation unit (P2) BN and ReLU stand ahead of "
    "the convolutions, so that nothing but additions lies between the first unit and the last.",
    "P2 reports that the difference grows with depth: at 110 layers on CIFAR-10 the two end at 6.61 % and "
    "6.37 %, at 1001 layers at 7.61 % and 4.92 %, and the original 1001 layers lower their loss slowly at "
    "first. This page shows that beginning, on small pictures and with a short recipe: one seed, and no "
    "reproduction of the paper's figures.",
)
GRADIENT = f"Both figures show the networks as initialised, on the first {PROBED_IMAGES} training images."


def _table(planned: Plan, starts: Starts) -> Table:
    return Table(
        "Test error, training loss and the first gradient, by depth and unit; lower errors are better.",
        HEADER,
        tuple(rows_of(planned, starts)),
        "Digits: 1,437 training and 360 test images of 8 × 8 pixels. The gradient norm is the one at "
        "initialisation, at the input of the first unit.",
    )


def _error_by_depth(planned: Plan) -> Figure:
    found = errors(planned)
    lines = []
    for unit, label in UNITS.items():
        known = [(depth, error) for (depth, name), error in found.items() if name == unit]
        lines.append(DepthLine(label, tuple(d for d, _ in known), tuple((error,) for _, error in known)))
    drawn = error_against_depth(lines, "Test error by depth")
    chance = guessing(next(iter(planned.values())).experiment)
    caption = f"Test error against depth; lower is better, and guessing is {chance:.0f} % wrong."
    return Figure(caption, drawn, "Test error against depth, a line for each unit")


def _curves(planned: Plan, depth: int) -> Figure:
    curves = [
        Curve.from_metrics(label, Run(planned[depth, unit].path).metrics()) for unit, label in UNITS.items()
    ]
    drawn = training(curves, f"Training at {depth} layers")
    caption = f"{depth} layers: training loss above and test error below; the lower, the better."
    return Figure(caption, drawn, f"Training loss and test error of both units at {depth} layers")


def _gradient_figure(starts: Starts, depth: int) -> Figure:
    profiles = [
        Profile(label, tuple(unit.norm for unit in starts[depth, name].gradient.units))
        for name, label in UNITS.items()
    ]
    stages = starts[depth, ORIGINAL].gradient.charts()[0].stages
    drawn = by_unit(profiles, f"Gradient norm at {depth} layers", "gradient norm ‖∂ε/∂x_l‖", stages)
    return Figure(
        f"Gradient norm at the input of every unit, {depth} layers. It comes from the right, and grows on "
        "its way; where an upright line stands, the network's shape changes.",
        drawn,
        "Gradient norm by unit",
    )


def _direct_figure(starts: Starts, depth: int) -> Figure:
    panels = [(label, starts[depth, name].gradient.charts()[1]) for name, label in UNITS.items()]
    return Figure(
        f"{depth} layers: of the gradient at the end of a stage, what comes to each of its units through "
        "shortcuts alone; 1 is all of it. The first unit of a later stage changes the shape, which costs "
        "some of it in both networks.",
        chart_figure(panels),
        "Share of the gradient that comes through shortcuts, by unit",
    )


def _next(planned: Plan, folder: Path) -> tuple[Listing, ...]:
    return tuple(Listing(f"{purpose}.", line) for purpose, line in next_commands(planned, folder))


def _recipe(planned: Plan) -> Listing:
    experiment = next(iter(planned.values())).experiment
    return Listing("The recipe, the same for every network.", to_json(experiment.recipe))


def _reason(planned: Plan) -> str:
    """Why the first of its runs failed."""
    result = Run(next(iter(planned.values())).path).result() or {}
    return str(result.get("reason", "it has no result"))


def _provenance(planned: Plan) -> tuple[tuple[str, str], ...]:
    starts = [start for one in planned.values() for start in Run(one.path).environments()]
    if not starts:
        raise InputError(f"no network of the demo was trained: {_reason(planned)}")
    start = starts[0]
    versions = f"kilolayer {start['kilolayer']}, PyTorch {start['torch']}, Python {start['python']}"
    machine = f"{start['processor']}, {start['cores']} cores, {start['threads']} threads a network"
    return (("command", command()), ("versions", versions), ("machine", machine), ("date", start["date"]))
