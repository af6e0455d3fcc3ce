"""Training as a generator of steps, so that recording and display stand in the caller's `for`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from kilolayer.data import Images, Splits, measure, resampled, select, selected
from kilolayer.errors import InputError
from kilolayer.kernels import fuse
from kilolayer.networks import build
from kilolayer.training import graph
from kilolayer.training.compiling import compile_units
from kilolayer.training.device import Place, repeatable
from kilolayer.training.evaluation import Evaluation, evaluate, forward
from kilolayer.training.experiment import Experiment
from kilolayer.training.memory import allocate, arrange
from kilolayer.training.state import State


@dataclass(frozen=True)
class Epoch:
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
class Final:
    """The figures on the test set: of the last weights, and of those with the least validation error."""

    last: Evaluation
    selected: Evaluation | None


@dataclass(frozen=True)
class Step:
    """One optimisation step done; `epoch` stands on the last step of each."""

    iteration: int
    epoch: Epoch | None = None


class Training(State):
    """An experiment under way on one process's device.

    Iterating over `steps()` trains, and `conclude()` measures the result; between two steps the state
    (`tensors`, `counters`) is complete, and `restore` continues from it exactly: images, augmentation and
    dropout are pure functions of (seed, epoch, position), not of a generator's state.

    Raises `InputError` where batch, data and processes do not fit together, and `NonFinite`.
    """

    def __init__(self, experiment: Experiment, splits: Splits, place: Place) -> None:
        recipe = experiment.recipe
        repeatable(place.device)
        allocate(place.device)
        torch.manual_seed(experiment.seed)
        model = build(experiment.network).to(place.device)
        if experiment.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        super().__init__(experiment, splits, place, model)
        self.statistics = measure(splits.train, recipe.normalization).to(place.device)
        self.train_images = splits.train.to(place.device)
        self.kernels = fuse(self.model) if experiment.kernels == "fused" else None
        if self.kernels and self.kernels.fused and place.device.type == "cuda":
            from kilolayer.kernels.gpu.check import check  # Triton need not be there

            check(self.model)
        self.memory = arrange(self.model, experiment, place)
        self.epoch_length = len(splits.train) // recipe.batch_size
        self.final: Final | None = None
        self._compute = self._wrapped()
        self._dropout = any(isinstance(module, nn.Dropout) for module in self.model.modules())
        self._replay = self._replayed()

    def _wrapped(self) -> nn.Module:
        module: nn.Module = self.model
        if self.experiment.compile == "model":
            module = torch.compile(module)  # type: ignore[assignment]
        elif self.experiment.compile == "units":
            compile_units(self.model)
        if self.place.world > 1:
            module = DistributedDataParallel(module)
        return module

    def _replayed(self) -> graph.Replay | None:
        """What replays the steps as a CUDA graph. None where that is not asked for, or is no GPU."""
        if not self.experiment.graph or self.place.device.type != "cuda":
            return None
        why = graph.refusal(self.place.device, dropout=self._dropout, world=self.place.world)
        if why:
            raise InputError(f"the step cannot be a CUDA graph: {why}; use --graph off")
        return graph.Replay(self._advance, graph.CudaRecorder(self.place.device), self._changed)

    def _changed(self) -> list[Tensor]:
        """What `_advance` changes and the next one reads, where it lies."""
        momentum = [state["momentum_buffer"] for state in self.optimizer.state.values() if state]
        return [*self.model.parameters(), *self.model.buffers(), *momentum, self.sums]

    def restore(self, tensors: dict[str, Tensor], counters: dict[str, Any]) -> None:
        super().restore(tensors, counters)
        if self._replay:
            self._replay.forget()

    @property
    def monitor(self) -> str:
        """Which split gives the error of every epoch: "validation" or "test"."""
        return "test" if self.splits.validation is None else "validation"

    @property
    def done(self) -> bool:
        """Whether the final figures are there."""
        return self.final is not None

    @property
    def trained(self) -> bool:
        """Whether all steps are done and every epoch is evaluated."""
        return self.iteration >= self.experiment.recipe.iterations and not self._epoch_open()

    @property
    def epochs(self) -> int:
        """How many epochs the recipe has, the last perhaps a part of one."""
        return -(-self.experiment.recipe.iterations // self.epoch_length)

    def _epoch_open(self) -> bool:
        """Whether the steps of an epoch are all done, but its evaluation is not."""
        whole = self.iteration // self.epoch_length
        ended = whole + (
            self.iteration >= self.experiment.recipe.iterations and self.iteration % self.epoch_length > 0
        )
        return ended > self.epochs_closed

    def running(self) -> tuple[float, float]:
        """Training loss and error (percent) so far in this epoch, of this process."""
        count, loss, wrong = self.sums.tolist()
        return (loss / count, 100 * wrong / count) if count else (math.nan, math.nan)

    def steps(self, stop: Callable[[], bool] = lambda: False) -> Iterator[Step]:
        """Trains to the end of the recipe, or until `stop()` turns true in any process."""
        if self._epoch_open():
            yield from self._close_epoch(stop)
        # An epoch that is still open then was stopped in its evaluation.
        while not (self.trained or self._epoch_open() or self._stopping(stop)):
            started = time.perf_counter()
            self._step()
            if self._epoch_open() and self.place.device.type == "cuda":
                torch.cuda.synchronize(self.place.device)  # what was only launched is part of its time
            self.seconds += time.perf_counter() - started
            if self._epoch_open():
                yield from self._close_epoch(stop)
            else:
                yield Step(self.iteration)

    def _stopping(self, stop: Callable[[], bool]) -> bool:
        return self.place.meets(self.iteration) and self.place.agree(stop())

    def _step(self) -> None:
        self._prepare()
        if self._replay:
            self._replay(self._fixed)
        else:
            self._advance()
        self.iteration += 1
        if self.average:
            self.average.add(self.model, self.iteration)
        self._watch()

    def _prepare(self) -> None:
        """What a step takes from the host: which images, what chance decides for them, the learning rate."""
        recipe = self.experiment.recipe
        epoch, index = divmod(self.iteration, self.epoch_length)
        share = recipe.batch_size // self.place.world
        start = index * recipe.batch_size + self.place.rank * share
        selection = select(
            len(self.train_images),
            recipe.augmentation,
            self.experiment.seed,
            epoch,
            range(start, start + share),
            self.place.device,
        )
        self._selection = self._replay.held(selection) if self._replay else selection
        if self._dropout:
            torch.manual_seed(_hash(self.experiment.seed, self.iteration, self.place.rank))
        self._side = recipe.resolution.side(self.splits.image_size, self.iteration, recipe.iterations)
        rate = recipe.rate(self.iteration)
        for group in self.optimizer.param_groups:
            # What a graph reads stays where it is.
            group["lr"] = group["lr"].fill_(rate) if isinstance(group["lr"], Tensor) else rate

    @property
    def _fixed(self) -> Hashable:
        """What `_advance` takes from the host: a graph holds it fixed."""
        return self._side

    def _advance(self) -> None:
        """A step on the device: a function of tensors there and of nothing that changes on the host."""
        x, labels = selected(
            self.train_images, self.statistics, self.experiment.recipe.augmentation, self._selection
        )
        logits, loss = self._loss(resampled(x, self._side), labels)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()
        self._count(loss.detach(), logits, labels)

    def _loss(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The logits, and the loss that the step goes down on."""
        logits = forward(self._compute, x, self.experiment.precision, self.experiment.channels_last).float()
        smoothing = self.experiment.recipe.label_smoothing
        return logits, functional.cross_entropy(logits, labels, label_smoothing=smoothing)

    def _count(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        wrong = (logits.argmax(1) != labels).sum()
        count = torch.full_like(loss, len(labels))
        self.sums += torch.stack([count, loss * len(labels), wrong]).double()

    def _watch(self) -> None:
        # On a GPU a look at the loss waits for it, so it is looked at now and then; a NaN stays in the sum.
        if self.iteration % 100 == 0 or (
            self.place.device.type == "cpu" and self.place.meets(self.iteration)
        ):
            self.check_loss()

    def _close_epoch(self, stop: Callable[[], bool]) -> Iterator[Step]:
        record = self.epochs_closed + 1
        due = record % self.experiment.evaluate_every == 0 or record == self.epochs
        self.check_finite()
        measured: Evaluation | None = None
        if due:
            self._share_buffers()
            measured = self.evaluate(self.splits.validation or self.splits.test, stop)
            if measured is None:
                return
        self._check_measured(self.monitor, measured)
        yield Step(self.iteration, self._record(record, measured))

    def _check_measured(self, split: str, measured: Evaluation | None) -> None:
        if measured and not math.isfinite(measured.loss):
            self.fail(f"the {split} loss")

    def conclude(self, stop: Callable[[], bool] = lambda: False) -> Final | None:
        """The figures on the test set, which is read here; None if `stop()` turned true on the way."""
        last = self.evaluate(self.splits.test, stop)
        self._check_measured("test", last)
        selected = self._of_best(stop) if last and self.best_state else None
        if last and (selected or not self.best_state):
            self.final = Final(last, selected)
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

    def _record(self, number: int, measured: Evaluation | None) -> Epoch:
        count, loss, wrong = self.place.total(self.sums.clone()).tolist()
        if measured and measured.error < self.best_error:
            self.best_error, self.best_epoch = measured.error, number
            if self.monitor == "validation":
                self.best_state = {key: value.detach().clone() for key, value in self.reported.items()}
        record = Epoch(
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
        self.sums.zero_()
        return record

    def _share_buffers(self) -> None:
        # BN's running averages differ between processes; the leader's are the network's.
        if self.place.world > 1:
            mean = self.average.state if self.average else {}
            for name, buffer in self.model.named_buffers():
                for tensor in (buffer, *([mean[name]] if mean else [])):
                    torch.distributed.broadcast(tensor, 0)

    def evaluate(self, images: Images, stop: Callable[[], bool] = lambda: False) -> Evaluation | None:
        """The network with the weights whose errors are `reported`, on `images`."""
        with self._holding(self.average.state) if self.average else nullcontext():
            return self._evaluate(images, stop)

    def _evaluate(self, images: Images, stop: Callable[[], bool]) -> Evaluation | None:
        return evaluate(
            self.model,
            images,
            self.statistics,
            place=self.place,
            num_classes=self.splits.num_classes,
            precision=self.experiment.precision,
            channels_last=self.experiment.channels_last,
            evaluation=self.experiment.evaluation,
            stop=stop,
        )


def _hash(*numbers: int) -> int:
    digest = blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
