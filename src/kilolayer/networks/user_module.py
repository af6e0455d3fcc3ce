"""A user's own module, named as FILE.py:CALLABLE."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kilolayer.errors import InputError, missing_path_error


def is_user_module(reference: str) -> bool:
    """Whether `text` has the form FILE.py:CALLABLE."""
    return reference.rpartition(":")[0].endswith(".py")


def load_user_module(reference: str, seed: int = 0) -> nn.Module:
    """The module that CALLABLE of FILE.py returns, made with the random seed `seed`. The file's code runs.

    Raises:
        InputError: the file or the name does not exist, or CALLABLE returns no `nn.Module`.
    """
    file, _, name = reference.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise missing_path_error(path)
    module = getattr(_import_file(path), name, None)
    if module is None:
        raise InputError(f"{path} has no {name!r}")
    if callable(module) and not isinstance(module, nn.Module):
        module = _call(reference, module, seed)
    if not isinstance(module, nn.Module):
        raise InputError(f"{reference} returns {type(module).__name__}, not a torch.nn.Module")
    return module


def _call(text: str, make: Callable[..., Any], seed: int) -> Any:
    try:
        inspect.signature(make).bind()
    except TypeError as error:
        raise InputError(f"{text} is called without arguments, but: {error}") from None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def _import_file(path: Path) -> object:
    # The file may import its neighbours, as a script may.
    folder = str(path.resolve().parent)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise InputError(f"{path}, line {error.lineno}: {error.msg}") from None
    finally:
        sys.path.remove(folder)
    return module
