"""From words on the command line to picture files: files, folders with all below them, and patterns."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import escape, glob, has_magic

from kilolayer.data.sources.scan import SYSTEM_FILES
from kilolayer.errors import InputError
from kilolayer.system.message_text import quote

PICTURE_ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pbm", ".pgm",
    ".ppm", ".pnm", ".heic", ".heif", ".avif", ".jp2", ".jxl",
)  # fmt: skip
"""How pictures are called, those too that cannot be read here: what is called so is not passed over."""


@dataclass(frozen=True)
class PictureFile:
    """A file that may be a picture. `named`: the user wrote its name, or a pattern that it fits.

    A file that is only in a named folder may well be no picture.
    """

    path: str
    is_named: bool

    @property
    def is_picture(self) -> bool:
        """Whether the user means it to be a picture, so that it is a fault if it cannot be read."""
        return self.is_named or self.path.lower().endswith(PICTURE_ENDINGS)


def find_picture_files(words: Sequence[str]) -> list[PictureFile]:
    """The files that the words mean, in the order of the words, in a folder by name.

    A pattern (`photos/*.jpg`, `**` for folders at any depth) means what a shell would make of it, where no
    file has that very name. A file that two words mean is there twice. Raises `InputError`.
    """
    return [file for word in words for path in _paths(word) for file in _files(path)]


def _paths(word: str) -> list[str]:
    if os.path.lexists(word):
        return [word]
    paths = sorted(_expanded(word)) if has_magic(word) else []
    if not paths:
        raise InputError(f"{quote(word)}: no {'file fits this pattern' if has_magic(word) else 'such file'}")
    return paths


def _expanded(pattern: str) -> Iterator[str]:
    """What fits a pattern; where it has a `**`, for folders at any depth, only files.

    Python's own `**` follows a link to a folder above forty times.
    """
    parts = pattern.split(os.sep)
    if "**" not in parts:
        yield from glob(pattern)
        return
    at = parts.index("**")
    head, tail = os.sep.join(parts[:at]), os.sep.join(parts[at + 1 :])
    for top in glob(head) if head else [os.sep if pattern.startswith(os.sep) else ""]:
        for folder in folders_below(top):
            fitting = _expanded(os.path.join(escape(folder), tail or "*"))
            yield from (path for path in fitting if not os.path.isdir(path))


def _files(path: str) -> Iterator[PictureFile]:
    if os.path.isdir(path):
        files = [PictureFile(file, is_named=False) for file in _below(path)]
        if not files:
            raise InputError(f"{quote(path)}: a folder without any file")
        yield from files
    else:
        yield PictureFile(path, is_named=True)


def _below(folder: str) -> list[str]:
    paths = (path for within in folders_below(folder) for path in _visible(within))
    return sorted(path for path in paths if not os.path.isdir(path))


def folders_below(folder: str, ancestors: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """A folder and all visible ones below it; a link back to a folder above is not followed."""
    state = os.stat(folder or os.curdir)
    place = (state.st_dev, state.st_ino)
    if place in ancestors:
        return
    yield folder
    for path in _visible(folder):
        if os.path.isdir(path):
            yield from folders_below(path, (*ancestors, place))


def _visible(folder: str) -> list[str]:
    names = (name for name in os.listdir(folder or os.curdir) if name[0] != "." and name not in SYSTEM_FILES)
    return sorted(os.path.join(folder, name) for name in names)
