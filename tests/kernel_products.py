"""The fixture by which a test runs in every arithmetic that kernels multiply in."""

from __future__ import annotations

import pytest

from kilolayer import kernels
from kilolayer.errors import InputError
from kilolayer.kernels import compute_dtype, native_library


@pytest.fixture(
    params=["fastest", *(pytest.param(name, marks=pytest.mark.slow) for name in compute_dtype.MUL_DTYPES)]
)
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """The arithmetic that the kernels multiply in: this processor's fastest, and each of them."""

    def forget() -> None:
        for cached in (
            compute_dtype.mul_dtype,
            compute_dtype._load_unit_library,
            native_library.load_native_library,
        ):
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
        return kernels.unavailable_reason()
    except InputError as error:
        return str(error)
