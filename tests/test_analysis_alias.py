"""`kilolayer.analysis` is gone; whoever still imports it is told the new name."""

from __future__ import annotations

import importlib
import sys

import pytest

import kilolayer.analysis
from kilolayer.analysis import _OWN, _PLACES
from kilolayer.measure.gradient import measure_gradient
from kilolayer.statistics import compare_with_paper

OLD = [
    (module, pair.split("=")[0])
    for module, _, *pairs in (line.split() for line in _PLACES.strip().splitlines())
    for pair in pairs
]


@pytest.mark.parametrize(("module", "name"), OLD, ids=[".".join(pair) for pair in OLD])
def test_every_old_name_leads_to_a_new_one(module: str, name: str) -> None:
    old = importlib.import_module(f"kilolayer.analysis.{module}")
    with pytest.warns(DeprecationWarning, match=rf"kilolayer\.analysis\.{module}\.{name} is now kilolayer\."):
        assert getattr(old, name) is not None


@pytest.mark.parametrize("pair", _OWN.split())
def test_the_package_s_own_names_too(pair: str) -> None:
    with pytest.warns(DeprecationWarning, match="is now kilolayer.statistics."):
        assert getattr(kilolayer.analysis, pair.split("=")[0]) is not None


def test_an_import_statement_works_and_names_the_new_place() -> None:
    with pytest.warns(DeprecationWarning, match="is now kilolayer.measure.gradient.measure_gradient"):
        from kilolayer.analysis.gradient import gradient
    with pytest.warns(DeprecationWarning, match="is now kilolayer.statistics.compare_with_paper"):
        from kilolayer.analysis import compare
    assert gradient is measure_gradient
    assert compare is compare_with_paper


@pytest.mark.parametrize(
    "path",
    [
        *("ensemble.add", "ensemble.times"),
        *("order.model_from", "order.forward_is", "path_gradients.predicted_lengths"),
        *("statistics.errors", "statistics.LEAST_RUNS"),
        *("statistics.CHANCE", "statistics.Values", "statistics.Word", "gradient.WHOLE", "jacobian.LOST"),
        *("shortcut_theory.KNOWN", "path_gradients.LONGEST"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_functions_and_constants_are_there(path: str) -> None:
    module, name = path.split(".")
    assert getattr(importlib.import_module(f"kilolayer.analysis.{module}"), name) is not None


def test_dir_shows_the_old_modules_and_names_only() -> None:
    assert {"gradient", "compare", "verdict"} <= set(dir(kilolayer.analysis))
    assert not {"Any", "Callable", "ModuleType", "import_module", "sys", "warnings"} & set(
        dir(kilolayer.analysis)
    )


def test_the_old_inference_package_names_its_successors() -> None:
    with pytest.raises(AttributeError, match=r"kilolayer\.kernels\.fold.*kilolayer\.weights\.onnx"):
        _ = kilolayer.inference  # type: ignore[attr-defined]


def test_a_name_that_never_was_is_an_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = sys.modules["kilolayer.analysis.gradient"].nothing  # type: ignore[attr-defined]
