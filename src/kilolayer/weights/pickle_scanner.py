"""Reads what a pickle would do from its opcodes, without doing it: a first check before that of torch.

`torch.load(weights_only=True)` runs no code, but it calls some constructors with any arguments in the file
(`bytearray(10**12)`), and allocates storages of any size that the file declares. The scanner therefore looks
at the opcodes
first: only names that plain tensors need are allowed, and the declared elements may not exceed the bytes of
    the file.
"""

from __future__ import annotations

import pickletools
from pathlib import Path
from typing import IO

from kilolayer.errors import InputError, KilolayerError
from kilolayer.system.message_text import error_text, quote, truncate

_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
ALLOWED = {
    "collections OrderedDict",
    "collections Counter",  # the milestones of a scheduler, stored beside the weights
    "torch Size",
    "torch device",
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"torch {name}Storage" for name in _STORAGES),
    *(f"torch {name}" for name in ("float16", "bfloat16", "float32", "float64", "int64", "uint8", "bool")),
}
OBJECT_OPCODES = ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID")
INTEGER_OPCODES = ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG")
MAKING_OPCODES = frozenset({
    "EMPTY_LIST", "LIST", "EMPTY_DICT", "DICT", "EMPTY_SET", "FROZENSET", "TUPLE", "TUPLE1", "TUPLE2",
    "TUPLE3", "REDUCE", "BINFLOAT", "FLOAT", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", *INTEGER_OPCODES,
})  # fmt: skip
"""Opcodes of a few bytes that make values of a hundred."""
FREE_VALUES, VALUES_PER_TENSOR = 500_000, 60
"""The values that any pickle may make, and those that it may make for each of its tensors."""
MEMO_OPCODES = ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE")
OTHER_TENSORS = {
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_sparse_csr_tensor": "a sparse tensor",
    "_rebuild_qtensor": "a quantised tensor",
    "_rebuild_meta_tensor_no_storage": "a tensor without data (meta)",
    "_rebuild_nested_tensor": "a nested tensor",
}
ADVICE = "save only model.state_dict(), with safetensors or torch.save"


def scan_pickle(file: IO[bytes], path: Path, size: int, *, legacy: bool = False) -> None:
    """Scans one pickle to its end. Raises `InputError` unless it holds only plain tensors.

    size: the bytes of the file. legacy: the format before PyTorch 1.6, where the name of a storage has one
        more part.
    """
    try:
        _scan_opcodes(file, path, size, legacy)
    except KilolayerError:
        raise
    except Exception as error:  # genops has no errors of its own: bad bytes raise any of a dozen
        raise InputError(f"{quote(path)}: damaged ({error_text(error)})") from None


def _scan_opcodes(file: IO[bytes], path: Path, size: int, legacy: bool) -> None:
    previous: list[tuple[str, object]] = []
    declared = 0
    spare = FREE_VALUES
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name == "GLOBAL" and argument not in ALLOWED:
            raise InputError(f"{quote(path)}: {_refusal(str(argument))}; {ADVICE}")
        if name in OBJECT_OPCODES:
            raise InputError(f"{quote(path)}: asks to make objects ({name}), not tensors; {ADVICE}")
        spare -= name in MAKING_OPCODES
        if spare < 0:
            raise InputError(f"{quote(path)}: more than {FREE_VALUES:,} values are no tensors; {ADVICE}")
        if name == "BINPERSID":
            spare += VALUES_PER_TENSOR
            declared += _storage_length(previous, path, legacy)
            if declared > size:
                raise InputError(
                    f"{quote(path)}: declares at least {declared:,} numbers in a file of {size:,} bytes"
                )
        if name not in MEMO_OPCODES:
            previous = [*previous[-2:], (name, argument)]


def _storage_length(previous: list[tuple[str, object]], path: Path, legacy: bool) -> int:
    """The length of a storage, which ends its name, a tuple: (…, length[, None])."""
    names = [name for name, _ in previous]
    _, length = previous[0] if legacy else previous[-2:][0]
    expected = ["NONE", "TUPLE"] if legacy else ["TUPLE"]
    if names[-len(expected) :] != expected or not isinstance(length, int) or length < 0:
        raise InputError(
            f"{quote(path)}: names the storages of its tensors in another way than torch.save; it is damaged"
        )
    return length


def _refusal(function: str) -> str:
    module, _, name = function.partition(" ")
    if name in OTHER_TENSORS:
        return f"holds {OTHER_TENSORS[name]}"
    if module in ("torch", "torch._utils"):
        return f"holds something made by {truncate(f'{module}.{name}', 100)}, not a plain tensor"
    return f"asks to run {truncate(f'{module}.{name}', 100)}, which could be anything"
