"""CIFAR's "python version" (what torchvision leaves on disk), read without unpickling it.

Unpickling runs whatever a file asks for. These files need nothing of the kind: each is a dictionary of
strings, lists of numbers and one array. `pickletools.genops`, which only *lists* the opcodes of a pickle, is
therefore enough. The values behind each known key are collected; nothing is built, imported or called. A file
that names any function but the three with which NumPy stores an array is refused.
"""

from __future__ import annotations

import pickletools

import numpy as np
from numpy.typing import NDArray

from kilolayer.errors import InputError, KilolayerError
from kilolayer.system.message_text import error_text

PIXELS = 3 * 32 * 32
KEYS = ("batch_label", "labels", "fine_labels", "coarse_labels", "data", "filenames", "label_names",
        "fine_label_names", "coarse_label_names", "num_cases_per_batch", "num_vis")  # fmt: skip
ARRAY = ("numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype")
OBJECT_OPCODES = ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4",
           "PERSID", "BINPERSID")  # fmt: skip
# the opcodes that push their argument; other opcodes use it as the number of a memo (LONG_BINPUT …)
VALUES = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4",
          "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
          "BINBYTES", "SHORT_BINBYTES", "BINBYTES8")  # fmt: skip

MOST_OPCODES = 1_000_000
"""CIFAR-100's training file has some 400,000: a label, a file name and their memo for each image."""

Values = dict[str, list[str | int]]


def parse_batch(raw: bytes, where: str, labels: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels uint8 (N, 3072) and labels int64 (N,) of one batch file. Raises `InputError`."""
    values = _values(raw, where)
    numbers = [value for value in values.get(labels, []) if isinstance(value, int)]
    # the array's other strings are the name of its type and the byte order
    pixels = max((value for value in values.get("data", []) if isinstance(value, str)), key=len, default="")
    if not numbers or len(pixels) != len(numbers) * PIXELS or max(map(abs, numbers)) > 255:
        raise InputError(f"{where}: {len(pixels):,} bytes of pixels, {len(numbers):,} labels; it is damaged")
    table = np.frombuffer(pixels.encode("latin-1"), np.uint8).reshape(-1, PIXELS)
    return table, np.array(numbers, np.int64)


def parse_names(raw: bytes, where: str, key: str) -> tuple[str, ...]:
    """The class names in the file of names. Raises `InputError`."""
    return tuple(value for value in _values(raw, where).get(key, []) if isinstance(value, str))


def _values(raw: bytes, where: str) -> Values:
    try:
        return _collect_values(raw, where)
    except KilolayerError:
        raise
    except Exception as error:  # genops has no errors of its own: bad bytes raise any of a dozen
        raise InputError(f"{where}: not a CIFAR file, or a damaged one ({error_text(error)})") from None


def _collect_values(raw: bytes, where: str) -> Values:
    """All strings and integers, by the key in front of them. Byte strings are decoded as Latin-1."""
    values: Values = {}
    current: list[str | int] = []
    for number, (opcode, argument, _) in enumerate(pickletools.genops(raw)):
        if number == MOST_OPCODES:
            raise InputError(f"{where}: more than {MOST_OPCODES:,} values, so it is not CIFAR")
        _refuse_opcode(opcode.name, argument, where)
        value = argument.decode("latin-1") if isinstance(argument, bytes) else argument
        if value in KEYS and value not in values:
            current = values.setdefault(value, [])
        elif isinstance(value, str | int) and opcode.name in VALUES:
            current.append(value)
    return values


def _refuse_opcode(name: str, argument: object, where: str) -> None:
    if (name == "GLOBAL" and argument not in ARRAY) or name in OBJECT_OPCODES:
        wish = f"to run {argument!r}" if name == "GLOBAL" else f"for {name}"
        raise InputError(f"{where}: asks {wish}, as no CIFAR file does; take the binary version")
