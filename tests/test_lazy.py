"""What is imported late is there to be seen: dir(), completion, help(), import *, pickles."""

import pickle
import pydoc
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import kilolayer

PACKAGES = sorted(
    ".".join(path.parent.relative_to(Path(kilolayer.__file__).parent.parent).parts)
    for path in Path(kilolayer.__file__).parent.rglob("__init__.py")
    if "lazy_attributes(" in path.read_text(encoding="utf-8")
)


def test_the_law_sees_what_is_there():
    assert {"kilolayer", "kilolayer.data", "kilolayer.training", "kilolayer.units"} <= set(PACKAGES)


@pytest.mark.parametrize("name", PACKAGES)
def test_dir_shows_the_api_and_all_of_it_is_there(name):
    package = import_module(name)
    assert set(package.__all__) <= set(dir(package))
    assert "lazy_attributes" not in dir(package)
    for each in dir(package):
        getattr(package, each)
    names = {}
    exec(f"from {name} import *", names)  # noqa: S102 - as one does
    assert set(package.__all__) <= set(names)


@pytest.mark.parametrize("name", PACKAGES)
def test_classes_and_functions_are_pickled_by_their_names(name):
    package = import_module(name)
    for each in package.__all__:
        value = getattr(package, each)
        if callable(value) and hasattr(value, "__qualname__"):
            assert pickle.loads(pickle.dumps(value)) == value  # noqa: S301 - our own


def test_help_names_classes_and_functions():
    text = pydoc.plain(pydoc.render_doc(kilolayer))
    assert "class Experiment" in text
    assert "create_model(" in text


def test_to_look_imports_nothing_and_subpackages_are_attributes():
    code = (
        "import sys, kilolayer; names = dir(kilolayer); assert 'torch' not in sys.modules;"
        "assert {'data', 'units', 'create_model'} <= set(names); kilolayer.units.BASIC; kilolayer.data.Data;"
        "assert 'torch' not in sys.modules; kilolayer.errors.InputError; kilolayer.data.load"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'kilolayer' has no attribute 'net'"):
        kilolayer.net  # noqa: B018
