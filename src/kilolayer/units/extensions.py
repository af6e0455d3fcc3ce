"""Units of your own: a Python file outside of the package that defines shortcuts, branches or activations.

A description with such a kind names the file that defines it. Reading the description never runs the file:
its code runs only after you name it, with `--unit FILE.py` or `load_unit_file`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from kilolayer.errors import InputError, suggest
from kilolayer.units.field_checks import built_in_kinds

T = TypeVar("T")
PREFIX = "kilolayer_own_"


@dataclass(frozen=True)
class Origin:
    """The file that defines a kind: its name without its folder, and the SHA-256 of its content."""

    name: str
    sha256: str


_loaded_origins: dict[str, Origin] = {}
"""The origin of every file that ran, by the name of its module."""


def load_unit_file(path: str | Path) -> ModuleType:
    """Run the file `path` and return its module. A file with the same content runs only once.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "mine.py"
    ...     _ = file.write_text("from kilolayer.units import Scaled; HALF = Scaled(0.5)")
    ...     load_unit_file(file).HALF.equation
    '0.5·x + F(x)'

    Raises:
        InputError: the file does not exist, or its code raises an exception.
    """
    file = Path(path)
    if file.suffix != ".py" or not file.is_file():
        raise InputError(f"{path} is no Python file; name the file that defines your unit: FILE.py")

    content = file.read_bytes()
    origin = Origin(file.name, hashlib.sha256(content).hexdigest())
    name = f"{PREFIX}{origin.sha256[:16]}"
    if name not in sys.modules:
        _run(file, name, origin)
    return sys.modules[name]


def _run(file: Path, name: str, origin: Origin) -> None:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None  # noqa: S101 - a .py file has one
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    sys.modules[name], _loaded_origins[name] = module, origin
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name], _loaded_origins[name]
        raise InputError(f"{file}: {type(error).__name__}: {error}") from error


def split_reference(text: str) -> tuple[str, str]:
    """The two parts of "FILE.py:NAME"; the name is empty for "FILE.py"."""
    if text.endswith(".py"):
        return text, ""
    path, _, name = text.rpartition(":")
    return path, name


def load_named(text: str, *allowed: type[Any]) -> Any:
    """The value that `text`, "FILE.py:NAME", names: an instance of an `allowed` class.

    Where NAME is a class, its instance has the default values. Raises `InputError` where the file defines no
    such value.
    """
    path, name = split_reference(text)
    module = load_unit_file(path or text)
    values = {key: value for key, value in vars(module).items() if _is_value(value, allowed, module)}
    if name not in values:
        has = suggest(name, sorted(values)) if values else "it defines none"
        raise InputError(f"{path} has no unit, shortcut, branch or arrangement called {name!r}; {has}")
    value = values[name]
    return value() if isinstance(value, type) else value


def load_part(text: str) -> tuple[str, Any]:
    """The part of a unit that `text`, "FILE.py:NAME", names, with the field of `Unit` that it replaces.

    The field is "branch", "h" or "arrangement"; it is "unit" for a whole unit.
    """
    from kilolayer.units.arrangement import Arrangement
    from kilolayer.units.branch import Branch
    from kilolayer.units.shortcut import Shortcut
    from kilolayer.units.unit import Unit

    if not split_reference(text)[1]:
        raise InputError(
            f"{text!r} has no name; allowed: FILE.py:NAME, with the name of the unit in the file"
        )
    field_of = {Unit: "unit", Branch: "branch", Shortcut: "h", Arrangement: "arrangement"}
    value = load_named(text, *field_of)
    return next(field for kind, field in field_of.items() if isinstance(value, kind)), value


def _is_value(value: Any, allowed: tuple[type, ...], module: ModuleType) -> bool:
    if isinstance(value, type):
        return issubclass(value, allowed) and value.__module__ == module.__name__
    return isinstance(value, allowed)


def origin_of(kind: type) -> Origin | None:
    """The file that defines `kind`, or None for a kind of the package; `InputError` for any other class."""
    if kind.__module__ in _loaded_origins:
        return _loaded_origins[kind.__module__]
    if kind.__module__.startswith("kilolayer."):
        return None
    raise InputError(
        f"{kind.__name__} is defined in {kind.__module__}, which a description cannot name; put it into a "
        "file of its own and load that: kilolayer.units.load_unit_file('FILE.py')"
    )


def kind_of(base: type[T], name: str, origin: dict[str, Any] | None) -> type[T]:
    """The kind of `base` called `name` in a description; `InputError` if it is unknown or not loaded."""
    if origin is None:
        built_in = {kind.__name__: kind for kind in built_in_kinds(base) if is_dataclass(kind)}
        if name not in built_in:
            raise InputError(f"no type {name!r}, {suggest(str(name), list(built_in))}")
        return built_in[name]
    file, sha256 = str(origin.get("name")), str(origin.get("sha256"))
    module = sys.modules.get(f"{PREFIX}{sha256[:16]}")
    kind = getattr(module, str(name), None)
    if isinstance(kind, type) and issubclass(kind, base):
        # A renamed file keeps the name that the description has, since checksums are taken of descriptions.
        _loaded_origins[kind.__module__] = Origin(file, sha256)
        return kind
    changed = any(loaded.name == file for loaded in _loaded_origins.values())
    if changed:
        raise InputError(
            f"this needs {name} from {file} as it was, with the SHA-256 {sha256[:12]}…, but that file has "
            "changed since: bring it back, or train anew"
        )
    raise InputError(
        f"this needs {name} from {file}, code that runs only when you name it: add --unit {file}"
    )


def unit_option() -> list[str]:
    """The option by which another command can read this description; the first file loads the others."""
    return ["--unit", loaded_files()[0]] if _loaded_origins else []


def loaded_files() -> tuple[str, ...]:
    """The paths of the files that ran in this process; a worker process has to run them too."""
    return tuple(str(sys.modules[name].__file__) for name in _loaded_origins)
