"""Errors and losses of a network on images that it does not train on, each image plain, once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from kilolayer.data.images import Images
from kilolayer.data.normalization import InputStatistics
from kilolayer.errors import InputError
from kilolayer.kernels.folding import fold
from kilolayer.networks import ResidualNetwork
from kilolayer.training.device import DistributedContext
from kilolayer.training.experiment import EvaluationMode, Precision


@dataclass(frozen=True)
class Evaluation:
    """Of `images` images: mean cross-entropy, top-1 and top-5 error in percent.

    `class_images[i]` counts the images of class i, `confusion[i][j]` those of them that were taken for
    class j. An image with a logit that is not finite is taken for none, and counts as an error.
    """

    images: int
    loss: float
    error: float
    top5_error: float
    class_images: tuple[int, ...]
    confusion: tuple[tuple[int, ...], ...]

    def class_errors(self) -> list[tuple[int, float]]:
        """For each class its number of images and its error in percent (0 where it has no image)."""
        return [
            (n, 100 * (1 - row[i] / n) if n else 0.0)
            for i, (row, n) in enumerate(zip(self.confusion, self.class_images, strict=True))
        ]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    images: Images,
    statistics: InputStatistics,
    *,
    context: DistributedContext,
    num_classes: int,
    batch_size: int = 256,
    precision: Precision = "fp32",
    channels_last: bool = False,
    evaluation: EvaluationMode = "plain",
    stop: Callable[[], bool] = lambda: False,
    observe: Callable[[Tensor], object] = lambda logits: None,
) -> Evaluation | None:
    """`model` on `images`, shared out among the processes; None if `stop()` turned true on the way.

    With `evaluation` "folded" a network of ours is computed by a folded copy in `precision`, made here.
    `observe` is called with the logits of every batch of this process, float32, in the images' order.
    """
    if not len(images):
        raise InputError("there are no images to evaluate on")
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    logits_of = _logits_function(model, precision, channels_last, evaluation)
    statistics = statistics.to(context.device)
    sums = torch.zeros(2, dtype=torch.float64, device=context.device)
    # Of every class its images taken for each class, and in the last column for none.
    counts = torch.zeros(num_classes, num_classes + 1, dtype=torch.int64, device=context.device)
    stopped = False
    try:
        for start in range(context.rank * batch_size, len(images), context.world_size * batch_size):
            if stop():
                stopped = True
                break
            batch = images[slice(start, start + batch_size)]
            x = statistics.normalize(batch.pixels.to(context.device))
            labels = batch.labels.to(context.device)
            logits = logits_of(x).float()
            observe(logits)
            # A NaN sorts above every number, and would count as the answer.
            finite = logits.isfinite().all(1)
            sums += _sums(logits, labels, finite)
            answers = torch.where(finite, logits.argmax(1), num_classes)
            counts += torch.bincount(labels * (num_classes + 1) + answers, minlength=counts.numel()).view_as(
                counts
            )
    finally:
        for module, training in modes:
            module.training = training
    if context.any(stopped):
        return None
    return _evaluation(context.all_reduce(sums), context.all_reduce(counts))


def _logits_function(
    model: nn.Module, precision: Precision, channels_last: bool, evaluation: EvaluationMode
) -> Callable[[Tensor], Tensor]:
    """A function from normalised images to logits."""
    if evaluation == "plain" or not isinstance(model, ResidualNetwork):
        return lambda x: autocast_forward(model, x, precision, channels_last)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    folded = fold(model, dtype)
    return lambda x: folded(x.to(dtype, memory_format=torch.channels_last))


def autocast_forward(model: nn.Module, x: Tensor, precision: Precision, channels_last: bool) -> Tensor:
    """The logits of `x` in the precision and memory layout asked for."""
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    # Every weight is used once, so that its bf16 copy need not be kept for another use.
    with torch.autocast(x.device.type, torch.bfloat16, precision == "bf16", cache_enabled=False):
        logits: Tensor = model(x)
    return logits


def _sums(logits: Tensor, labels: Tensor, finite: Tensor) -> Tensor:
    """Summed loss and top-5 hits of a batch."""
    loss = functional.cross_entropy(logits, labels, reduction="sum")
    top5 = logits.topk(min(5, logits.shape[1])).indices
    hits = ((top5 == labels[:, None]) & finite[:, None]).sum()
    return torch.stack([loss, hits]).double()


def _evaluation(sums: Tensor, counts: Tensor) -> Evaluation:
    loss, hits = sums.tolist()
    count, num_correct = int(counts.sum()), int(counts.diagonal().sum())
    return Evaluation(
        images=count,
        loss=loss / count,
        error=100 * (1 - num_correct / count),
        top5_error=100 * (1 - hits / count),
        class_images=tuple(counts.sum(1).tolist()),
        confusion=tuple(tuple(row) for row in counts[:, :-1].tolist()),
    )
