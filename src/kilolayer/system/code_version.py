"""Which code this is: its release, its commit, and a digest of its source files."""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import kilolayer

CHANGED = " with changes"
SOURCE_SUFFIXES = (".py", ".cpp", ".h")


@dataclass(frozen=True)
class CodeVersion:
    """The code that computes.

    commit: the Git commit of the checkout that it lies in; empty for an installed package. It says
        "with changes" where files differ from the commit.
    sha256: over the names and bytes of all of its source files, which also shows a change that is not
        committed.
    """

    release: str
    commit: str
    sha256: str


@cache
def code_version() -> CodeVersion:
    """The version of the code that this process runs.

    >>> len(code_version().sha256)
    64
    """
    root = Path(kilolayer.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.suffix in SOURCE_SUFFIXES):
        for part in (path.relative_to(root).as_posix().encode(), path.read_bytes()):
            digest.update(len(part).to_bytes(8, "little") + part)
    return CodeVersion(kilolayer.__version__, _commit(root), digest.hexdigest())


def _commit(root: Path) -> str:
    """The commit of the checkout whose tracked files these are; empty where there is none."""
    try:
        _git(root, "ls-files", "--error-unmatch", "__init__.py")
        changed = _git(root, "status", "--porcelain", "--", ".")
        return _git(root, "rev-parse", "HEAD") + (CHANGED if changed else "")
    except (OSError, subprocess.SubprocessError):  # no Git, no checkout, or no commit
        return ""


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    process = subprocess.run(command, check=True, capture_output=True, encoding="utf-8", timeout=10)  # noqa: S603
    return process.stdout.strip()
