"""How training shows itself: a bar where a person watches, a line per epoch where a file does."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from kilolayer.training import Training

SECONDS_BETWEEN_LOOKS = 0.2


def display(training: Training) -> Bar | Lines:
    """The bar on a terminal, else lines."""
    return Bar(training) if sys.stdout.isatty() else Lines(training)


class Lines:
    """A line per epoch: names and values in turn, so that a program can read it too."""

    def __init__(self, training: Training) -> None:
        self.training = training

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *raised: object) -> None:
        pass

    def step(self) -> None:
        pass

    def epoch(self, row: dict[str, Any]) -> None:
        monitor = self.training.monitor
        figures = {
            "epoch": f"{row['epoch']}/{self.training.epochs}",
            "iteration": str(row["iteration"]),
            "lr": f"{row['learning_rate']:.4g}",
            "train_loss": f"{row['train_loss']:.4f}",
            "train_error": f"{row['train_error']:.2f}",
        }
        if f"{monitor}_error" in row:
            figures[f"{monitor}_loss"] = f"{row[f'{monitor}_loss']:.4f}"
            figures[f"{monitor}_error"] = f"{row[f'{monitor}_error']:.2f}"
        figures["images/s"] = f"{row['images_per_second']:.0f}"
        print("  ".join(f"{name} {value}" for name, value in figures.items()), flush=True)


class Bar(Progress):
    """Epoch, iteration and time left on one line; loss, errors and speed below it."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.figures: dict[str, str] = {}
        self._looked = 0.0
        super().__init__(
            TextColumn(f"epoch {{task.fields[epoch]}}/{training.epochs}"),
            BarColumn(bar_width=None),
            TaskProgressColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=Console(),
            transient=True,
            expand=True,
        )
        total = training.experiment.recipe.iterations
        self._bar = self.add_task("", total=total, epoch=1)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield Text(" · ".join(f"{name} {value}" for name, value in self.figures.items()), style="dim")

    def step(self) -> None:
        now = time.monotonic()
        if now - self._looked < SECONDS_BETWEEN_LOOKS:
            return
        # Looking at the loss waits for a GPU, so it is not looked at every time.
        first, self._looked = not self._looked, now
        loss, error = self.training.running()
        if not math.isnan(loss):
            self.figures |= {"loss": f"{loss:.3f}", "training error": f"{error:.1f} %"}
        at = min(self.training.epochs, self.training.epochs_closed + 1)
        if first:
            # A run that goes on was not as fast as to do all of that now.
            self.reset(self._bar, completed=self.training.iteration, epoch=at)
        self.update(self._bar, completed=self.training.iteration, epoch=at)

    def epoch(self, row: dict[str, Any]) -> None:
        monitor = self.training.monitor
        self.figures = {"loss": f"{row['train_loss']:.3f}", "training error": f"{row['train_error']:.1f} %"}
        if f"{monitor}_error" in row:
            self.figures[f"{monitor} error"] = f"{row[f'{monitor}_error']:.1f} %"
        self.figures["images/s"] = f"{row['images_per_second']:,.0f}"
        self.update(self._bar, completed=row["iteration"])
