"""Training as a generator of steps, so that recording and display stand in the caller's `for`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from kilolayer.data import Images, Splits
from kilolayer.training.device import DistributedContext
from kilolayer.training.evaluation import Evaluation, evaluate
from kilolayer.training.experiment import Experiment
from kilolayer.training.step import Stepping


@dataclass(frozen=True)
class EpochMetrics:
    """What one epoch measured; errors in percent. The `monitored` figures are None where not evaluated."""

    epoch: int
    iteration: int
    learning_rate: float
    train_loss: float
    train_error: float
    monitored_loss: float | None
    monitored_error: float | None
    images_per_second: float
    seconds: float


@dataclass(frozen=True)
class FinalMetrics:
    """The figures on the test set: of the last weights, and of those with the least validation error."""

    last: Evaluation
    selected: Evaluation | None


@dataclass(frozen=True)
class StepResult:
    """One optimisation step done; `epoch` stands on the last step of each.

    loss: what the step went down on, the mean over this process's images, as a tensor where they lie;
    `float(step.loss)` waits for it. NaN where a stopped training goes on with the evaluation of an epoch,
    whose last step was taken before.
    """

    iteration: int
    loss: Tensor
    epoch: EpochMetrics | None = None


class Trainer(Stepping):
    """An experiment under way on one process's device.

    Iterating over `steps()` trains, and `conclude()` measures the result; between two steps the state
    (`tensors`, `counters`) is complete, and `restore` continues from it exactly: images, augmentation and
    dropout are pure functions of (seed, epoch, position), not of a generator's state.

    Raises `InputError` where batch, data and processes do not fit together, and `NonFinite`.
    """

    def __init__(self, experiment: Experiment, splits: Splits, context: DistributedContext) -> None:
        super().__init__(experiment, splits, context)
        self.final: FinalMetrics | None = None

    @property
    def monitor(self) -> str:
        """Which split gives the error of every epoch: "validation" or "test"."""
        return "test" if self.splits.validation is None else "validation"

    @property
    def is_finished(self) -> bool:
        """Whether the final figures are there."""
        return self.final is not None

    @property
    def steps_finished(self) -> bool:
        """Whether all steps are done and every epoch is evaluated."""
        return self.iteration >= self.experiment.recipe.iterations and not self._epoch_open()

    @property
    def num_epochs(self) -> int:
        """How many epochs the recipe has, the last perhaps a part of one."""
        return -(-self.experiment.recipe.iterations // self.epoch_length)

    def _epoch_open(self) -> bool:
        """Whether the steps of an epoch are all done, but its evaluation is not."""
        whole = self.iteration // self.epoch_length
        ended = whole + (
            self.iteration >= self.experiment.recipe.iterations and self.iteration % self.epoch_length > 0
        )
        return ended > self.epochs_closed

    def running_metrics(self) -> tuple[float, float]:
        """Training loss and error (percent) so far in this epoch, of this process."""
        count, loss, wrong = self.epoch_sums.tolist()
        return (loss / count, 100 * wrong / count) if count else (math.nan, math.nan)

    def steps(self, stop: Callable[[], bool] = lambda: False) -> Iterator[StepResult]:
        """Trains to the end of the recipe, or until `stop()` turns true in any process."""
        if self._epoch_open():
            yield from self._close_epoch(stop)
        # An epoch that is still open then was stopped in its evaluation.
        while not (self.steps_finished or self._epoch_open() or self._stopping(stop)):
            started = time.perf_counter()
            self._step()
            if self._epoch_open() and self.context.device.type == "cuda":
                torch.cuda.synchronize(self.context.device)  # what was only launched is part of its time
            self.seconds += time.perf_counter() - started
            if self._epoch_open():
                yield from self._close_epoch(stop)
            else:
                yield StepResult(self.iteration, self.loss.clone())

    def _stopping(self, stop: Callable[[], bool]) -> bool:
        return self.context.is_sync_step(self.iteration) and self.context.any(stop())

    def _close_epoch(self, stop: Callable[[], bool]) -> Iterator[StepResult]:
        record = self.epochs_closed + 1
        due = record % self.experiment.evaluate_every == 0 or record == self.num_epochs
        self.check_finite()
        measured: Evaluation | None = None
        if due:
            self._share_buffers()
            measured = self.evaluate(self.splits.validation or self.splits.test, stop)
            if measured is None:
                return
        self._check_measured(self.monitor, measured)
        yield StepResult(self.iteration, self.loss.clone(), self._record(record, measured))

    def _check_measured(self, split: str, measured: Evaluation | None) -> None:
        if measured and not math.isfinite(measured.loss):
            self.raise_non_finite(f"the {split} loss")

    def conclude(self, stop: Callable[[], bool] = lambda: False) -> FinalMetrics | None:
        """The figures on the test set, which is read here; None if `stop()` turned true on the way."""
        last = self.evaluate(self.splits.test, stop)
        self._check_measured("test", last)
        selected = self._of_best(stop) if last and self.best_state else None
        if last and (selected or not self.best_state):
            self.final = FinalMetrics(last, selected)
        return self.final

    def _of_best(self, stop: Callable[[], bool]) -> Evaluation | None:
        with self._holding(self.best_state):
            return self._evaluate(self.splits.test, stop)

    @contextmanager
    def _holding(self, state: dict[str, Tensor]) -> Iterator[None]:
        """Within, the network has the weights of `state`."""
        last = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.model.load_state_dict(state)
        try:
            yield
        finally:
            self.model.load_state_dict(last)

    def _record(self, number: int, measured: Evaluation | None) -> EpochMetrics:
        count, loss, wrong = self.context.all_reduce(self.epoch_sums.clone()).tolist()
        if measured and measured.error < self.best_error:
            self.best_error, self.best_epoch = measured.error, number
            if self.monitor == "validation":
                self.best_state = {key: value.detach().clone() for key, value in self.reported_state.items()}
        record = EpochMetrics(
            epoch=number,
            iteration=self.iteration,
            learning_rate=self.experiment.recipe.rate(self.iteration - 1),
            train_loss=loss / count,
            train_error=100 * wrong / count,
            monitored_loss=measured.loss if measured else None,
            monitored_error=measured.error if measured else None,
            images_per_second=count / self.seconds if self.seconds else 0.0,
            seconds=self.seconds,
        )
        self.epochs_closed, self.seconds = number, 0.0
        self.epoch_sums.zero_()
        return record

    def _share_buffers(self) -> None:
        # BN's running averages differ between processes; the leader's are the network's.
        if self.context.world_size > 1:
            mean = self.ema.state if self.ema else {}
            for name, buffer in self.model.named_buffers():
                for tensor in (buffer, *([mean[name]] if name in mean else [])):
                    torch.distributed.broadcast(tensor, 0)

    def evaluate(self, images: Images, stop: Callable[[], bool] = lambda: False) -> Evaluation | None:
        """The network with the weights whose errors are `reported`, on `images`."""
        with self._holding(self.ema.state) if self.ema else nullcontext():
            return self._evaluate(images, stop)

    def _evaluate(self, images: Images, stop: Callable[[], bool]) -> Evaluation | None:
        return evaluate(
            self.model,
            images,
            self.statistics,
            context=self.context,
            num_classes=self.splits.num_classes,
            precision=self.experiment.precision,
            channels_last=self.experiment.channels_last,
            evaluation=self.experiment.evaluation,
            stop=stop,
        )
