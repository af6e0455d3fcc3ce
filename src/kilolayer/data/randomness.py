"""Randomness as a pure function of named integers: the same on every machine and after any resume.

Only the *raw* words of NumPy's Philox generator are used: NumPy promises never to change them
(NEP 19), which neither its distributions nor `torch.randperm` promise.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray


def random_words(count: int, purpose: str, *numbers: int) -> NDArray[np.uint64]:
    """`count` independent uniform 64-bit words, named by a purpose and numbers such as (seed, epoch)."""
    name = "/".join([purpose, *(str(number) for number in numbers)])
    key = int.from_bytes(blake2b(name.encode(), digest_size=16).digest(), "little")
    return np.random.Philox(key=key).random_raw(count)


def random_permutation(count: int, purpose: str, *numbers: int) -> NDArray[np.int64]:
    """A uniform permutation of 0 … count-1: the order of as many random words."""
    return np.argsort(random_words(count, purpose, *numbers), kind="stable")
