"""Units of your own: a Python file outside of the package that defines shortcuts, branches or activations.

A description with such a kind names the file that defines it, and the files that this one loads. Reading
the description never runs a file: its code runs only after you name it, with `--unit FILE.py` or
`load_unit_file`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, TypeVar

from kilolayer.errors import InputError, missing_path_error, suggest
from kilolayer.units.field_checks import built_in_kinds

T = TypeVar("T")
PREFIX = "kilolayer_own_"
STDLIB = Path(sysconfig.get_path("stdlib")).resolve()


@dataclass(frozen=True)
class FileContent:
    """A file's name without its folder, and the SHA-256 of its content."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Origin(FileContent):
    """The file that defines a kind. `loads` are the other files whose code it used when it ran."""

    loads: tuple[FileContent, ...] = ()


class UnitFileError(InputError):
    """A description needs the kind `name` of a file that did not run, or that is not as it was.

    `changed` is the file that has changed, if any: `origin` itself, or a file that it loads.
    """

    def __init__(self, name: str, origin: Origin, changed: FileContent | None) -> None:
        self.name, self.origin, self.changed = name, origin, changed
        super().__init__(refusal("this", (self,)))


_loaded_origins: dict[str, Origin] = {}
"""The origin of every file that ran, by the name of its module."""
_paths: dict[str, Path] = {}
"""The path of every file that ran or was loaded, by the SHA-256 of its content."""
_running: list[dict[FileContent, None]] = []
"""For each file that runs now, the outermost first: the files that it has loaded so far."""


def load_unit_file(path: str | Path) -> ModuleType:
    """Run the file `path` and return its module. A file with the same content runs only once.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "mine.py"
    ...     _ = file.write_text("from kilolayer.units import Scaled; HALF = Scaled(0.5)")
    ...     load_unit_file(file).HALF.equation
    '0.5·x + F(x)'

    Raises:
        InputError: the file does not exist, its code raises an exception, or a file that it loads has changed
            since it ran.
    """
    file = Path(path)
    if file.suffix == ".py" and not file.exists():
        raise missing_path_error(path)
    if file.suffix != ".py" or not file.is_file():
        raise InputError(f"{path} is no Python file; name the file that defines your unit: FILE.py")

    content = _read(file)
    name = f"{PREFIX}{content.sha256[:16]}"
    if name not in sys.modules:
        _run(file, name, content)
    origin = _loaded_origins[name]
    for loaded in origin.loads:
        current = _paths[loaded.sha256]
        if current.is_file() and _read(current).sha256 != loaded.sha256:
            raise InputError(f"{current} has changed since {file} loaded it: start Python anew")
    for loads in _running:
        loads.update(dict.fromkeys((content, *origin.loads)))
    return sys.modules[name]


def _read(file: Path) -> FileContent:
    try:
        return FileContent(file.name, hashlib.sha256(file.read_bytes()).hexdigest())
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from None


def _run(file: Path, name: str, content: FileContent) -> None:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None  # noqa: S101 - a .py file has one
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    loads: dict[FileContent, None] = {}
    # Before its code runs: the first file in this table is the outermost one.
    sys.modules[name], _loaded_origins[name] = module, Origin(content.name, content.sha256)
    _paths[content.sha256] = file.resolve()
    modules_before = set(sys.modules)
    _running.append(loads)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name], _loaded_origins[name]
        raise InputError(f"{file}: {type(error).__name__}: {error}") from error
    finally:
        _running.pop()
    for imported in _imported_neighbours(module, set(sys.modules) - modules_before):
        loaded = _read(imported)
        _paths[loaded.sha256] = imported
        loads[loaded] = None
    _loaded_origins[name] = Origin(content.name, content.sha256, tuple(loads))


def _imported_neighbours(module: ModuleType, new: Iterable[str]) -> list[Path]:
    """The files in the folder of `module`, or below, that it imported by `import`, as a script may.

    These are the modules that are `new`, and those that stand behind the names in `module`.
    """
    folder = Path(str(module.__file__)).resolve().parent
    files: dict[Path, None] = {}
    visited = {module.__name__}
    queue = [*_modules_behind_names(module), *(sys.modules[name] for name in new if name in sys.modules)]
    while queue:
        imported = queue.pop()
        path = None if imported.__name__ in visited else _neighbour(imported, folder)
        visited.add(imported.__name__)
        if path is not None:
            files[path] = None
            queue.extend(_modules_behind_names(imported))
    return sorted(files)


def _modules_behind_names(module: ModuleType) -> Iterator[ModuleType]:
    for value in list(vars(module).values()):
        if isinstance(value, ModuleType):
            yield value
        elif isinstance(value, type | FunctionType) and value.__module__ in sys.modules:
            yield sys.modules[value.__module__]


def _neighbour(module: ModuleType, folder: Path) -> Path | None:
    """The file of `module`, if it lies below `folder` and belongs to no installed package."""
    if module.__name__.startswith((PREFIX, "kilolayer.")) or module.__name__ in ("kilolayer", "__main__"):
        return None
    file = getattr(module, "__file__", None)
    # A module that no import made, as torch.classes, may have any text: "_classes.py".
    if not isinstance(file, str) or not os.path.isabs(file) or not os.path.isfile(file):
        return None
    path = Path(file).resolve()
    is_installed = {"site-packages", "dist-packages"} & set(path.parts)
    return path if path.is_relative_to(folder) and not (is_installed or path.is_relative_to(STDLIB)) else None


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
    loads = tuple(FileContent(str(file["name"]), str(file["sha256"])) for file in origin.get("loads", ()))
    needed = Origin(str(origin.get("name")), str(origin.get("sha256")), loads)
    module = sys.modules.get(f"{PREFIX}{needed.sha256[:16]}")
    kind = getattr(module, str(name), None)
    if module and isinstance(kind, type) and issubclass(kind, base) and kind.__module__ == module.__name__:
        loaded = _loaded_origins[module.__name__].loads
        same = {file.sha256 for file in loaded}
        for file in needed.loads:
            if file.sha256 not in same:
                raise UnitFileError(name, needed, file)
        # A renamed file keeps the name that the description has, since checksums are taken of descriptions.
        _loaded_origins[module.__name__] = Origin(needed.name, needed.sha256, loaded)
        return kind
    has_changed = any(loaded.name == needed.name for loaded in _loaded_origins.values())
    raise UnitFileError(name, needed, needed if has_changed else None)


def refusal(subject: str, errors: Sequence[UnitFileError]) -> str:
    """The sentence that `subject`, a run or a file, cannot be read without its unit files.

    >>> refusal("runs/mine", [UnitFileError(name, Origin("mine.py", "0"), None) for name in ("SE", "LN")])
    'runs/mine uses SE and LN from mine.py, whose code runs only when you name it: add --unit mine.py'
    """
    names: dict[str, dict[str, None]] = {}
    for error in errors:
        names.setdefault(error.origin.name, {})[error.name] = None
    parts = [f"{_listed(tuple(kinds))} from {file}" for file, kinds in names.items()]
    uses = f"{subject} uses {_listed(parts)}"
    for error in errors:
        if error.changed is not None:
            file, changed = error.origin.name, error.changed
            loader = "" if changed.name == file else f", which {file} loads,"
            return (
                f"{uses}; {changed.name}{loader} has changed since (its SHA-256 was {changed.sha256[:12]}…): "
                "bring the file back as it was, or train anew"
            )
    loaders = [
        error.origin.name
        for error in errors
        if set(names) <= {error.origin.name, *(loaded.name for loaded in error.origin.loads)}
    ]
    if not loaders:
        return f"{uses}, whose code runs only when you name it: add --unit with a file that loads them all"
    return f"{uses}, whose code runs only when you name it: add --unit {loaders[0]}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def unit_option() -> list[str]:
    """The option by which another command can read this description; the first file loads the others."""
    return ["--unit", loaded_files()[0]] if _loaded_origins else []


def loaded_files() -> tuple[str, ...]:
    """The paths of the files that ran in this process; a worker process has to run them too."""
    return tuple(str(sys.modules[name].__file__) for name in _loaded_origins)
