"""A user's own module, named as FILE.py:CALLABLE or package.module:CALLABLE."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kilolayer.errors import InputError, KilolayerError, missing_path_error

_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_user_module(reference: str) -> bool:
    """Whether `text` has the form FILE.py:CALLABLE or package.module:CALLABLE, and is no existing file."""
    if reference.rpartition(":")[0].endswith(".py"):
        return True
    return _DOTTED.fullmatch(reference) is not None and not os.path.exists(reference)


def load_user_module(reference: str, seed: int = 0, arguments: str = "") -> nn.Module:
    """The module that CALLABLE returns, made with the random seed `seed`. The file's or package's code runs.

    Args:
        reference: FILE.py:CALLABLE or package.module:CALLABLE; CALLABLE may have dots, and be a class.
        seed: of the random numbers that it draws.
        arguments: what stands between the parentheses of the call, literals only: "20, num_classes=10".

    Raises:
        InputError: the file, the module or the name does not exist, the arguments are no literals or do not
            fit, the user's code fails, or CALLABLE returns no `nn.Module`.
    """
    positional, keywords = call_arguments(arguments)
    try:
        return _load(reference, seed, positional, keywords)
    except KilolayerError:
        raise
    except (Exception, SystemExit) as error:  # a script without a guard exits when it is imported
        words = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise InputError(f"{reference} cannot be made: {words}") from None


def _load(reference: str, seed: int, positional: list[Any], keywords: dict[str, Any]) -> nn.Module:
    origin, _, name = reference.rpartition(":")
    module: Any = _import_path(Path(origin)) if origin.endswith(".py") else _import_dotted(origin)
    for part in name.split("."):
        if not hasattr(module, part):
            raise InputError(f"{origin} has no {name!r}")
        module = getattr(module, part)
    if isinstance(module, nn.Module):
        if positional or keywords:
            raise InputError(f"{reference} is a module already, and takes no arguments")
        return module
    if callable(module):
        module = _call(reference, module, seed, positional, keywords)
    if not isinstance(module, nn.Module):
        raise InputError(f"{reference} returns {type(module).__name__}, not a torch.nn.Module")
    return module


def call_arguments(text: str) -> tuple[list[Any], dict[str, Any]]:
    """The literals in the text of a call, by position and by name. Nothing is executed.

    Raises:
        InputError: the text is no list of arguments, or an argument is no literal.

    >>> call_arguments("20, num_classes=10, widths=[16, 32]")
    ([20], {'num_classes': 10, 'widths': [16, 32]})
    """
    allowed = "allowed: literals, as \"'resnet50', num_classes=10\""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise InputError(f"--call {text!r} is no list of arguments; {allowed}") from None
    # f(1)(2) and f() + g() parse too, but their outermost call is not f's.
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise InputError(f"--call {text!r} is no list of arguments; {allowed}")
    positional = [_literal(node) for node in call.args]
    keywords: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise InputError(f"--call {text!r} has **; {allowed}")
        keywords[keyword.arg] = _literal(keyword.value)
    return positional, keywords


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        words = ast.unparse(node)
        hint = f"; write '{words}' for a text" if isinstance(node, ast.Name) else ""
        raise InputError(f"--call: {words} is no literal{hint}") from None


def _call(
    text: str, make: Callable[..., Any], seed: int, positional: list[Any], keywords: dict[str, Any]
) -> Any:
    try:
        inspect.signature(make).bind(*positional, **keywords)
    except TypeError as error:
        how = "with these arguments" if positional or keywords else "without arguments"
        hint = "" if positional or keywords else "; give them with --call"
        raise InputError(f"{text} is called {how}, but: {error}{hint}") from None
    except ValueError:  # a callable of C tells no signature
        pass
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make(*positional, **keywords)


def _import_path(path: Path) -> object:
    if not path.is_file():
        raise missing_path_error(path)
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


def _import_dotted(name: str) -> object:
    """The module of that name: an installed one, or else one of the current folder."""
    package = name.partition(".")[0]
    is_local = importlib.util.find_spec(package) is None
    # Installed packages come first, so that a file that lies here by chance takes no library's place.
    folder = os.getcwd()
    if is_local:
        sys.path.append(folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise InputError(f"no module {error.name!r} is installed or lies in this folder") from None
        raise
    except SyntaxError as error:
        raise InputError(f"{error.filename}, line {error.lineno}: {error.msg}") from None
    finally:
        if is_local:
            sys.path.remove(folder)
