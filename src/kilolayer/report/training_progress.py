"""The progress of a training: one line that is redrawn on a terminal, otherwise a line for every epoch."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import RenderableType
from rich.progress import Task

from kilolayer.system.printer import print_line
from kilolayer.system.terminal import BAR, ProgressLine, format_duration, is_redrawable, notebook_writer
from kilolayer.training import Trainer

SECONDS_BETWEEN_LOOKS = 0.2
CELL_WIDTH = 100
"""Columns of a notebook's output, whose width is unknown."""


def training_display(training: Trainer) -> TrainingBar | NotebookBar | EpochLines:
    """A bar on a terminal and in a notebook's cell, otherwise lines."""
    if is_redrawable(sys.stdout):
        return TrainingBar(training)
    line = notebook_writer()
    return EpochLines(training) if line is None else NotebookBar(training, line)


class EpochLines:
    """A line per epoch with alternating names and values, which a program can read too."""

    def __init__(self, training: Trainer) -> None:
        self.training = training

    def __enter__(self) -> EpochLines:
        return self

    def __exit__(self, *raised: object) -> None:
        pass

    def step(self) -> None:
        pass

    def epoch(self, row: dict[str, Any]) -> None:
        monitor = self.training.monitor
        figures = {
            "epoch": f"{row['epoch']}/{self.training.num_epochs}",
            "iteration": str(row["iteration"]),
            "lr": f"{row['learning_rate']:.4g}",
            "train_loss": f"{row['train_loss']:.4f}",
            "train_error": f"{row['train_error']:.2f}",
        }
        if f"{monitor}_error" in row:
            figures[f"{monitor}_loss"] = f"{row[f'{monitor}_loss']:.4f}"
            figures[f"{monitor}_error"] = f"{row[f'{monitor}_error']:.2f}"
        figures["images/s"] = f"{row['images_per_second']:.0f}"
        print_line("  ".join(f"{name} {value}" for name, value in figures.items()))


class TrainingBar(ProgressLine):
    """Epoch, loss, error, images/s and time left on one line, as far as there is room."""

    def __init__(self, training: Trainer, *, disable: bool = False) -> None:
        self.training = training
        self.values: dict[str, str] = {}
        self._looked = 0.0
        super().__init__(training.experiment.recipe.iterations, disable=disable)

    def figures(self, task: Task) -> list[str]:
        if not self._looked:
            return ["starting"]
        training, recipe = self.training, self.training.experiment.recipe
        epoch = min(training.num_epochs, training.state.epochs_closed + 1)
        speed, seconds_left = task.finished_speed or task.speed, task.time_remaining
        return [
            f"epoch {epoch}/{training.num_epochs}",
            self.values.get("loss", ""),
            self.values.get("error", ""),
            "" if seconds_left is None else f"{format_duration(seconds_left)} left",
            f"{speed * recipe.batch_size:,.0f} images/s" if speed else "",
            BAR,
            self.values.get("monitored", ""),
            f"step {task.completed:,.0f}/{recipe.iterations:,}",
        ]

    def step(self) -> None:
        now = time.monotonic()
        if now - self._looked < SECONDS_BETWEEN_LOOKS:
            return
        # Reading the loss waits for a GPU, so we do not read it at every step.
        first, self._looked = not self._looked, now
        loss, error = self.training.running_metrics()
        if not math.isnan(loss):
            self._show(loss, error)
        if first:
            # A resumed run did not do all its earlier steps just now: they must not count as speed.
            self.reset(self.task_id, completed=self.training.state.iteration)
        self.update(self.task_id, completed=self.training.state.iteration)

    def epoch(self, row: dict[str, Any]) -> None:
        monitor = self.training.monitor
        self._show(row["train_loss"], row["train_error"])
        if f"{monitor}_error" in row:
            self.values["monitored"] = f"{monitor} error {row[f'{monitor}_error']:.1f} %"
        self.update(self.task_id, completed=row["iteration"])

    def _show(self, loss: float, error: float) -> None:
        self.values |= {"loss": f"loss {loss:.3f}", "error": f"error {error:.1f} %"}


class NotebookBar(TrainingBar):
    """The same line in the output of a notebook's cell, whose last state stays."""

    def __init__(self, training: Trainer, write: Callable[[RenderableType], None]) -> None:
        super().__init__(training, disable=True)
        self._write = write

    def step(self) -> None:
        before = self._looked
        super().step()
        if self._looked != before:
            self._write(self.line(CELL_WIDTH))

    def epoch(self, row: dict[str, Any]) -> None:
        super().epoch(row)
        self._write(self.line(CELL_WIDTH))
