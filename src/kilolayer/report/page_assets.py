"""Scripts and styles that stand inside a page, and the policy that lets no other script run there."""

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
    """A file that comes with a package of ours."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


@cache
def plotly_js() -> str:
    """Plotly's script, its licence on top, from its Python package; `InputError` where there is none."""
    with report_extra():
        from plotly.offline import get_plotlyjs
    return str(get_plotlyjs())


def plotly_version() -> str:
    """The version of that script."""
    with report_extra():
        from plotly.offline import get_plotlyjs_version
    return str(get_plotlyjs_version())


def embedded_assets(scripts: Sequence[str], styles: Sequence[str]) -> dict[str, Markup | list[Markup]]:
    """What a template needs for them: `scripts`, `css`, and `policy`, the sources of a script-src.

    They are our own files and Plotly's; a page's data never come this way.
    """
    with report_extra():
        from markupsafe import Markup
    return {
        "scripts": [Markup(script) for script in scripts],  # noqa: S704
        "css": Markup("\n".join(styles)),  # noqa: S704
        "policy": Markup(" ".join(map(_hash, scripts))),  # noqa: S704
    }


def _hash(script: str) -> str:
    """An inline script as a Content-Security-Policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
