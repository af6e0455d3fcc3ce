"""The optional packages matplotlib, plotly and jinja2, which only drawing and rendering need."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from kilolayer.errors import InputError
from kilolayer.system.folders import redirect_cache

MISSING = "the report needs matplotlib, plotly and jinja2: pip install 'kilolayer[report]'"


@contextmanager
def report_extra() -> Iterator[None]:
    """A context for optional imports: a missing package becomes an `InputError` that names the extra."""
    redirect_cache("matplotlib")
    try:
        yield
    except ImportError as error:
        raise InputError(MISSING) from error


def check_installed() -> None:
    """Raise `InputError` if the extra is missing. Commands call this before minutes of training."""
    with report_extra():
        for name in ("jinja2", "matplotlib", "plotly"):
            import_module(name)
