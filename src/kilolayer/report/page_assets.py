"""Scripts and styles inside a page, and the policy that forbids all other scripts."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from kilolayer.report.extra import report_extra

if TYPE_CHECKING:
    from markupsafe import Markup


def read_asset(name: str, package: str = "kilolayer.report") -> str:
    """The text of a file in one of our packages."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


@cache
def plotly_js() -> str:
    """Plotly's script with its licence, from its Python package; `InputError` if it is not installed."""
    with report_extra():
        from plotly.offline import get_plotlyjs
    return str(get_plotlyjs())


def plotly_version() -> str:
    """The version of Plotly's script."""
    with report_extra():
        from plotly.offline import get_plotlyjs_version
    return str(get_plotlyjs_version())


def embedded_assets(scripts: Sequence[str], styles: Sequence[str]) -> dict[str, Markup | list[Markup]]:
    """The values of a template for its scripts and styles: `scripts`, `css`, and the script-src `policy`.

    Only our own files and Plotly's may be passed here, never the data of a page.
    """
    with report_extra():
        from markupsafe import Markup
    return {
        "scripts": [Markup(script) for script in scripts],  # noqa: S704
        "css": Markup("\n".join(styles)),  # noqa: S704
        "policy": Markup(" ".join(map(_hash, scripts))),  # noqa: S704
    }


def _hash(script: str) -> str:
    """The hash of an inline script for a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
