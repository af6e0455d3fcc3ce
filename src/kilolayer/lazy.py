"""Names imported when first used, so that descriptions and `--help` need not wait for PyTorch.

PEP 562 by hand: the lazy_loader package would be one more dependency for these few lines.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_attributes(
    package: str, submodule_of: Mapping[str, str], submodules: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__` for the names in `homes`, each in the submodule given.

    `folders` are submodules to be had by themselves, as `package.folder` without an import of it.
    """

    def attribute(name: str) -> Any:
        if name in submodules:
            return import_module(f"{package}.{name}")
        if name not in submodule_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{submodule_of[name]}"), name)

    def names() -> list[str]:
        return sorted([*sys.modules[package].__all__, *submodules])

    return attribute, names
