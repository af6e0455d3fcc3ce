"""A run's prediction for every test image, in its folder: predictions.safetensors, 6 bytes an image.

With them the rows of a table are compared image by image, and the spread between trainings is told apart from
the spread between test sets. Runs of earlier releases have none; `kilolayer evaluate RUN --predictions` adds
them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kilolayer.errors import InputError
from kilolayer.runs.records import PredictionsHeader, read_record
from kilolayer.runs.tensor_bytes import save
from kilolayer.runs.weights_file import HEADER_KEY, read_tensors, tensors_checksum
from kilolayer.system.opened_folder import open_folder

PREDICTIONS_FILE = "predictions.safetensors"


@dataclass(frozen=True)
class Predictions:
    """The class that a network gives each test image, the true class, and the loss, each of shape (N,).

    The images have the data set's order. An image whose output was not finite has the class 65535.
    test_set: SHA-256 of the images and labels, where the predictions were read from a file.

    >>> Predictions(torch.tensor([3, 1]), torch.tensor([3, 2]), torch.tensor([0.1, 2.5])).error
    50.0
    """

    answers: Tensor
    labels: Tensor
    losses: Tensor
    test_set: str = ""

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Which images are misclassified, (N,)."""
        return np.asarray((self.answers != self.labels).numpy(), np.bool_)

    @property
    def error(self) -> float:
        """The share of misclassified images, in percent."""
        return float(100 * self.wrong.mean())


def predictions_content(predictions: Predictions, test_set: str) -> bytes:
    """The file of a run's predictions: uint16 classes, float16 losses, and a checksum over all."""
    most = torch.finfo(torch.float16).max
    tensors = {
        "answers": predictions.answers.to(torch.uint16),
        "labels": predictions.labels.to(torch.uint16),
        "losses": predictions.losses.nan_to_num(most).clamp(max=most).to(torch.float16),
    }
    header = {"test_set": test_set, "sha256": tensors_checksum(tensors, test_set)}
    return save(tensors, {HEADER_KEY: json.dumps(header)})


def write_predictions(run: Path, predictions: Predictions, test_set: str) -> None:
    """Writes predictions to the folder of a run."""
    with open_folder(run) as folder:
        folder.write(PREDICTIONS_FILE, predictions_content(predictions, test_set))


def read_predictions(run: str | Path, below: Path | None = None) -> Predictions | None:
    """The predictions in the folder of a run; None where it has none.

    below: the sweep's folder, below which no link is followed.

    Raises `InputError` where the file is damaged, or is a link.
    """
    path = Path(run) / PREDICTIONS_FILE
    with open_folder(run, below=below) as folder:
        if not folder.has_file(PREDICTIONS_FILE):
            return None
    tensors, metadata = read_tensors(path)
    try:
        header = read_record(metadata[HEADER_KEY], PredictionsHeader, path)
        intact = header["sha256"] == tensors_checksum(tensors, header["test_set"])
        answers, labels, losses = (tensors[name] for name in ("answers", "labels", "losses"))
    except (KeyError, InputError):
        raise InputError(f"{path} is damaged, or was not written by kilolayer; remove it") from None
    if not intact or not answers.shape == labels.shape == losses.shape:
        raise InputError(f"{path} is damaged: its checksum is not the one in its header; remove it")
    return Predictions(answers.long(), labels.long(), losses.float(), header["test_set"])
