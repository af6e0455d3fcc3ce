"""What the demo shows at its end: a table, and a page with the curves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from kilolayer.analysis.gradient import unit_gradients
from kilolayer.commands.demo import UNITS
from kilolayer.data import load
from kilolayer.data.augment import batch
from kilolayer.data.statistics import measure
from kilolayer.networks import build
from kilolayer.report.content import Figure, Listing, Page, Section, Table
from kilolayer.report.curves import Curve
from kilolayer.report.depth import DepthLine, Profile, by_unit, error_against_depth
from kilolayer.report.page import write
from kilolayer.report.plots import training
from kilolayer.runs import Run
from kilolayer.runs.environment import command
from kilolayer.sweep.plan import Planned
from kilolayer.terminal import say, show_table
from kilolayer.training import Experiment
from kilolayer.values import to_json

Plan = Mapping[tuple[int, str], Planned]
Gradients = Mapping[tuple[int, str], list[float]]
HEADER = ("depth", "unit", "test error %", "training loss", "gradient norm at the first unit")
PROBED_IMAGES = 128


def start_gradients(experiment: Experiment) -> list[float]:
    """‖∂E/∂x_l‖ at every unit of the network as it was initialised, on its first training images."""
    splits = load(experiment.data)
    statistics = measure(splits.train, experiment.recipe.normalization)
    torch.manual_seed(experiment.seed)
    model = build(experiment.network)
    x, labels = batch(
        splits.train, statistics, experiment.recipe.augmentation, experiment.seed, 0, range(PROBED_IMAGES)
    )
    return unit_gradients(model, x, labels)


def rows_of(planned: Plan, gradients: Gradients) -> list[tuple[str, ...]]:
    """The closing table, a row for every network."""
    return [
        (str(depth), UNITS[unit], *_figures(Run(one.path)), f"{gradients[depth, unit][0]:.3g}")
        for (depth, unit), one in planned.items()
    ]


def _figures(run: Run) -> tuple[str, str]:
    result, rows = run.result() or {}, run.metrics()
    error = result.get("test_error")
    text = str(result.get("status", "not run")) if error is None else f"{error:.2f}"
    return text, f"{rows[-1]['train_loss']:.3f}" if rows else "–"


def print_summary(rows: list[tuple[str, ...]]) -> None:
    """The closing table on the terminal."""
    say("\nDepth against unit, on handwritten digits (one seed)\n", style="bold")
    show_table(Table("", HEADER, tuple(rows)), drop=("training loss",))


def write_report(planned: Plan, gradients: Gradients, folder: Path) -> Path:
    """The page with the training curves drawn as P2 draws them; returns its path."""
    deepest = max(depth for depth, _ in planned)
    page = Page(
        title="Identity mappings, seen on handwritten digits",
        subtitle="Original and pre-activation residual units at growing depth",
        sections=(
            Section("What to look for", CLAIM, (_table(planned, gradients), _error_by_depth(planned))),
            Section(
                "Training curves",
                (),
                tuple(_curves(planned, depth) for depth in sorted({d for d, _ in planned}, reverse=True)),
            ),
            Section(
                "The gradient on its way back", GRADIENT, (_gradient_figure(planned, gradients, deepest),)
            ),
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
GRADIENT = (
    "The norm of the loss's gradient at the input of every unit, at initialisation, on the first "
    f"{PROBED_IMAGES} training images (P2, Eq. 5).",
)


def _table(planned: Plan, gradients: Gradients) -> Table:
    return Table(
        "Test error by depth and unit.",
        HEADER,
        tuple(rows_of(planned, gradients)),
        "Digits: 1,437 training and 360 test images of 8 × 8 pixels. The gradient norm is the one at "
        "initialisation, at the input of the first unit.",
    )


def _error_by_depth(planned: Plan) -> Figure:
    lines = []
    for unit, label in UNITS.items():
        ended = [
            (depth, Run(one.path).result() or {}) for (depth, name), one in planned.items() if name == unit
        ]
        known = [(depth, result["test_error"]) for depth, result in ended if "test_error" in result]
        lines.append(DepthLine(label, tuple(d for d, _ in known), tuple((error,) for _, error in known)))
    drawn = error_against_depth(lines, "Test error by depth")
    return Figure("Test error against depth.", drawn, "Test error against depth, a line for each unit")


def _curves(planned: Plan, depth: int) -> Figure:
    curves = [
        Curve.from_metrics(label, Run(planned[depth, unit].path).metrics()) for unit, label in UNITS.items()
    ]
    drawn = training(curves, f"Training at {depth} layers")
    caption = f"{depth} layers: training loss (dashed, left) and test error (solid, right), as P2 draws them."
    return Figure(caption, drawn, f"Training loss and test error of both units at {depth} layers")


def _gradient_figure(planned: Plan, gradients: Gradients, depth: int) -> Figure:
    profiles = [Profile(label, tuple(gradients[depth, unit])) for unit, label in UNITS.items()]
    drawn = by_unit(profiles, f"Gradient norm at {depth} layers")
    return Figure(
        f"Gradient norm at the input of every unit, {depth} layers, at initialisation.",
        drawn,
        "Gradient norm by unit",
    )


def _recipe(planned: Plan) -> Listing:
    experiment = next(iter(planned.values())).experiment
    return Listing("The recipe, the same for every network.", to_json(experiment.recipe))


def _provenance(planned: Plan) -> tuple[tuple[str, str], ...]:
    start = json.loads(next(iter(planned.values())).path.joinpath("environment.json").read_text())[-1]
    versions = f"kilolayer {start['kilolayer']}, PyTorch {start['torch']}, Python {start['python']}"
    machine = f"{start['processor']}, {start['cores']} cores, {start['threads']} threads a network"
    return (("command", command()), ("versions", versions), ("machine", machine), ("date", start["date"]))
