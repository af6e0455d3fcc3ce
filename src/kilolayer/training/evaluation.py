"""Error and loss of a network on images that it does not train on: each image as it is, once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from kilolayer.data.images import Images
from kilolayer.data.normalization import InputStatistics
from kilolayer.errors import InputError
from kilolayer.kernels import fold
from kilolayer.networks import ResidualNetwork
from kilolayer.training.distributed import DistributedContext
from kilolayer.training.experiment import EvaluationMode, Precision


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy, and top-1 and top-5 error in percent, over `images` images.

    class_images: `class_images[i]` is the number of images of class i.
    confusion: `confusion[i][j]` is how many of them the network took for class j. An image with a logit that
        is not finite is taken for no class, and counts as an error.
    """

    images: int
    loss: float
    error: float
    top5_error: float
    class_images: tuple[int, ...]
    confusion: tuple[tuple[int, ...], ...]

    def class_errors(self) -> list[tuple[int, float]]:
        """For each class its number of images and its error in percent (0 where it has no image).

        >>> Evaluation(3, 0.7, 100 / 3, 0.0, (2, 1), ((1, 1), (0, 1))).class_errors()
        [(2, 50.0), (1, 0.0)]
        """
        return [
            (n, 100 * (1 - row[i] / n) if n else 0.0)
            for i, (row, n) in enumerate(zip(self.confusion, self.class_images, strict=True))
        ]


BATCH_SIZE = 256
"""Images in one batch of an evaluation."""
NO_CLASS = 2**16 - 1
"""The class of an image with a logit that is not finite."""


class AnswerCollector:
    """Collects the class that a network gives each image, and its loss, over all ranks of an evaluation.

    Give its `observe` to `evaluate`, with the same images, context and batch size.
    """

    def __init__(self, images: Images, context: DistributedContext, batch_size: int = BATCH_SIZE) -> None:
        self._images, self._context, self._batch_size = images, context, batch_size
        self._next = context.rank * batch_size
        self._answers = torch.zeros(len(images), dtype=torch.int64, device=context.device)
        self._losses = torch.zeros(len(images), dtype=torch.float32, device=context.device)

    def observe(self, logits: Tensor) -> None:
        """Takes the logits of the next batch of this rank, (N, classes)."""
        part = slice(self._next, self._next + self._batch_size)
        labels = self._images.labels[part].to(logits.device)
        finite = logits.isfinite().all(1)
        self._answers[part] = torch.where(finite, logits.argmax(1), NO_CLASS)
        self._losses[part] = functional.cross_entropy(logits, labels, reduction="none").float()
        self._next += self._context.world_size * self._batch_size

    def gather(self) -> tuple[Tensor, Tensor]:
        """The classes, int64 (N,), and the losses, float32 (N,). Every rank must call it."""
        # Each image is of one rank, and 0 on all others.
        answers, losses = map(self._context.all_reduce, (self._answers, self._losses))
        return answers.cpu(), losses.cpu()


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which a forward pass computes in `precision`: fp32, or bf16 over fp32 weights."""
    # Every weight is used once, so that its bf16 copy need not be kept for another use.
    return torch.autocast(device.type, torch.bfloat16, precision == "bf16", cache_enabled=False)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    images: Images,
    statistics: InputStatistics,
    *,
    context: DistributedContext,
    num_classes: int,
    batch_size: int = BATCH_SIZE,
    precision: Precision = "fp32",
    channels_last: bool = False,
    evaluation: EvaluationMode = "plain",
    stop: Callable[[], bool] = lambda: False,
    observe: Callable[[Tensor], object] = lambda logits: None,
) -> Evaluation | None:
    """Evaluates `model` on `images`, shared out among the ranks; None if `stop()` turned true on the way.

    With `evaluation` "folded", one of our networks is computed by a copy with its BN folded in, made here.
    `observe` is called with the logits of every batch of this rank, fp32 (N, num_classes), in the images'
    order. Raises `InputError` where there are no images.
    """
    if not len(images):
        raise InputError("there are no images to evaluate on")
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    logits_of = _logits_function(model, precision, channels_last, evaluation)
    statistics = statistics.to(context.device)
    sums = torch.zeros(2, dtype=torch.float64, device=context.device)
    # For each class, how many of its images were taken for each class; the last column: for none.
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
            sums += _loss_and_top5(logits, labels, finite)
            answers = torch.where(finite, logits.argmax(1), num_classes)
            pairs = labels * (num_classes + 1) + answers
            counts += torch.bincount(pairs, minlength=counts.numel()).view_as(counts)
    finally:
        for module, training in modes:
            module.training = training
    if context.any(stopped):
        return None
    return _evaluation(context.all_reduce(sums), context.all_reduce(counts))


def _logits_function(
    model: nn.Module, precision: Precision, channels_last: bool, evaluation: EvaluationMode
) -> Callable[[Tensor], Tensor]:
    """A function from normalised images (N, C, H, W) to logits."""
    if evaluation == "folded" and isinstance(model, ResidualNetwork):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        folded = fold(model, dtype)
        return lambda x: folded(x.to(dtype, memory_format=torch.channels_last))

    def plain(x: Tensor) -> Tensor:
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with autocast(x.device, precision):
            logits: Tensor = model(x)
        return logits

    return plain


def _loss_and_top5(logits: Tensor, labels: Tensor, finite: Tensor) -> Tensor:
    """Summed loss and top-5 hits of a batch."""
    loss = functional.cross_entropy(logits, labels, reduction="sum")
    top5 = logits.topk(min(5, logits.shape[1])).indices
    hits = ((top5 == labels[:, None]) & finite[:, None]).sum()
    return torch.stack([loss, hits]).double()


def _evaluation(sums: Tensor, counts: Tensor) -> Evaluation:
    loss, hits = sums.tolist()
    images, num_correct = int(counts.sum()), int(counts.diagonal().sum())
    return Evaluation(
        images=images,
        loss=loss / images,
        error=100 * (1 - num_correct / images),
        top5_error=100 * (1 - hits / images),
        class_images=tuple(counts.sum(1).tolist()),
        confusion=tuple(tuple(row) for row in counts[:, :-1].tolist()),
    )
