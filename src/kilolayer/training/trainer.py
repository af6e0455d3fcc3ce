"""The training loop: a `Trainer` takes an experiment step by step and epoch by epoch to its final figures.

`Trainer._train_step` is one optimisation step: batch, forward pass, loss, backward pass, update.
`Trainer._close_epoch` evaluates and records. `TrainState` is all that they change. Recording on disk
(`kilolayer.runs`) and display stand in the caller's `for`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from kilolayer.data import (
    Images,
    InputStatistics,
    Splits,
    batch_spec,
    make_batch,
    measure_statistics,
    resize_batch,
)
from kilolayer.errors import InputError
from kilolayer.kernels import fuse, use_cpu_pool
from kilolayer.networks import ResidualNetwork, build
from kilolayer.system.folders import redirect_cache
from kilolayer.training.compilation import compile_units
from kilolayer.training.cuda_graph import CudaRecorder, GraphReplay, graph_unavailable_reason
from kilolayer.training.device import make_deterministic
from kilolayer.training.distributed import DistributedContext
from kilolayer.training.evaluation import AnswerCollector, Evaluation, autocast, evaluate
from kilolayer.training.experiment import Experiment
from kilolayer.training.feasibility import check_feasible
from kilolayer.training.memory_plan import apply_memory_plan
from kilolayer.training.torch_optimizer import freeze_trunk, optimizer_tensors, set_learning_rate
from kilolayer.training.train_state import NonFinite, TrainState, with_prefix
from kilolayer.units.layer_modules import draws_random_numbers

LOSS_CHECK_STEPS = 100
"""On a GPU, reading the loss waits for the step, so it is read once in so many; a NaN stays in the sum."""


@dataclass(frozen=True)
class StepResult:
    """One optimisation step done; the last step of each epoch carries the epoch's metrics in `epoch`.

    loss: scalar tensor on the device, the mean over this rank's images; `float(result.loss)` waits for it.
    It is NaN where a stopped training goes on with the evaluation of an epoch whose steps were all taken.
    """

    iteration: int
    loss: Tensor
    epoch: EpochMetrics | None = None


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
    """The figures on the test set: of the last weights, and of those with the least validation error.

    answers, losses: the class that the last weights give each test image, int64 (N,), and its loss, float32
        (N,).
    """

    last: Evaluation
    selected: Evaluation | None
    answers: Tensor
    losses: Tensor


def _never() -> bool:
    return False


class Trainer:
    """Trains an experiment on this rank's device.

    >>> from kilolayer.data import Data, load
    >>> from kilolayer.networks import describe
    >>> from kilolayer.training import network_for_data, recipe_by_name
    >>> data, recipe = Data("digits", subset=64), recipe_by_name("smoke", 64).with_iterations(2)
    >>> network = network_for_data(describe("preact_resnet8_cifar"), classes=10, in_chans=1, image_size=8)
    >>> context = DistributedContext(torch.device("cpu"))
    >>> trainer = Trainer(Experiment(network, data, recipe), load(data), context)
    >>> [result.iteration for result in trainer.steps()]
    [1, 2]
    >>> trainer.conclude().last.images  # in the test set
    360

    `steps()` trains, and `conclude()` measures the result. Between two steps the state is complete:
    `tensors()` and `counters()` give it, and `restore` continues from it bit for bit, since images,
    augmentation and dropout are pure functions of (seed, epoch, position) and not of a generator's state.

    Raises `InputError` where network, batch, data and ranks do not fit together, or where the step cannot be
    computed as the experiment asks, and `NonFinite` when the loss or a tensor is not finite.
    """

    def __init__(self, experiment: Experiment, splits: Splits, context: DistributedContext) -> None:
        check_feasible(experiment, splits, context.world_size)
        self.experiment, self.splits, self.context = experiment, splits, context
        recipe, device = experiment.recipe, context.device
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # Triton and CUDA graphs ask for the current one
        make_deterministic(device)
        use_cpu_pool(device)
        self.model = _initial_model(experiment, device)
        self.state = TrainState.initial(self.model, recipe, device, in_graph=experiment.graph)
        self.statistics = measure_statistics(splits.train, recipe.normalization).to(device)
        self.train_images = splits.train.to(device)
        # One tensor for all steps: a CUDA graph writes where it was captured.
        self.loss = torch.full((), torch.nan, device=device)
        self.kernels = fuse(self.model) if experiment.kernels == "fused" else None
        self.memory_plan = apply_memory_plan(self.model, experiment, context)
        self.epoch_length = len(splits.train) // recipe.batch_size
        self.final: FinalMetrics | None = None
        self._module = self._compiled_and_parallel()
        self._is_random = any(map(draws_random_numbers, self.model.modules()))
        self._finite_at = 0
        self._graph = self._graph_replay()

    def _compiled_and_parallel(self) -> nn.Module:
        module: nn.Module = self.model
        if self.experiment.compile != "off":
            redirect_cache("inductor")
        if self.experiment.compile == "model":
            module = torch.compile(module)  # type: ignore[assignment]
        elif self.experiment.compile == "units":
            compile_units(self.model)
        if self.context.world_size > 1:
            # An inactive unit has no gradient.
            has_inactive = bool(self.experiment.recipe.progressive_depth.changes)
            module = DistributedDataParallel(module, find_unused_parameters=has_inactive)
        return module

    def _graph_replay(self) -> GraphReplay | None:
        """What replays the steps as a CUDA graph; None where the experiment does not ask for it."""
        device = self.context.device
        if not self.experiment.graph or device.type != "cuda":
            return None
        reason = graph_unavailable_reason(
            device, has_dropout=self._is_random, world_size=self.context.world_size
        )
        if reason:
            raise InputError(f"the step cannot be a CUDA graph: {reason}; use --cuda-graph off")
        return GraphReplay(self._train_step, CudaRecorder(device), self._step_tensors)

    # One step

    def _train_step(self) -> None:
        """One step on the device: a function of tensors there, so that a CUDA graph can hold it.

        `_prepare_step` has set what the host decides: the batch, the images' side, active units, rates.
        """
        recipe, optimizer = self.experiment.recipe, self.state.optimizer
        x, labels = make_batch(self.train_images, self.statistics, recipe.augmentation, self._batch_spec)
        x = resize_batch(x, self._image_side)
        if self.experiment.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with autocast(x.device, self.experiment.precision):
            logits = self._module(x)
        logits = logits.float()
        loss = functional.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        self.loss.copy_(loss.detach())
        self._add_to_sums(self.loss, logits, labels)

    def _prepare_step(self) -> None:
        """What the host decides for the next step: images, augmentation, dropout, side, depth, rate."""
        recipe, iteration = self.experiment.recipe, self.state.iteration
        epoch, index = divmod(iteration, self.epoch_length)
        share = recipe.batch_size // self.context.world_size
        start = index * recipe.batch_size + self.context.rank * share
        spec = batch_spec(
            len(self.train_images),
            recipe.augmentation,
            self.experiment.seed,
            epoch,
            range(start, start + share),
            self.context.device,
        )
        self._batch_spec = self._graph.copy_to_buffers(spec) if self._graph else spec
        if self._is_random:
            torch.manual_seed(_hash(self.experiment.seed, iteration, self.context.rank))
        self._image_side = recipe.progressive_resize.side_at(
            self.splits.image_size, iteration, recipe.iterations
        )
        self.model.set_active_units(recipe.progressive_depth.share_at(iteration, recipe.iterations))
        set_learning_rate(self.state.optimizer, recipe.rate(iteration))

    def _add_to_sums(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        num_wrong = (logits.argmax(1) != labels).sum()
        count = torch.full_like(loss, len(labels))
        self.state.epoch_sums += torch.stack([count, loss * len(labels), num_wrong]).double()

    def take_step(self) -> None:
        """Takes the next step of the recipe, without closing an epoch: see `steps`."""
        state = self.state
        self._prepare_step()
        if self._graph:
            self._graph(self._graph_key)
        else:
            self._train_step()
        state.iteration += 1
        if state.ema:
            state.ema.update(self.model, state.iteration)
        on_cpu = self.context.device.type == "cpu"
        if state.iteration % LOSS_CHECK_STEPS == 0 or (on_cpu and self.context.is_sync_step(state.iteration)):
            self.check_loss()

    @property
    def _graph_key(self) -> Hashable:
        """What `_train_step` takes from the host as a number: one CUDA graph holds it fixed."""
        return self._image_side, *self.model.num_active_units.values()

    def _step_tensors(self) -> list[Tensor]:
        """The tensors that `_train_step` changes and the next one reads."""
        state = self.state
        return [
            *self.model.parameters(),
            *self.model.buffers(),
            *optimizer_tensors(state.optimizer),
            state.epoch_sums,
        ]

    # The loop over steps and epochs

    def steps(self, stop: Callable[[], bool] = _never) -> Iterator[StepResult]:
        """Trains to the end of the recipe, or until `stop()` turns true on any rank."""
        state = self.state
        if self._epoch_is_open():
            yield from self._close_epoch(stop)
        # An epoch that is still open then was stopped in its evaluation.
        while not (self.steps_finished or self._epoch_is_open() or self._stops(stop)):
            started = time.perf_counter()
            self.take_step()
            if self._epoch_is_open() and self.context.device.type == "cuda":
                torch.cuda.synchronize(self.context.device)  # what was only launched is part of its time
            state.seconds += time.perf_counter() - started
            if self._epoch_is_open():
                yield from self._close_epoch(stop)
            else:
                yield StepResult(state.iteration, self.loss.clone())

    def conclude(self, stop: Callable[[], bool] = _never) -> FinalMetrics | None:
        """The figures on the test set, which is read here; None if `stop()` turned true on the way."""
        collector = AnswerCollector(self.splits.test, self.context)
        last = self.evaluate(self.splits.test, stop, collector.observe)
        self._check_loss_of(last, "test")
        selected = self._evaluate_best(stop) if last and self.state.best_weights else None
        if last and (selected or not self.state.best_weights):
            self.final = FinalMetrics(last, selected, *collector.gather())
        return self.final

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
        """Whether all steps are taken and every epoch is evaluated."""
        return self.state.iteration >= self.experiment.recipe.iterations and not self._epoch_is_open()

    @property
    def num_epochs(self) -> int:
        """How many epochs the recipe has; the last may be a part of one."""
        return -(-self.experiment.recipe.iterations // self.epoch_length)

    def running_metrics(self) -> tuple[float, float]:
        """Training loss and error (percent) of the current epoch so far, on this rank."""
        count, loss, wrong = self.state.epoch_sums.tolist()
        return (loss / count, 100 * wrong / count) if count else (math.nan, math.nan)

    def _epoch_is_open(self) -> bool:
        """Whether the steps of an epoch are all taken, but its evaluation is missing."""
        iteration, full = self.state.iteration, self.state.iteration // self.epoch_length
        in_last = iteration >= self.experiment.recipe.iterations and iteration % self.epoch_length > 0
        return full + in_last > self.state.epochs_closed

    def _stops(self, stop: Callable[[], bool]) -> bool:
        return self.context.is_sync_step(self.state.iteration) and self.context.any(stop())

    def _close_epoch(self, stop: Callable[[], bool]) -> Iterator[StepResult]:
        number = self.state.epochs_closed + 1
        is_due = number % self.experiment.evaluate_every == 0 or number == self.num_epochs
        self.check_finite()
        monitored: Evaluation | None = None
        if is_due:
            self._broadcast_buffers()
            monitored = self.evaluate(self.splits.validation or self.splits.test, stop)
            if monitored is None:
                return
        self._check_loss_of(monitored, self.monitor)
        yield StepResult(self.state.iteration, self.loss.clone(), self._record_epoch(number, monitored))

    def _record_epoch(self, number: int, monitored: Evaluation | None) -> EpochMetrics:
        state = self.state
        count, loss, wrong = self.context.all_reduce(state.epoch_sums.clone()).tolist()
        if monitored and monitored.error < state.best_error:
            state.best_error, state.best_epoch = monitored.error, number
            if self.monitor == "validation":
                state.best_weights = {
                    key: value.detach().clone() for key, value in state.reported_weights.items()
                }
        metrics = EpochMetrics(
            epoch=number,
            iteration=state.iteration,
            learning_rate=self.experiment.recipe.rate(state.iteration - 1),
            train_loss=loss / count,
            train_error=100 * wrong / count,
            monitored_loss=monitored.loss if monitored else None,
            monitored_error=monitored.error if monitored else None,
            images_per_second=count / state.seconds if state.seconds else 0.0,
            seconds=state.seconds,
        )
        state.epochs_closed, state.seconds = number, 0.0
        state.epoch_sums.zero_()
        return metrics

    def _broadcast_buffers(self) -> None:
        # BN's running statistics differ between ranks; those of the main rank are the network's.
        if self.context.world_size > 1:
            mean = self.state.ema.state if self.state.ema else {}
            for name, buffer in self.model.named_buffers():
                for tensor in (buffer, *([mean[name]] if name in mean else [])):
                    torch.distributed.broadcast(tensor, 0)

    # Evaluation

    def evaluate(
        self,
        images: Images,
        stop: Callable[[], bool] = _never,
        observe: Callable[[Tensor], object] = lambda logits: None,
    ) -> Evaluation | None:
        """The network with the weights whose errors are reported, on `images`; None if stopped.

        observe: called with the logits of every batch (`kilolayer.training.evaluate`).
        """
        ema = self.state.ema
        with self._weights(ema.state) if ema else nullcontext():
            return self._evaluate(images, stop, observe)

    def _evaluate_best(self, stop: Callable[[], bool]) -> Evaluation | None:
        with self._weights(self.state.best_weights):
            return self._evaluate(self.splits.test, stop)

    def _evaluate(
        self,
        images: Images,
        stop: Callable[[], bool],
        observe: Callable[[Tensor], object] = lambda logits: None,
    ) -> Evaluation | None:
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
            observe=observe,
        )

    @contextmanager
    def _weights(self, weights: dict[str, Tensor]) -> Iterator[None]:
        """Within the block, the network has other weights."""
        last = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.model.load_state_dict(weights)
        try:
            yield
        finally:
            self.model.load_state_dict(last)

    # Saving and restoring

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Digests of the images that decide the weights or the metrics, by the part of the data."""
        parts = {"training set": self.splits.train, "validation set": self.splits.validation}
        if self.monitor == "test":  # otherwise it is read at the end only
            parts["test set"] = self.splits.test
        return {name: images.fingerprint() for name, images in parts.items() if images is not None}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors to save, by name. Every rank must call it: the sums are added up over all ranks."""
        sums = self.context.all_reduce(self.state.epoch_sums.clone())
        return {**self.state.tensors(), **self._saved_statistics(), "sums": sums}

    def _saved_statistics(self) -> dict[str, Tensor]:
        """Statistics of the data follow from the data; those of a file of weights are saved."""
        init = self.experiment.init
        statistics = self.statistics.tensors() if init and init.normalization == "file" else {}
        return {f"input.{key}": value for key, value in statistics.items()}

    def counters(self) -> dict[str, Any]:
        """The rest of what is saved, as JSON can hold it."""
        return {**self.state.counters(), "data": self.fingerprints}

    def restore(self, tensors: dict[str, Tensor], counters: Mapping[str, Any]) -> None:
        """Continues from `tensors()` and `counters()` of the same experiment.

        Raises `InputError`, and changes nothing, where the data have changed, or counters or tensors do not
        fit.
        """
        self._check_same_data(counters["data"])
        self._check_counters(counters)
        self.state.check_fits(tensors, counters, self._tensors_beside(tensors, counters))
        # The sums are of all ranks, and will be added up over them again.
        sums = tensors["sums"] if self.context.is_main else torch.zeros_like(tensors["sums"])
        self.state.load({**tensors, "sums": sums}, counters)
        if inputs := with_prefix(tensors, "input."):
            self.statistics = InputStatistics(**inputs).to(self.context.device)
        self._finite_at = self.state.iteration
        self.loss.fill_(torch.nan)
        if self._graph:
            self._graph.forget()

    def _check_same_data(self, saved: dict[str, str]) -> None:
        for name, fingerprint in saved.items():
            now = self.splits.test.fingerprint() if name == "test set" else self.fingerprints.get(name)
            if now != fingerprint:
                raise InputError(
                    f"the {name} has changed since the run began: its images or labels are not the same; "
                    f"bring the data back, or begin a new run"
                )

    def _check_counters(self, counters: Mapping[str, Any]) -> None:
        """Raises `InputError` where no training of this experiment comes to these counters."""
        iteration, iterations = counters["iteration"], self.experiment.recipe.iterations
        reason = f"iteration {iteration:,} of {iterations:,}"
        if iteration <= iterations:
            # The epoch of the last step can be open still. The last epoch can be a part of one.
            least = max(0, iteration - 1) // self.epoch_length
            most = self.num_epochs if iteration == iterations else iteration // self.epoch_length
            closed, best = counters["epochs_closed"], counters["best_epoch"]
            if closed not in (least, most):
                reason += f" with {closed:,} closed epochs"
            elif best > closed or (best == 0) != (counters["best_error"] is None):
                reason += f" with epoch {best:,} as the best of {closed:,}"
            else:
                return
        raise InputError(
            f"the state does not fit the experiment: it is of {reason}; bring it back from a copy, or "
            "begin a new run"
        )

    def _tensors_beside(
        self, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Tensors like those that a state with these counters has beside `TrainState.tensors()`."""
        selects = self.monitor == "validation" and counters["best_error"] is not None
        best = self.state.reported_weights if selects else {}
        found = {f"best.{key}": value for key, value in best.items()} | {"sums": self.state.epoch_sums}
        side = self.splits.image_size
        for name, value in self._saved_statistics().items():
            # Statistics of a file can be of each pixel or of each channel.
            shape = tensors[name].shape if name in tensors else value.shape
            fits = len(shape) == 3 and all(
                n in (1, full) for n, full in zip(shape, (self.splits.in_chans, side, side), strict=True)
            )
            found[name] = value.new_empty(shape) if fits else value
        return found

    # Divergence

    def check_loss(self) -> None:
        """Raises `NonFinite` when the running loss is not finite. On a GPU this waits for the step."""
        if self.context.any(not math.isfinite(self.state.epoch_sums[1].item())):
            tensor = self.state.first_non_finite()
            self.raise_non_finite(f"the training loss{f' (and {tensor})' if tensor else ''}")

    def check_finite(self) -> None:
        """Raises `NonFinite`, with what to try, when the loss or a tensor of the state is not finite.

        A step can make a weight or a running statistic infinite behind a finite loss. Every rank must call
        it.
        """
        self.check_loss()
        name = self.state.first_non_finite()
        if self.context.any(name is not None):
            self.raise_non_finite(name or "a tensor of another process")
        self._finite_at = self.state.iteration

    def raise_non_finite(self, subject: str) -> NoReturn:
        """Raises `NonFinite`: names the subject, the iteration, and when all was still finite."""
        iteration = self.state.iteration
        rate = self.experiment.recipe.rate(max(0, iteration - 1))
        when = f"(learning rate {rate:g}; all was finite at iteration {self._finite_at:,})"
        raise NonFinite(
            f"{subject} is not finite at iteration {iteration:,} {when}; "
            f"try a lower --lr, a recipe with a warm-up, or --precision fp32"
        )

    def _check_loss_of(self, evaluation: Evaluation | None, split: str) -> None:
        if evaluation and not math.isfinite(evaluation.loss):
            self.raise_non_finite(f"the {split} loss")


def _initial_model(experiment: Experiment, device: torch.device) -> ResidualNetwork:
    """The network with its random weights, on `device`, in the experiment's memory format."""
    recipe = experiment.recipe
    torch.manual_seed(experiment.seed)
    model = build(experiment.network)
    model.set_active_units(recipe.progressive_depth.start)
    model.zero_init_inactive()
    model = model.to(device)
    if recipe.trunk_frozen:
        freeze_trunk(model)
    if experiment.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def _hash(*numbers: int) -> int:
    digest = blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
