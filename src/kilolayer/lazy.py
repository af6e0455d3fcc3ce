"""Names that a package imports at their first use, so that `--help` does not wait for PyTorch (PEP 562).

The lazy_loader package does this too, but it is untyped and its `__dir__` omits names imported at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_attributes(
    package: str, submodule_of: Mapping[str, str], submodules: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` for a package whose names lie in submodules.

    `submodule_of` maps each name to its submodule. `submodules` are attributes of the package, too:
    `package.submodule` works without an import statement. `__dir__` lists `__all__`, the submodules, and the
    attributes that every module has.

    >>> import kilolayer
    >>> {"create_model", "units", "__file__"} <= set(dir(kilolayer))
    True
    """

    def attribute(name: str) -> Any:
        if name in submodules:
            return import_module(f"{package}.{name}")
        if name not in submodule_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{submodule_of[name]}"), name)

    def names() -> list[str]:
        module = sys.modules[package]
        dunder = (name for name in vars(module) if name.startswith("__"))
        return sorted({*module.__all__, *submodules, *dunder})

    return attribute, names
