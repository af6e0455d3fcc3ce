"""A trained network evaluated on a sample: its figures, and its prediction for every image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kilolayer.data.evaluation_sample import EvaluationSample
from kilolayer.errors import InputError
from kilolayer.runs.folder import PREDICTIONS, Run
from kilolayer.runs.predictions import Predictions, predictions_content
from kilolayer.runs.trained_network import TrainedNetwork, check_image_shape
from kilolayer.system.message_text import quote
from kilolayer.training import DistributedContext, Evaluation, choose_device, choose_precision, evaluate
from kilolayer.training.calibration import Calibration, measure_calibration
from kilolayer.training.class_metrics import ClassMetrics, compute_class_metrics, wilson_interval
from kilolayer.training.evaluation import AnswerCollector
from kilolayer.training.experiment import Precision


@dataclass(frozen=True)
class Confusion:
    """How many images of one class are predicted as another."""

    label: str
    answer: str
    count: int


@dataclass(frozen=True)
class EvaluationResult:
    """The evaluation of a network on `sample`. `classes` are the network's.

    `answers` (int64, shape (N,)) holds the most probable class of every image, `probability` (float64, shape
    (N,)) the probability of that class, `losses` (float32, shape (N,)) the cross-entropy.
    """

    sample: EvaluationSample
    classes: tuple[str, ...]
    evaluation: Evaluation
    answers: Tensor
    probability: Tensor
    losses: Tensor

    @cached_property
    def metrics(self) -> list[ClassMetrics]:
        return compute_class_metrics(self.evaluation)

    @cached_property
    def calibration(self) -> Calibration:
        return measure_calibration(self.probability.numpy(), self.is_right.numpy())

    @property
    def is_right(self) -> Tensor:
        return self.answers == self.sample.images.labels

    @property
    def num_wrong(self) -> int:
        return int((~self.is_right).sum())

    @property
    def has_top5(self) -> bool:
        """Whether the top-5 error means anything: with five classes or fewer it is always 0."""
        return len(self.classes) > 5

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the error in percent, if the images are an independent sample."""
        low, high = wilson_interval(self.num_wrong, self.evaluation.images)
        return 100 * low, 100 * high

    def mistakes(self, limit: int) -> list[int]:
        """The indices of the wrongly classified images with the greatest probabilities."""
        wrong = torch.nonzero(~self.is_right).flatten()
        order = self.probability[wrong].argsort(descending=True, stable=True)
        return [int(i) for i in wrong[order[:limit]]]

    @cached_property
    def confusions(self) -> list[Confusion]:
        """All confused pairs of classes, the most frequent first."""
        pairs = [
            Confusion(self.classes[i], self.classes[j], count)
            for i, row in enumerate(self.evaluation.confusion)
            for j, count in enumerate(row)
            if count and i != j
        ]
        return sorted(pairs, key=lambda pair: -pair.count)

    def finding(self) -> str:
        """The result in a sentence."""
        low, high = self.interval
        count = self.evaluation.images
        text = (
            f"{self.num_wrong:,} of {count:,} images are misclassified: {self.evaluation.error:.2f} %, "
            f"95 % interval {low:.2f} to {high:.2f} %"
        )
        confusions = self.confusions
        if not confusions:
            return f"{text}."
        first = confusions[0]
        often = f"{quote(first.label)} as {quote(first.answer)} ({first.count:,} times)"
        return f"{text}; most often {often}." if first.count > 1 else f"{text}."


def evaluate_sample(
    network: TrainedNetwork,
    sample: EvaluationSample,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 256,
) -> EvaluationResult:
    """Evaluates `network` on `sample`. Raises `InputError` where its output is not finite."""
    context = DistributedContext(choose_device(device))
    experiment, weights = network.experiment, network.weights
    check_image_shape(weights, *sample.images.pixels.shape[1:3])
    collector = AnswerCollector(sample.images, context, batch_size)
    probabilities: list[Tensor] = []

    def observe(logits: Tensor) -> None:
        collector.observe(logits)
        probabilities.append(logits.double().softmax(1).amax(1).cpu())

    evaluation = evaluate(
        weights.model.to(context.device),
        sample.images,
        weights.statistics,
        context=context,
        num_classes=len(weights.classes),
        batch_size=batch_size,
        precision=_precision(network, precision, context),
        channels_last=bool(experiment and experiment.channels_last),
        evaluation=experiment.evaluation if experiment else "plain",
        observe=observe,
    )
    assert evaluation is not None  # noqa: S101 - None only after a stop
    answers, losses = collector.gather()
    if sum(map(sum, evaluation.confusion)) < evaluation.images:
        raise InputError(f"the output of {network.name} is not finite, so it cannot be evaluated")
    return EvaluationResult(sample, weights.classes, evaluation, answers, torch.cat(probabilities), losses)


def _precision(network: TrainedNetwork, requested: str, context: DistributedContext) -> Precision:
    if requested == "auto":
        return network.experiment.precision if network.experiment else "fp32"
    return choose_precision(requested, context.device)


def keep_predictions(folder: str, result: EvaluationResult) -> None:
    """Writes the predictions of `result` to the folder of the run whose test set was evaluated.

    Raises `InputError` where they do not give the error that the run recorded: other hardware, another number
    of threads or another precision can turn a prediction that hangs in the balance.
    """
    run = Run.open(folder)
    labels, recorded = result.sample.images.labels, (run.result() or {}).get("test_error")
    predictions = Predictions(result.answers, labels, result.losses)
    if recorded is None or abs(predictions.error - recorded) > 1e-9:
        raise InputError(
            f"--predictions: the error here is {predictions.error:.4f} %, and the run recorded "
            f"{'none' if recorded is None else f'{recorded:.4f} %'}; use the run's device, threads and "
            "precision"
        )
    with run.lock() as locked:
        locked.write(PREDICTIONS, predictions_content(predictions, result.sample.images.fingerprint()))
