"""Faults on purpose. Every test here is `slow` and `faults`; every CI run tries a stride of the cases.

    pytest tests/faults                                    every 40th case
    pytest tests/faults --stride 5                         every fifth
    pytest tests/faults --every-fault --counts results/faults.json

A test that goes through cases takes those that are due from `chosen(cases)`, and tells with
`count("R1", tried=…, held=…)` which row of the table it showed, how many cases it tried and how many held.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
from harness import Lab, compiled, outcome

from fault_counts import stride_of

T = TypeVar("T")
HOURS = 4 * 3600


def pytest_itemcollected(item: pytest.Item) -> None:
    """Called for the tests of this folder only."""
    item.add_marker(pytest.mark.faults)
    item.add_marker(pytest.mark.slow)
    item.add_marker(pytest.mark.timeout(HOURS if stride_of(item.config) == 1 else 600))


@pytest.fixture(scope="session")
def chosen(request: pytest.FixtureRequest) -> Callable[[Sequence[T]], list[T]]:
    """Every N-th of some cases, as `--stride N` says; with `--every-fault` all of them."""
    stride = stride_of(request.config)

    def every(cases: Sequence[T]) -> list[T]:
        return list(cases[::stride])

    return every


@pytest.fixture(scope="session")
def takes_long(request: pytest.FixtureRequest) -> None:
    """Leaves a test out where only a few cases are tried."""
    if stride_of(request.config) > 10:
        pytest.skip("takes long; tried with --stride 10 or less")


@pytest.fixture
def count(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Says what was tried for a row of the table and how much of it held; fails unless all of it did."""

    def counted(row: str, *, tried: int, held: int, note: str = "", stride: int | None = None) -> None:
        request.node.user_properties.append(
            ("fault", {"row": row, "tried": tried, "held": held, "note": note, "stride": stride})
        )
        assert tried > 0, "nothing was tried"
        assert held == tried

    return counted


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """faults.c, compiled."""
    try:
        return compiled(tmp_path_factory.mktemp("library"))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"harm at system calls needs Linux and a C compiler: {error}")


@pytest.fixture(scope="session")
def lab(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("said"), library)


@pytest.fixture(scope="session")
def whole(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    """What the run of `harness.OPTIONS` comes to when nothing happens to it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    ended = lab.bring_back(folder)
    assert ended.status == 0, ended.err
    return outcome(folder)
