"""What lies in a folder of class folders: nothing is opened, and no link is followed in a circle."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from kilolayer.data.wording import brief, quoted
from kilolayer.errors import InputError

TEST = ("test", "validation", "valid", "val")
LITTER = ("Thumbs.db", "desktop.ini")  # what Windows leaves behind; hidden files are passed over as well

Classes = dict[str, list[Path]]


@dataclass(frozen=True)
class Scan:
    """The files of every class, and what stands in the way.

    no_files: what lies in class folders and is no file: folders, pipes, links to nowhere or in a circle.
    astray: links beside the class folders that lead nowhere, so that a class may be missing.
    """

    classes: Classes
    no_files: list[Path] = field(default_factory=list)
    astray: list[Path] = field(default_factory=list)
    root: Path = Path()


def parts(root: Path) -> tuple[Path, Path | None]:
    """Where the training and the test images lie. Raises `InputError` where only the latter are there."""
    test = next((root / name for name in TEST if os.path.isdir(root / name)), None)
    if os.path.isdir(root / "train"):
        return root / "train", test
    if test and {path.name for path in _visible(root) if os.path.isdir(path)} <= set(TEST):
        raise InputError(f"{quoted(root)}: has {test.name}/ but no train/")
    return root, None


def scan(root: Path) -> Scan:
    """The class folders in `root` and their entries. Raises `InputError` where there are none."""
    entries = _visible(root)
    folders = [path for path in entries if os.path.isdir(path)]
    if not folders:
        raise InputError(
            f"{quoted(root)}: has no class folders; expected: FOLDER/train/CLASS/IMAGE or FOLDER/CLASS/IMAGE"
        )
    inside = {path.name: _visible(path) for path in folders}
    return Scan(
        {name: [path for path in paths if os.path.isfile(path)] for name, paths in inside.items()},
        no_files=[path for paths in inside.values() for path in paths if not os.path.isfile(path)],
        astray=[path for path in entries if path.is_symlink() and not os.path.exists(path)],
        root=root,
    )


def _visible(root: Path) -> list[Path]:
    try:
        return sorted(path for path in root.iterdir() if path.name[0] != "." and path.name not in LITTER)
    except OSError as error:
        raise InputError(f"{quoted(root)}: cannot be read ({brief(error)})") from None
