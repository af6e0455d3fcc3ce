"""Random numbers as a pure function of named integers: equal on every machine and after every resume.

We use only the *raw* words of NumPy's Philox generator. NumPy promises never to change them (NEP 19). It
makes no such promise for its distributions, nor does PyTorch for `torch.randperm`.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray


def random_words(count: int, purpose: str, *numbers: int) -> NDArray[np.uint64]:
    """`count` independent uniform 64-bit words, named by a purpose and numbers such as (seed, epoch).

    >>> bool((random_words(3, "flip", 0, 1) == random_words(3, "flip", 0, 1)).all())
    True
    """
    name = "/".join([purpose, *(str(number) for number in numbers)])
    key = int.from_bytes(blake2b(name.encode(), digest_size=16).digest(), "little")
    return np.random.Philox(key=key).random_raw(count)


def random_permutation(count: int, purpose: str, *numbers: int) -> NDArray[np.int64]:
    """A uniform permutation of 0 … count−1: the order that sorts as many random words.

    >>> sorted(random_permutation(5, "order", 0).tolist())
    [0, 1, 2, 3, 4]
    """
    return np.argsort(random_words(count, purpose, *numbers), kind="stable")
