"""No folder imports from one further right, and no modules import each other in a circle."""

import ast
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "kilolayer"

ORDER = (
    "errors",
    "lazy",
    "chart",
    "system",
    "units",
    "networks",
    "data",
    "kernels",
    "training",
    "values",  # descriptions as JSON: of units, networks, data, training
    "runs",
    "theory",
    "measure",
    "statistics",
    "weights",
    "audit",
    "papers",
    "sweep",
    "bench",
    "report",
    "cli",
    "analysis",
    "__main__",
)
# The package's own front door re-exports lazily.
EXEMPT = ("__init__",)

FILES = sorted(SOURCE.rglob("*.py"))


def home(path):
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imported(path):
    """The folders of this package that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.ImportFrom(module="kilolayer", names=names, level=0):
                yield from ((alias.name, node.lineno) for alias in names)
            case ast.ImportFrom(module=str(module), level=0) if module.startswith("kilolayer."):
                yield module.split(".")[1], node.lineno
            case ast.ImportFrom(level=level) if level:
                yield "a relative import", node.lineno
            case ast.Import(names=names):
                inside = (alias.name.split(".") for alias in names if alias.name.startswith("kilolayer."))
                yield from ((parts[1], node.lineno) for parts in inside)


@pytest.mark.parametrize(
    "path", [path for path in FILES if home(path) not in EXEMPT], ids=lambda p: str(p.relative_to(SOURCE))
)
def test_folders_import_from_the_left_only(path):
    assert home(path) in ORDER, f"{home(path)} has no place in the order"
    allowed = (*ORDER[: ORDER.index(home(path)) + 1], *EXEMPT, "__version__")
    wrong = [f"line {line}: {folder}" for folder, line in imported(path) if folder not in allowed]
    assert not wrong


def test_the_law_sees_what_is_there():
    found = {home(path) for path in FILES}
    assert {"units", "networks"} <= found
    seen = {folder for path in FILES if home(path) == "networks" for folder, _ in imported(path)}
    assert seen == {"errors", "lazy", "networks", "units"}


@pytest.mark.parametrize("path", sorted(SOURCE.glob("*/__init__.py")), ids=lambda p: p.parent.name)
def test_no_lazy_name_is_a_submodule_s(path):
    """Importing the submodule would put the module in the place of what the package gives by that name."""
    package = import_module(f"kilolayer.{path.parent.name}")
    modules = {each.stem for each in path.parent.glob("*.py")}
    assert not modules & set(getattr(package, "_HOMES", {}))


def module_name(path):
    return ".".join(("kilolayer", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


def imported_modules(path, modules):
    """The modules that a file imports, at its top or inside a function; of a package its `__init__`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kilolayer":
            full = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in modules else node.module for name in full)


def test_no_modules_import_each_other_in_a_circle():
    modules = {module_name(path): path for path in FILES}
    graph = {name: set(imported_modules(path, modules)) for name, path in modules.items()}
    assert graph["kilolayer.units.unit"] >= {"kilolayer.units.ops", "kilolayer.units.shortcut"}
    TopologicalSorter(graph).prepare()  # raises a CycleError that names the circle


def of_kernels(path):
    """What a file imports from the kernels: a name of the package, or a dotted path into it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.ImportFrom(module="kilolayer.kernels", names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module="kilolayer", names=names):
                yield from (f"kilolayer.{alias.name}" for alias in names if alias.name == "kernels")
            case ast.ImportFrom(module=str(module)) if module.startswith("kilolayer.kernels."):
                yield module
            case ast.Import(names=names):
                yield from (alias.name for alias in names if alias.name.startswith("kilolayer.kernels"))


def test_other_rooms_import_only_the_names_of_the_kernels_protocol():
    protocol = set(import_module("kilolayer.kernels").__all__)
    found = {path: set(of_kernels(path)) for path in FILES if home(path) != "kernels"}
    used = set().union(*found.values())
    assert {str(path): sorted(names - protocol) for path, names in found.items() if names - protocol} == {}
    assert protocol - used <= {"FusionReport", "unfuse"}, "a name of the protocol that no other room needs"
