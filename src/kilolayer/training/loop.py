"""Training as a generator of steps, so that recording and display stand in the caller's `for`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from kilolayer.data import Images, Splits, batch, measure
from kilolayer.errors import InputError
from kilolayer.networks import build
from kilolayer.training.device import Place
from kilolayer.training.evaluation import Evaluation, evaluate, forward
from kilolayer.training.experiment import Experiment
from kilolayer.training.recipes import Recipe


class NonFinite(InputError):
    """A loss, or a tensor of the network, is infinite or not a number any more: the run diverged."""


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


class Training:
    """An experiment under way on one process's device.

    Iterating over `steps()` trains, and `conclude()` measures the result; between two steps the state
    (`tensors`, `counters`) is complete, and `restore` continues from it exactly: images, augmentation and
    dropout are pure functions of (seed, epoch, position), not of a generator's state.

    Raises `InputError` where batch, data and processes do not fit together, and `NonFinite`.
    """

    def __init__(self, experiment: Experiment, splits: Splits, place: Place) -> None:
        self.experiment, self.splits, self.place = experiment, splits, place
        _check(experiment, splits, place)
        recipe = experiment.recipe
        torch.manual_seed(experiment.seed)
        self.model = build(experiment.network).to(place.device)
        if experiment.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model.set_grad_checkpointing(experiment.grad_checkpointing)
        self.statistics = measure(splits.train, recipe.normalization).to(place.device)
        self.train_images = splits.train.to(place.device)
        self.optimizer = _optimizer(self.model, recipe)
        self.epoch_length = len(splits.train) // recipe.batch_size
        self.iteration = 0
        self.epochs_closed = 0
        self.sums = torch.zeros(3, dtype=torch.float64, device=place.device)
        self.best_error = math.inf
        self.best_epoch = 0
        self.best_state: dict[str, Tensor] = {}
        self.final: Final | None = None
        self._compute = self._wrapped()
        self._dropout = any(isinstance(module, nn.Dropout) for module in self.model.modules())
        self._seconds = 0.0

    def _wrapped(self) -> nn.Module:
        module: nn.Module = self.model
        if self.experiment.compile:
            module = torch.compile(module)  # type: ignore[assignment]
        if self.place.world > 1:
            module = DistributedDataParallel(module)
        return module

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

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """What the images are that decide the weights."""
        parts = {"training set": self.splits.train, "validation set": self.splits.validation}
        return {name: images.fingerprint() for name, images in parts.items() if images is not None}

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
            self._seconds += time.perf_counter() - started
            if self._epoch_open():
                yield from self._close_epoch(stop)
            else:
                yield Step(self.iteration)

    def _stopping(self, stop: Callable[[], bool]) -> bool:
        return self.place.meets(self.iteration) and self.place.agree(stop())

    def _step(self) -> None:
        recipe = self.experiment.recipe
        epoch, index = divmod(self.iteration, self.epoch_length)
        first, share = index * recipe.batch_size, recipe.batch_size // self.place.world
        start = first + self.place.rank * share
        x, labels = batch(
            self.train_images,
            self.statistics,
            recipe.augmentation,
            self.experiment.seed,
            epoch,
            range(start, start + share),
        )
        if self._dropout:
            torch.manual_seed(_hash(self.experiment.seed, self.iteration, self.place.rank))
        rate = recipe.rate(self.iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        logits = forward(self._compute, x, self.experiment.precision, self.experiment.channels_last).float()
        loss = functional.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.iteration += 1
        self._count(loss.detach(), logits, labels)

    def _count(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        wrong = (logits.argmax(1) != labels).sum()
        count = torch.full_like(loss, len(labels))
        self.sums += torch.stack([count, loss * len(labels), wrong]).double()
        # On a GPU a look at the loss waits for it, so it is looked at now and then; a NaN stays in the sum.
        if self.iteration % 100 == 0 or (
            self.place.device.type == "cpu" and self.place.meets(self.iteration)
        ):
            self._check_loss()

    def _check_loss(self) -> None:
        if self.place.agree(not math.isfinite(self.sums[1].item())):
            self._fail("the training loss")

    def check_finite(self) -> None:
        """Raises `NonFinite`, with what to try, when the loss or a tensor of the state is not finite.

        A step can make a weight or a running average infinite behind a finite loss. With many
        processes all of them must ask.
        """
        self._check_loss()
        name = _not_finite(self._own_tensors())
        if self.place.agree(name is not None):
            self._fail(name or "a tensor of another process")

    def _fail(self, what: str) -> NoReturn:
        rate = self.experiment.recipe.rate(max(0, self.iteration - 1))
        raise NonFinite(
            f"{what} is not finite at iteration {self.iteration:,} (learning rate {rate:g}); "
            f"try a lower --lr, a recipe with a warm-up, or --precision fp32"
        )

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
            self._fail(f"the {split} loss")

    def conclude(self, stop: Callable[[], bool] = lambda: False) -> Final | None:
        """The figures on the test set, which is read here; None if `stop()` turned true on the way."""
        last = self.evaluate(self.splits.test, stop)
        self._check_measured("test", last)
        selected = self._of_best(stop) if last and self.best_state else None
        if last and (selected or not self.best_state):
            self.final = Final(last, selected)
        return self.final

    def _of_best(self, stop: Callable[[], bool]) -> Evaluation | None:
        last = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.best_state)
        try:
            return self.evaluate(self.splits.test, stop)
        finally:
            self.model.load_state_dict(last)

    def _record(self, number: int, measured: Evaluation | None) -> Epoch:
        count, loss, wrong = self.place.total(self.sums.clone()).tolist()
        if measured and measured.error < self.best_error:
            self.best_error, self.best_epoch = measured.error, number
            if self.monitor == "validation":
                self.best_state = {
                    key: value.detach().clone() for key, value in self.model.state_dict().items()
                }
        record = Epoch(
            epoch=number,
            iteration=self.iteration,
            learning_rate=self.experiment.recipe.rate(self.iteration - 1),
            train_loss=loss / count,
            train_error=100 * wrong / count,
            monitored_loss=measured.loss if measured else None,
            monitored_error=measured.error if measured else None,
            images_per_second=count / self._seconds if self._seconds else 0.0,
            seconds=self._seconds,
        )
        self.epochs_closed, self._seconds = number, 0.0
        self.sums.zero_()
        return record

    def _share_buffers(self) -> None:
        # BN's running averages differ between processes; the leader's are the network's.
        if self.place.world > 1:
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def evaluate(self, images: Images, stop: Callable[[], bool] = lambda: False) -> Evaluation | None:
        """The network as it is on `images`."""
        return evaluate(
            self.model,
            images,
            self.statistics,
            place=self.place,
            num_classes=self.splits.num_classes,
            precision=self.experiment.precision,
            channels_last=self.experiment.channels_last,
            stop=stop,
        )

    def tensors(self) -> dict[str, Tensor]:
        """The state's tensors by name: weights, momentum, the best weights so far, and running sums.

        With many processes all of them must ask, for the sums are everyone's.
        """
        return {**self._own_tensors(), "sums": self.place.total(self.sums.clone())}

    def _own_tensors(self) -> dict[str, Tensor]:
        names = dict(self.model.named_parameters())
        momentum = {
            f"momentum.{name}": self.optimizer.state[parameter]["momentum_buffer"]
            for name, parameter in names.items()
            if self.optimizer.state[parameter].get("momentum_buffer") is not None
        }
        model = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        best = {f"best.{key}": value for key, value in self.best_state.items()}
        return {**model, **momentum, **best}

    def counters(self) -> dict[str, Any]:
        """The rest of the state, as JSON can hold it."""
        best = None if math.isinf(self.best_error) else self.best_error
        return {
            "iteration": self.iteration,
            "epochs_closed": self.epochs_closed,
            "best_error": best,
            "best_epoch": self.best_epoch,
            "seconds": self._seconds,
            "data": self.fingerprints,
        }

    def restore(self, tensors: dict[str, Tensor], counters: dict[str, Any]) -> None:
        """Continues from a state: `tensors()` and `counters()` of the same experiment.

        Raises `InputError`, and changes nothing, where the data are others now or the state does not fit.
        """
        self._check_data(counters["data"])
        model = _under(tensors, "model.")
        if _shapes(model) != _shapes(self.model.state_dict()):
            raise InputError("the state was saved by another release of kilolayer: its tensors do not fit")
        self.model.load_state_dict(model)
        self.best_state = {
            key: value.to(self.place.device, copy=True) for key, value in _under(tensors, "best.").items()
        }
        momentum = _under(tensors, "momentum.")
        for name, parameter in self.model.named_parameters():
            if name in momentum:
                # As the parameter lies in memory: the order of a sum is part of its rounding.
                buffer = torch.empty_like(parameter, requires_grad=False).copy_(momentum[name])
                self.optimizer.state[parameter]["momentum_buffer"] = buffer
        # The sums are everyone's, and are added up over the processes again.
        self.sums.copy_(tensors["sums"] if self.place.leads else torch.zeros_like(self.sums))
        self.iteration, self.epochs_closed = counters["iteration"], counters["epochs_closed"]
        self.best_error = math.inf if counters["best_error"] is None else counters["best_error"]
        self.best_epoch, self._seconds = counters["best_epoch"], counters["seconds"]

    def _check_data(self, fingerprints: Mapping[str, str]) -> None:
        for name, now in self.fingerprints.items():
            if fingerprints.get(name) != now:
                raise InputError(
                    f"the {name} has changed since the run began: its images or labels are not the same; "
                    f"bring the data back, or begin a new run"
                )


def _not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds an infinity or no number."""
    # One look for all of them: on a GPU each would wait.
    finite = torch.stack([tensor.isfinite().all() for tensor in tensors.values()])
    bad = [name for name, fine in zip(tensors, finite.tolist(), strict=True) if not fine]
    return bad[0].removeprefix("model.") if bad else None


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in tensors.items()}


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _hash(*numbers: int) -> int:
    digest = blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _check(experiment: Experiment, splits: Splits, place: Place) -> None:
    size, images = experiment.recipe.batch_size, len(splits.train)
    if size > images:
        raise InputError(
            f"batch size {size} is larger than the training set of {images} images; take at most {images}"
        )
    if size % place.world:
        raise InputError(
            f"batch size {size} cannot be shared among {place.world} processes; "
            f"take a multiple of {place.world}"
        )
    network = experiment.network
    if network.num_classes != splits.num_classes or network.in_chans != splits.in_chans:
        raise InputError(
            f"the network has {network.num_classes} classes and {network.in_chans} input channels, "
            f"the data {splits.num_classes} and {splits.in_chans}"
        )


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    parameters = list(model.parameters())
    weights = [p for p in parameters if p.ndim > 1 or recipe.decay == "all"]
    others = [p for p in parameters if p.ndim <= 1 and recipe.decay != "all"]
    groups = [
        {"params": weights, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=0.1,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
    )
