"""The fixture by which a test runs in every arithmetic that kernels multiply in."""

from __future__ import annotations

import pytest

from kilolayer import kernels
from kilolayer.errors import InputError
from kilolayer.kernels import arithmetic, library


@pytest.fixture(
    params=["fastest", *(pytest.param(name, marks=pytest.mark.slow) for name in arithmetic.PRODUCTS)]
)
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """The arithmetic that the kernels multiply in: this processor's fastest, and each of them."""

    def forget() -> None:
        for cached in (arithmetic.products, arithmetic._unit_library, library.native):
            cached.cache_clear()

    if request.param == "fastest":
        yield
        return
    monkeypatch.setenv("KILOLAYER_PRODUCTS", request.param)
    forget()
    try:
        if why := _refusal():
            pytest.skip(why)
        yield
    finally:
        monkeypatch.undo()
        forget()


def _refusal() -> str | None:
    """Why there are no kernels in that arithmetic; not every processor has each of them."""
    try:
        return kernels.refusal()
    except InputError as error:
        return str(error)
