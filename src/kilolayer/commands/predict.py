"""kilolayer predict: what a trained network takes images for."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kilolayer.commands.flags import Device, Files, Switch, Trained, Whole
from kilolayer.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from kilolayer.runs import Weights

BAR = 20


@dataclass(frozen=True)
class Predict:
    """Say what a trained network takes images for, with probabilities."""

    trained: Trained
    """A run's folder, or a weights file."""
    images: Files = ()
    """Image files: JPEG, PNG and other common formats."""
    top: Whole = 3
    """How many classes to name, the likeliest first."""
    device: Device = "auto"
    """auto (the first GPU, or else the CPU), cpu, cuda or cuda:1."""
    json: Switch = False
    """Print JSON."""


def predict(options: Predict) -> int:
    """Classifies and prints."""
    if not options.images:
        raise InputError("no image given: kilolayer predict RUN_OR_WEIGHTS IMAGE...")
    if options.top < 1:
        raise InputError(f"--top is {options.top}; allowed: a whole number from 1")
    from kilolayer.commands.trained import trained

    weights = trained(options.trained).weights
    probabilities = classify(weights, options.images, options.device)
    found = [
        {"image": path, "classes": _likeliest(row, weights.classes, options.top)}
        for path, row in zip(options.images, probabilities, strict=True)
    ]
    if options.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _print(found)
    return 0


def classify(weights: Weights, paths: tuple[str, ...], device: str = "auto") -> Tensor:
    """Probabilities (images, classes) on the CPU. `InputError` names the files that are no images."""
    import torch

    from kilolayer.inference import fold
    from kilolayer.training import choose_device

    place = choose_device(device)
    pixels = _pixels(weights, [Path(path) for path in paths])
    model, statistics = fold(weights.model).to(place), weights.statistics.to(place)
    with torch.inference_mode():
        parts = [model(statistics.normalize(part.to(place))).float() for part in torch.split(pixels, 64)]
    logits = torch.cat(parts).cpu()
    if not logits.isfinite().all():
        raise InputError("the network's output is not finite; its probabilities would mean nothing")
    return logits.softmax(1)


def _pixels(weights: Weights, paths: list[Path]) -> Tensor:
    """The images as the network was trained to see them: its size, its channels."""
    import numpy as np

    from kilolayer.data.pictures import Form, Pictures, decode
    from kilolayer.data.wording import quoted

    description = weights.model.description
    if description.in_chans not in (1, 3):
        raise InputError(f"the network reads {description.in_chans} channels, which no image file has")
    labels = np.zeros(len(paths), np.int64)
    pictures = Pictures(labels, paths.__getitem__, lambda i: quoted(paths[i]))
    form = Form(description.image_size, grey=description.in_chans == 1)
    return decode(pictures, form, "reading the images").pixels


def _likeliest(row: Tensor, classes: tuple[str, ...], top: int) -> list[dict[str, Any]]:
    values, indices = row.topk(min(top, len(classes)))
    return [
        {"class": classes[index], "probability": round(value, 6)}
        for value, index in zip(values.tolist(), indices.tolist(), strict=True)
    ]


def _print(found: list[dict[str, Any]]) -> None:
    from kilolayer.commands.evaluate import _plain as plain

    watched = sys.stdout.isatty()
    for one in found:
        print(plain(str(one["image"])))
        for each in one["classes"]:
            bar = "█" * round(BAR * each["probability"]) if watched else ""
            print(f"  {100 * each['probability']:5.1f} %  {plain(each['class'])}  {bar}".rstrip())
