"""Predictions of a trained network for image files, in batches of bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kilolayer.data.config import Appearance
from kilolayer.data.picture_files import PictureFile
from kilolayer.data.pictures.decoding import EncodedPictures, PixelFormat, Unreadable, decode_readable
from kilolayer.errors import InputError
from kilolayer.kernels import fold
from kilolayer.runs import SavedNetwork
from kilolayer.runs.trained_network import check_image_shape
from kilolayer.system.message_text import quote
from kilolayer.training import choose_device

DECODE_CHUNK = 256
"""The number of images in memory at the same time."""
BATCH_SIZE = 64


@dataclass(frozen=True)
class FilePrediction:
    """The classes of one file with their probabilities, the most probable first; or why it cannot be read."""

    file: PictureFile
    classes: tuple[tuple[str, float], ...]
    error: str = ""


def predict_files(
    weights: SavedNetwork,
    files: Sequence[PictureFile],
    form: PixelFormat,
    top: int,
    appearance: Appearance = "shown",
    device: str = "auto",
) -> Iterator[FilePrediction]:
    """A prediction for each file, in order. Raises `InputError` where the network's output is not finite."""
    classifier = Classifier(weights, device)
    for start in range(0, len(files), DECODE_CHUNK):
        chunk = files[start : start + DECODE_CHUNK]
        images, outcomes = decode_readable(_pictures(chunk, appearance), form, "")
        errors = [outcome.reason if isinstance(outcome, Unreadable) else "" for outcome in outcomes]
        readable = [i for i, error in enumerate(errors) if not error]
        answers = iter(classifier.likeliest(images.pixels[readable], top))
        for file, error in zip(chunk, errors, strict=True):
            yield FilePrediction(file, (), error) if error else FilePrediction(file, next(answers))


class Classifier:
    """A trained network on a device, with its batch normalisation folded into its convolutions."""

    def __init__(self, weights: SavedNetwork, device: str = "auto") -> None:
        self.classes = weights.classes
        self._device = choose_device(device)
        self._model = fold(weights.model).to(self._device)
        self._statistics = weights.statistics.to(self._device)

    @torch.inference_mode()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """Probabilities, float32 (N, classes) on the CPU, of images, uint8 (N, C, H, W)."""
        parts = (part.to(self._device) for part in torch.split(pixels, BATCH_SIZE))
        logits = torch.cat([self._model(self._statistics.normalize(part)).float() for part in parts])
        if not logits.isfinite().all():
            raise InputError("the network's output is not finite, so it has no probabilities")
        return logits.softmax(1).cpu()

    def likeliest(self, pixels: Tensor, top: int) -> list[tuple[tuple[str, float], ...]]:
        """The `top` most probable classes of every image, with their probabilities."""
        if not len(pixels):
            return []
        values, indices = self.probabilities(pixels).topk(min(top, len(self.classes)))
        return [
            tuple((self.classes[index], value) for value, index in zip(*row, strict=True))
            for row in zip(values.tolist(), indices.tolist(), strict=True)
        ]


def image_form(weights: SavedNetwork, image_size: int | None = None) -> PixelFormat:
    """The image size and channels that the network expects. Raises `InputError`."""
    description = weights.model.description
    if description.in_chans not in (1, 3):
        raise InputError(f"the network reads {description.in_chans} channels, which no image file has")
    form = PixelFormat(image_size or description.image_size, grey=description.in_chans == 1)
    check_image_shape(weights, form.channels, form.side)
    return form


def _pictures(files: Sequence[PictureFile], appearance: Appearance) -> EncodedPictures:
    paths = [Path(file.path) for file in files]
    labels = np.zeros(len(paths), np.int64)
    return EncodedPictures(labels, paths.__getitem__, lambda i: quote(paths[i]), appearance)
