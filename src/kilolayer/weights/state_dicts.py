"""Reads a state dict from anyone's file: safetensors, or a file that `torch.save` wrote."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kilolayer.errors import InputError, missing_path_error
from kilolayer.runs.weights_file import HEADER_KEY, SavedNetwork, read_tensors, read_weights
from kilolayer.system.message_text import listing, quote, truncate
from kilolayer.weights import torch_files

WRAPPERS = (
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "state",
    "params", "weights", "params_ema", "state_dict_ema", "model_ema", "ema",
)  # fmt: skip
"""The keys under which training scripts put their weights; the first that exists is used."""
PREFIXES = ("module.", "model.")
"""The prefixes of DataParallel and AveragedModel, and of modules with a network called `model`."""
COMPILED, AVERAGE_COUNT = "_orig_mod.", "n_averaged"
MAX_DEPTH = 3
TYPES = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
)  # fmt: skip
OTHER_FORMATS = {
    b"\x89HDF": "an HDF5 file, as Keras writes them",
    b"\x1f\x8b": "gzip",
    b"GGUF": "GGUF",
    b"PK\x05\x06": "an empty zip archive",
    b"": "an empty file",
}


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The weights in a file, as dense CPU tensors by name. No code in the file is ever run.

    Formats are safetensors and what `torch.save` writes (.pt, .pth, .tar, .bin, .ckpt; the content decides,
    not the name): a state dict itself, or one in the dictionary of a checkpoint (`WRAPPERS`). The prefixes of
    wrappers are removed: `module.` (DataParallel, AveragedModel), `_orig_mod.` (torch.compile) and `model.`
        (modules that hold the network). Input statistics in our own files are left out, since they are not
        weights. The tensors are copies; the file may be deleted.

    Raises `InputError` in one line for a missing, damaged or unknown file; for a file that asks for code (a
    pickled object, a whole module, TorchScript); for sparse, quantised, complex or meta tensors; and for a
    file that declares more than it holds, before anything of that size is allocated.
    """
    path = Path(path)
    content = _content(path)
    state = _find_tensors(path, content)
    for name, value in state.items():
        _check(path, name, value)
    _check_size(path, state)
    return _strip_prefixes(path, {name: value.detach().clone() for name, value in state.items()})


def read_described(path: str | Path) -> SavedNetwork | None:
    """The network in a weights file of ours, with its classes and input statistics; None for any other file.

    Raises `InputError` where the file cannot be read, or is ours and damaged.
    """
    path = Path(path)
    if _first_bytes(path)[8:9] != b"{":
        return None
    return read_weights(path) if HEADER_KEY in read_tensors(path)[1] else None


def _content(path: Path) -> Any:
    start = _first_bytes(path)
    if start.startswith(b"PK\x03\x04"):
        return torch_files.load_zip(path)
    if start.startswith(torch_files.LEGACY_MAGIC):
        return torch_files.load_legacy(path)
    if start[8:9] == b"{":
        described = read_described(path)
        return described.model.state_dict() if described else read_tensors(path)[0]
    raise InputError(f"{quote(path)}: {_format_name(start)}; allowed: safetensors, or what torch.save wrote")


def _first_bytes(path: Path) -> bytes:
    # Reading a pipe or a device would never end.
    if not os.path.isfile(path):
        raise (
            InputError(f"{quote(path)}: is not a file") if os.path.exists(path) else missing_path_error(path)
        )
    try:
        with path.open("rb") as file:
            return file.read(16)
    except OSError as error:
        raise InputError(f"{quote(path)}: cannot be read ({error.strerror})") from None


def _format_name(start: bytes) -> str:
    if start[:1] == b"\x80":
        return "a pickle, which could run code, and not one of torch.save"
    names = [name for mark, name in OTHER_FORMATS.items() if mark and start.startswith(mark)]
    return names[0] if names else "not a file of weights" if start else OTHER_FORMATS[b""]


def _find_tensors(path: Path, content: Any) -> dict[str, Any]:
    """The dictionary of tensors in the content. `dict.items`: a file can shadow the method."""
    for _ in range(MAX_DEPTH):
        if not isinstance(content, dict) or not content:
            break
        inner = dict(dict.items(content))
        if any(isinstance(value, Tensor) for value in inner.values()) and not _wrapper_key(inner):
            return inner
        if (key := _wrapper_key(inner)) is None:
            names = listing([repr(truncate(str(name), 40)) for name in inner], 5)
            raise InputError(f"{quote(path)}: no weights under its keys {names}")
        content = inner[key]
    description = (
        "an empty dictionary" if isinstance(content, dict) and not content else f"a {type(content).__name__}"
    )
    raise InputError(f"{quote(path)}: holds {description}, not a dictionary of tensors by name")


def _wrapper_key(content: dict[Any, Any]) -> str | None:
    return next((key for key in WRAPPERS if isinstance(content.get(key), dict)), None)


def _check(path: Path, name: object, value: object) -> None:
    where = f"{quote(path)}: {truncate(repr(name), 120)}"
    if not isinstance(name, str):
        raise InputError(f"{where} is a {type(name).__name__}, but tensors have names")
    if not isinstance(value, Tensor):
        raise InputError(f"{where} is a {type(value).__name__}, but weights are tensors")
    if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
        raise InputError(f"{where} is a sparse, quantised or deviceless tensor; weights are plain tensors")
    if value.dtype not in TYPES:
        raise InputError(
            f"{where} is of type {_dtype_name(value.dtype)}; allowed: {', '.join(map(_dtype_name, TYPES))}"
        )


def _check_size(path: Path, state: dict[str, Tensor]) -> None:
    """Strides of 0 make gigabytes from four bytes. Twice the file's size leaves room for shared tensors."""
    declared = sum(math.prod(value.shape) * value.element_size() for value in state.values())
    if declared > 2 * os.path.getsize(path):
        raise InputError(
            f"{quote(path)}: declares {declared:,} bytes of tensors in a file of {os.path.getsize(path):,}"
        )


def _dtype_name(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


def _strip_prefixes(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by their own names. AveragedModel's count of models is not a tensor of its network."""
    inner = {name: value for name, value in state.items() if name != AVERAGE_COUNT}
    if AVERAGE_COUNT in state and inner and all(name.startswith("module.") for name in inner):
        state = inner
    while (prefix := _common_prefix(state)) is not None:
        plain = {name.replace(prefix, "", 1): value for name, value in state.items()}
        if len(plain) != len(state):
            raise InputError(f"{quote(path)}: has tensors whose names differ by {prefix!r} only")
        state = plain
    return state


def _common_prefix(state: dict[str, Tensor]) -> str | None:
    """A wrapper's part of the names: in front of all names, or anywhere for torch.compile's."""
    if any(COMPILED in name for name in state):
        return COMPILED
    return next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in state)), None)
