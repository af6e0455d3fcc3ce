"""The documentation builds without a warning, from this folder alone, and refers to no other host."""

from __future__ import annotations

import pkgutil
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import kilolayer

DOCS = Path(__file__).parents[1] / "docs"
FETCHED = re.compile(
    r"""(?:src|srcset|href|action|data|poster)\s*=\s*["']?\s*(?:https?:)?//[^\s"'>]+""", re.I
)
IMPORTED = re.compile(r"""(?:url\(|@import)\s*["']?\s*(?:https?:)?//[^\s"')]+""", re.I)


def test_every_public_package_has_its_page() -> None:
    packages = [module.name for module in pkgutil.iter_modules(kilolayer.__path__) if module.ispkg]
    public = {name for name in packages if getattr(import_module(f"kilolayer.{name}"), "__all__", ())}
    pages = {page.stem for page in (DOCS / "reference" / "api").glob("*.md")} - {"index", "kilolayer"}
    assert public <= pages
    for name in public:
        assert (
            f".. automodule:: kilolayer.{name}\n" in (DOCS / "reference" / "api" / f"{name}.md").read_text()
        )


@pytest.mark.slow
def test_the_site_builds_and_refers_to_no_other_host(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    pytest.importorskip("furo")
    pytest.importorskip("myst_nb")
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "--keep-going", DOCS, tmp_path / "site"]
    built = subprocess.run(command, capture_output=True, text=True)
    assert (built.returncode, built.stderr) == (0, "")
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 30
    other = [
        (str(path.relative_to(tmp_path)), found)
        for pattern, suffix in ((FETCHED, "html"), (IMPORTED, "html"), (IMPORTED, "css"))
        for path in (tmp_path / "site").rglob(f"*.{suffix}")
        for found in pattern.findall(path.read_text(encoding="utf-8"))
    ]
    assert other == []


def test_a_reference_to_another_host_is_seen() -> None:
    assert FETCHED.findall('<script src="https://cdn.example/x.js">')
    assert FETCHED.findall("<img src=//a.b/c>")
    assert IMPORTED.findall("@import url(https://fonts.example/css)")
    assert not FETCHED.findall('<a href="../index.html#top">')
