"""What a trained network takes picture files for, batch by batch, so that their number takes no memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kilolayer.commands.picture_files import PictureFile
from kilolayer.commands.trained import check_images
from kilolayer.data.describe import Appearance
from kilolayer.data.pictures import Form, Pictures, Unreadable, decode_readable
from kilolayer.data.wording import quoted
from kilolayer.errors import InputError
from kilolayer.inference import fold
from kilolayer.runs import Weights
from kilolayer.training import choose_device

DECODED = 256
"""Pictures in memory at a time."""
BATCH = 64


@dataclass(frozen=True)
class Prediction:
    """Of one file: classes with their probabilities, the likeliest first; or why it cannot be read."""

    file: PictureFile
    classes: tuple[tuple[str, float], ...]
    error: str = ""


def predictions(
    weights: Weights,
    files: Sequence[PictureFile],
    form: Form,
    top: int,
    appearance: Appearance = "shown",
    device: str = "auto",
) -> Iterator[Prediction]:
    """One for each file, in their order. Raises `InputError` where the network's output is not finite."""
    classifier = Classifier(weights, device)
    for start in range(0, len(files), DECODED):
        some = files[start : start + DECODED]
        images, outcomes = decode_readable(_pictures(some, appearance), form, "")
        errors = [outcome.reason if isinstance(outcome, Unreadable) else "" for outcome in outcomes]
        readable = [i for i, error in enumerate(errors) if not error]
        answers = iter(classifier.likeliest(images.pixels[readable], top))
        for file, error in zip(some, errors, strict=True):
            yield Prediction(file, (), error) if error else Prediction(file, next(answers))


class Classifier:
    """A trained network, folded, on a device."""

    def __init__(self, weights: Weights, device: str = "auto") -> None:
        self.classes = weights.classes
        self._device = choose_device(device)
        self._model = fold(weights.model).to(self._device)
        self._statistics = weights.statistics.to(self._device)

    @torch.inference_mode()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """uint8 (N, C, H, W) to float32 (N, classes) on the CPU."""
        parts = (part.to(self._device) for part in torch.split(pixels, BATCH))
        logits = torch.cat([self._model(self._statistics.normalize(part)).float() for part in parts])
        if not logits.isfinite().all():
            raise InputError("the network's output is not finite; its probabilities would mean nothing")
        return logits.softmax(1).cpu()

    def likeliest(self, pixels: Tensor, top: int) -> list[tuple[tuple[str, float], ...]]:
        """Of every image the `top` likeliest classes with their probabilities."""
        if not len(pixels):
            return []
        values, indices = self.probabilities(pixels).topk(min(top, len(self.classes)))
        return [
            tuple((self.classes[index], value) for value, index in zip(*row, strict=True))
            for row in zip(values.tolist(), indices.tolist(), strict=True)
        ]


def input_form(weights: Weights, image_size: int | None = None) -> Form:
    """The images as the network was trained to see them: its size, its channels. Raises `InputError`."""
    description = weights.model.description
    if description.in_chans not in (1, 3):
        raise InputError(f"the network reads {description.in_chans} channels, which no image file has")
    form = Form(image_size or description.image_size, grey=description.in_chans == 1)
    check_images(weights, form.channels, form.side)
    return form


def _pictures(files: Sequence[PictureFile], appearance: Appearance) -> Pictures:
    paths = [Path(file.path) for file in files]
    labels = np.zeros(len(paths), np.int64)
    return Pictures(labels, paths.__getitem__, lambda i: quoted(paths[i]), appearance)
