"""The digits that come with the package: 1,797 handwritten digits, 8×8 pixels, grey (see DIGITS-LICENSE.txt).

The last 360 are the test set. The file keeps the order of its writers, 13 in all, so the test digits are
mostly by people of whom the network has seen nothing: harder, and more honest, than a random fifth.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray

from kilolayer.data.images import Images, Source

CLASSES = tuple(str(digit) for digit in range(10))
TEST = 360


@cache
def _stored_digits() -> Images:
    raw = files("kilolayer.data").joinpath("digits.npz").read_bytes()
    with np.load(BytesIO(raw), allow_pickle=False) as stored:
        grey = (stored["images"].astype(np.int64) * 255 + 8) // 16  # 0 … 16 to 0 … 255, rounded
        labels = stored["labels"].astype(np.int64)
    return Images(torch.from_numpy(grey.astype(np.uint8))[:, None], torch.from_numpy(labels))


def digits_source() -> Source:
    """1,437 training and 360 test images, uint8 (1, 8, 8)."""
    count = 1797 - TEST

    def read_train(index: NDArray[np.int64]) -> Images:
        return _stored_digits()[torch.from_numpy(index)]

    return Source("digits", CLASSES, count, read_train, lambda: _stored_digits()[count:])
