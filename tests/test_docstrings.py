"""The examples in docstrings run, and everything that a package exports has a docstring."""

import doctest
import inspect
from importlib import import_module
from pathlib import Path

import pytest

import kilolayer

SOURCE = Path(kilolayer.__file__).parent
PACKAGES = (
    "units",
    "networks",
    "theory",
    "measure",
    "training",
    "data",
    "weights",
    "papers",
    "runs",
    "statistics",
)


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


WITH_EXAMPLES = sorted(
    module_name(path) for path in SOURCE.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8")
)


def test_there_are_examples():
    assert {"kilolayer.units.unit", "kilolayer.networks.description"} <= set(WITH_EXAMPLES)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = doctest.testmod(import_module(name))
    assert results.failed == 0
    assert results.attempted > 0
    assert not list(tmp_path.iterdir()), "an example leaves files behind"


def exported():
    for package in PACKAGES:
        module = import_module(f"kilolayer.{package}")
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                yield pytest.param(value, id=f"{package}.{name}")


@pytest.mark.parametrize("value", list(exported()))
def test_what_a_package_exports_has_a_docstring(value):
    text = value.__doc__ or ""
    # A dataclass without a docstring gets its signature as one.
    assert text.strip()
    assert not text.startswith(f"{value.__name__}(")
