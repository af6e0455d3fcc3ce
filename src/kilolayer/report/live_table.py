"""A table that fills while runs train; without a terminal, one line for each finished run."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Group
from rich.text import Text

from kilolayer.report.amounts import duration_text
from kilolayer.report.document import Table
from kilolayer.sweep.run_spec import RunProgress, RunSpec, read_progress
from kilolayer.system.printer import escape_line, print_line
from kilolayer.system.terminal import Console, LiveDisplay, fit_table, is_screen


@dataclass
class LiveTable:
    """A table of rows × columns, where each cell stands for one or more runs (its seeds).

    A cell shows the median test error of its finished runs, or the progress of its running ones.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    cells: Mapping[tuple[str, str], Sequence[RunSpec]]
    console: Console = field(default_factory=Console)
    metric: str = "test_error"
    """The figure of a run's result that a cell shows."""
    run_names: Mapping[str, str] = field(default_factory=dict)
    """Names for the lines, by the run's key; otherwise row, column and seed."""

    def __post_init__(self) -> None:
        self._runs = {run.key: run for runs in self.cells.values() for run in runs}
        self._names = {**_run_names(self.cells), **self.run_names}
        self._states: dict[str, RunProgress] = {}
        self._read_at = 0.0
        self._read()
        self._started = time.monotonic()
        self._work_before = self._work_done()
        self._watched = is_screen(self.console.file)
        self._live = LiveDisplay(
            console=self.console,
            get_renderable=self._shown,
            auto_refresh=False,
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )

    def __enter__(self) -> LiveTable:
        if self._watched:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._read()
        if self._watched:
            self._live.refresh()
            self._live.stop()

    def refresh(self) -> None:
        """Reads the run folders again and redraws the table, at most twice a second."""
        if time.monotonic() - self._read_at < 0.5:
            return
        self._read()
        if self._watched:
            self._live.refresh()

    def _read(self) -> None:
        self._read_at = time.monotonic()
        for key, run in self._runs.items():
            before = self._states.get(key)
            if before and before.is_finished:
                continue
            self._states[key] = read_progress(run)
            if before and self._states[key].is_finished and not self._watched:
                self._print_finished(key)

    @property
    def _finished(self) -> int:
        return sum(state.is_finished for state in self._states.values())

    def _print_finished(self, key: str) -> None:
        text = run_text(self._runs[key], self._states[key], self.metric)
        line = f"[{self._finished}/{len(self._runs)}] {self._names[key]}: {text}{self._time_left()}"
        print_line(line)

    def _shown(self) -> Group:
        """One grid for each set of columns: two tables in one grid would leave half of it empty."""
        by_columns: dict[tuple[str, ...], list[str]] = {}
        for row in self.rows:
            columns = tuple(column for column in self.columns if (row, column) in self.cells)
            by_columns.setdefault(columns, []).append(row)
        width = self.console.width
        tables = (self._table(rows, columns) for columns, rows in by_columns.items())
        grids = (part for table in tables for part in (*fit_table(table, width, blocks=True), Text("")))
        progress = f"{self._finished} of {len(self._runs)} runs finished{self._time_left()}"
        return Group(Text(f"{escape_line(self.title)}\n", style="bold"), *grids, Text(progress))

    def _table(self, rows: Sequence[str], columns: Sequence[str]) -> Table:
        cells = ((row, *(self._cell(self.cells[row, column]) for column in columns)) for row in rows)
        return Table("", ("", *columns), tuple(cells))

    def _cell(self, runs: Sequence[RunSpec]) -> str:
        states = [(run, self._states[run.key]) for run in runs]
        finished = [state for _, state in states if state.is_finished]
        running = [(run, state) for run, state in states if state.running]
        if len(states) == 1 or (running and not finished):
            return run_text(*(running or states)[0], self.metric)
        if not finished:
            return f"0/{len(runs)}" if runs else "–"
        return f"{median_text(finished, self.metric)} ({len(finished)}/{len(runs)})"

    def _work_done(self) -> float:
        return sum(_share(run, self._states[key]) * _work(run) for key, run in self._runs.items())

    def _time_left(self) -> str:
        finished, total = self._work_done(), sum(map(_work, self._runs.values()))
        if finished <= self._work_before or finished >= total:
            return ""
        speed = (finished - self._work_before) / (time.monotonic() - self._started)
        return f", about {duration_text((total - finished) / speed)} left"


def _run_names(cells: Mapping[tuple[str, str], Sequence[RunSpec]]) -> dict[str, str]:
    """A name for each run: its row, its column where there are several, and its seed."""
    several = len({column for _, column in cells}) > 1
    names: dict[str, str] = {}
    for (row, column), runs in cells.items():
        label = f"{row} | {column}" if several else row
        for run in runs:
            names.setdefault(run.key, f"{label} | seed {run.experiment.seed}")
    return names


def run_text(run: RunSpec, state: RunProgress, metric: str = "test_error") -> str:
    """The state of one run in a few words."""
    if state.result is not None:
        value = state.figure(metric)
        return str(state.result["status"]) if value is None else f"{value:.2f} %"
    if state.last_metrics is None:
        return "…"
    loss = state.last_metrics.get("train_loss", math.nan)
    return f"{100 * _share(run, state):.0f} % done, loss {loss:.2f}"


def median_text(states: Sequence[RunProgress], metric: str = "test_error") -> str:
    """The median error of finished runs; "fail" where most of them have no error."""
    values = [state.figure(metric) for state in states]
    middle = statistics.median(math.inf if value is None else value for value in values)
    return "fail" if math.isinf(middle) else f"{middle:.2f} %"


def _share(run: RunSpec, state: RunProgress) -> float:
    if state.is_finished:
        return 1.0
    iteration = state.last_metrics["iteration"] if state.last_metrics else 0
    return min(1.0, iteration / run.experiment.recipe.iterations)


def _work(run: RunSpec) -> float:
    recipe = run.experiment.recipe
    return recipe.iterations * recipe.batch_size * run.experiment.network.multiply_adds
