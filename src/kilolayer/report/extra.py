"""matplotlib, plotly and jinja2 are an extra: only drawing and rendering need them, and say so."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from kilolayer.errors import InputError
from kilolayer.system.folders import redirect_cache

MISSING = "the report needs matplotlib, plotly and jinja2: pip install 'kilolayer[report]'"


@contextmanager
def report_extra() -> Iterator[None]:
    """Around an optional import: its absence is the user's to mend, not a traceback."""
    redirect_cache("matplotlib")
    try:
        yield
    except ImportError as error:
        raise InputError(MISSING) from error


def check_installed() -> None:
    """Raises `InputError` where the extra is missing: rather before minutes of training than after."""
    with report_extra():
        for name in ("jinja2", "matplotlib", "plotly"):
            import_module(name)
