"""The digits that come with the package: 1,797 handwritten digits, 8×8 pixels, grey (see DIGITS-LICENSE.txt).

The last 360 are the test set. The file keeps the order of its 13 writers, so most test digits are by people
whose writing the network has not seen. This is harder, and more honest, than a random fifth.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from io import BytesIO

import numpy as np
import torch

from kilolayer.data.config import Data
from kilolayer.data.images import Images, StoredDataset

CLASSES = tuple(str(digit) for digit in range(10))
NUM_TEST = 360


@cache
def _all_digits() -> Images:
    raw = files("kilolayer.data").joinpath("digits.npz").read_bytes()
    with np.load(BytesIO(raw), allow_pickle=False) as stored:
        grey = (stored["images"].astype(np.int64) * 255 + 8) // 16  # 0 … 16 to 0 … 255, rounded
        labels = stored["labels"].astype(np.int64)
    return Images(torch.from_numpy(grey.astype(np.uint8))[:, None], torch.from_numpy(labels))


def read_digits(data: Data) -> StoredDataset | None:
    """1,437 training and 360 test images, uint8 (1, 8, 8). None for any other source."""
    if data.source != "digits":
        return None
    num_train = 1797 - NUM_TEST
    return StoredDataset(
        "digits", lambda: CLASSES, lambda: _all_digits()[:num_train], lambda: _all_digits()[num_train:]
    )
