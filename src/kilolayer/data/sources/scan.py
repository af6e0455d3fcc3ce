"""Lists a folder and everything below it: pictures, other files, and files that systems leave behind.

A link back to a parent folder is not followed. A file is opened only where its name does not end like a
picture's, and then only for its first bytes.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kilolayer.data.pictures.signatures import SIGNATURE_BYTES, is_picture
from kilolayer.errors import InputError
from kilolayer.system.message_text import error_text, listing, quote

PICTURE_ENDINGS = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif", ".jp2", ".j2k", ".jpx", ".jxl",
})  # fmt: skip
"""The endings of picture files, also of formats that we cannot read: these are reported, not ignored."""
SYSTEM_FILES = frozenset({
    "thumbs.db", "desktop.ini", "__macosx", "@eadir", "__pycache__", "$recycle.bin", "#recycle", "lost+found",
})  # fmt: skip
"""Files and folders that systems leave behind, besides hidden files (.DS_Store, ._x.jpg, .ipynb_checkpoints).
"""

MAX_DEPTH = 100


@dataclass(frozen=True)
class FolderTree:
    """A folder and the folders below it.

    others: files that are not pictures. non_files: pipes, and links that lead nowhere or in a circle.
    inode: device and inode, equal for every link to the same folder.
    """

    path: Path
    folders: tuple[FolderTree, ...]
    pictures: tuple[Path, ...]
    other_files: tuple[Path, ...]
    system_files: tuple[Path, ...]
    non_files: tuple[Path, ...]
    inode: tuple[int, int]

    @cached_property
    def count(self) -> int:
        """The number of pictures at any depth."""
        return len(self.pictures) + sum(folder.count for folder in self.folders)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def nonempty_folders(self) -> tuple[FolderTree, ...]:
        """The subfolders that hold pictures."""
        return tuple(folder for folder in self.folders if folder.count)

    def walk(self) -> Iterator[FolderTree]:
        """This folder and all folders below it."""
        yield self
        for folder in self.folders:
            yield from folder.walk()


def scan_folder(root: Path) -> FolderTree:
    """The tree of a folder. Raises `InputError` where a folder cannot be read."""
    return _scan(root, ())


def notes_on_ignored_files(folder: FolderTree, used: Callable[[Path], bool]) -> tuple[str, ...]:
    """Notes on files that are neither pictures nor `used`, and on files that systems left behind."""
    ignored = [path for subfolder in folder.walk() for path in subfolder.other_files if not used(path)]
    system_files = [path for subfolder in folder.walk() for path in subfolder.system_files]
    return (
        *_count_notes(ignored, "not pictures"),
        *_count_notes(system_files, "left behind by systems"),
    )


def _count_notes(paths: Sequence[Path], kind: str) -> tuple[str, ...]:
    if not paths:
        return ()
    names = Counter(path.suffix or path.name for path in paths)
    endings = listing([f"{quote(name)} {count:,}" for name, count in names.most_common()], 4)
    return (f"ignored, {kind}: {len(paths):,} ({endings})",)


def _scan(path: Path, above: tuple[tuple[int, int], ...]) -> FolderTree:
    try:
        state = os.stat(path)
        with os.scandir(path) as entries:
            kinds = [
                (_entry_kind(entry), Path(entry.path))
                for entry in sorted(entries, key=lambda dir_entry: dir_entry.name)
            ]
    except OSError as error:
        raise InputError(f"{quote(path)}: cannot be read ({error_text(error)})") from None
    number = (state.st_dev, state.st_ino)
    above = (*above, number)
    if len(above) > MAX_DEPTH:
        raise InputError(
            f"{quote(path.name)}: folders more than {MAX_DEPTH} deep; name the folder with the images"
        )

    def of(kind: str) -> tuple[Path, ...]:
        return tuple(entry for entry_kind, entry in kinds if entry_kind == kind)

    circles = tuple(entry for entry in of("folder") if entry.is_symlink() and _inode(entry) in above)
    folders = tuple(_scan(entry, above) for entry in of("folder") if entry not in circles)
    no_files = (*of("neither"), *circles)
    return FolderTree(path, folders, of("picture"), of("other"), of("litter"), no_files, number)


def _inode(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_dev, state.st_ino


def _entry_kind(entry: os.DirEntry[str]) -> str:
    """folder, picture, other, litter; or neither, for what is neither a file nor a folder."""
    if entry.name[0] == "." or entry.name.casefold() in SYSTEM_FILES or entry.name.startswith("~$"):
        return "litter"
    try:
        if entry.is_dir():
            return "folder"
        if not entry.is_file():
            return "neither"
    except OSError as error:
        if error.errno != errno.ELOOP:  # a circular link
            raise
        return "neither"
    has_ending = os.path.splitext(entry.name)[1].casefold() in PICTURE_ENDINGS
    return "picture" if has_ending or _begins_as_picture(entry) else "other"


def _begins_as_picture(entry: os.DirEntry[str]) -> bool:
    if not entry.stat().st_size:  # files of /proc have size 0, and reading some of them never ends
        return False
    with open(entry.path, "rb") as file:
        return is_picture(file.read(SIGNATURE_BYTES))
