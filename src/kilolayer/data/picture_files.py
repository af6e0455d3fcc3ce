"""Finds image files: files, folders with everything below them, and patterns."""

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
"""The endings of image files, also of formats that we cannot read: such a file is reported, not skipped."""


@dataclass(frozen=True)
class PictureFile:
    """A file that may be an image. `is_named`: the user wrote its name, or a pattern that matches it.

    A file that merely lies in a named folder need not be an image.
    """

    path: str
    is_named: bool

    @property
    def is_picture(self) -> bool:
        """Whether the user expects an image here, so that it is an error if it cannot be read."""
        return self.is_named or self.path.lower().endswith(PICTURE_ENDINGS)


def find_picture_files(words: Sequence[str]) -> list[PictureFile]:
    """The files that the words name, in the order of the words, and within a folder sorted by name.

    A word that is no existing path is a pattern, as in a shell (`photos/*.jpg`, `**` for folders at any
    depth). A file that two words name is listed twice. Raises `InputError`.
    """
    return [file for word in words for path in _paths(word) for file in _files(path)]


def _paths(word: str) -> list[str]:
    if os.path.lexists(word):
        return [word]
    paths = sorted(_expand_pattern(word)) if has_magic(word) else []
    if not paths:
        raise InputError(
            f"{quote(word)}: no {'file matches this pattern' if has_magic(word) else 'such file'}"
        )
    return paths


def _expand_pattern(pattern: str) -> Iterator[str]:
    """The paths that match a pattern; with `**`, for folders at any depth, only files.

    We do not use Python's own `**`: it follows a link to a parent folder forty times.
    """
    parts = pattern.split(os.sep)
    if "**" not in parts:
        yield from glob(pattern)
        return
    at = parts.index("**")
    head, tail = os.sep.join(parts[:at]), os.sep.join(parts[at + 1 :])
    for top in glob(head) if head else [os.sep if pattern.startswith(os.sep) else ""]:
        for folder in folders_below(top):
            fitting = _expand_pattern(os.path.join(escape(folder), tail or "*"))
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
    """A folder and all visible folders below it. A link back to a parent folder is not followed."""
    state = os.stat(folder or os.curdir)
    identity = (state.st_dev, state.st_ino)
    if identity in ancestors:
        return
    yield folder
    for path in _visible(folder):
        if os.path.isdir(path):
            yield from folders_below(path, (*ancestors, identity))


def _visible(folder: str) -> list[str]:
    names = (name for name in os.listdir(folder or os.curdir) if name[0] != "." and name not in SYSTEM_FILES)
    return sorted(os.path.join(folder, name) for name in names)
