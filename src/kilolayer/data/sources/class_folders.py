"""Folders of images: one folder for each class, directly or under each split (`train/`, `val/`, `test/` …).

Text files beside the pictures may list labels or splits. They are not read for labels. Where such a list
contradicts the folders, that is an error; where it may, a note says so.
"""

from __future__ import annotations

import csv
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import chain, combinations
from pathlib import Path

import numpy as np

from kilolayer.data.config import Data
from kilolayer.data.pictures.decoding import EncodedPictures
from kilolayer.data.sources.classes import NamedPictures
from kilolayer.data.sources.parquet_table import LABEL_NAMES, LABEL_TEXT_NAMES
from kilolayer.data.sources.scan import FolderTree, notes_on_ignored_files
from kilolayer.data.sources.splits import SourceLayout, Split, name_roles
from kilolayer.errors import InputError
from kilolayer.system.json_text import parse_json
from kilolayer.system.message_text import error_text, listing, quote

CONTAINERS = ("images", "image", "imgs", "img", "pictures", "photos", "jpegimages", "data")
"""A folder of such a name, alone at its level, is not a class: `val/images/1.jpg` names no class."""
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
ANNOTATIONS = "val_annotations.txt"
UNLABELLED = ("unlabeled", "unlabelled", "unsup", "unsupervised", "nolabel", "nolabels")
FOLDER_ADVICE = "put the pictures of each class into a folder with its name, as in FOLDER/train/CLASS/IMAGE"


def folder_layout(root: FolderTree, data: Data) -> SourceLayout:
    """The splits in this folder. The class names are the folder names, sorted. Raises `InputError`."""
    top = _innermost(root)
    chosen = data.train is not None or data.test is not None or data.validation_split is not None
    folders = _split_folders(top, chosen=chosen)
    lists = label_lists(root)
    splits = tuple(_folder_split(split_folder.name, split_folder, lists) for split_folder in folders) or (
        _folder_split("all", top, lists),
    )
    is_drawn = data.test is None and not any(split.roles - {"train"} for split in splits)
    not_read = (
        *unread_list_notes(lists, split_lists(root) if is_drawn else ()),
        *card_notes(dataset_card(root)),
    )
    read_from = (f"read from {quote(top.path)}",) if top is not root else ()
    unused = _notes_on_unused(top) if folders else ()
    name = root.path.resolve().name or "images"
    ignored = notes_on_ignored_files(root, lambda path: path.name == ANNOTATIONS)
    notes = (*read_from, *ignored, *unused, *not_read)
    return SourceLayout(name, quote(root.path), splits, notes, top.pictures if folders else ())


def _innermost(at: FolderTree, *, split: bool = False) -> FolderTree:
    """The innermost folder of a chain of single folders, none of which is a class: `dataset/dataset`."""
    while len(at.nonempty_folders) == 1 and not at.pictures and _annotations(at) is None:
        (inner,) = at.nonempty_folders
        no_class = inner.name.casefold() in CONTAINERS
        if split:  # seg_train/seg_train, seg_test/test
            no_class |= inner.name == at.name or bool(
                name_roles(inner.name) and name_roles(inner.name) == name_roles(at.name)
            )
        else:
            no_class = (no_class or bool(inner.nonempty_folders)) and not name_roles(inner.name)
        if not no_class:
            break
        at = inner
    return at


def _split_folders(top: FolderTree, *, chosen: bool) -> tuple[FolderTree, ...]:
    """The folders that are splits, and those beside them; empty where the folders are classes.

    A folder `train` with pictures, beside other folders with pictures, is a class (of locomotives).
    """
    role_folders = [folder for folder in top.folders if name_roles(folder.name)]
    other_folders = [folder for folder in top.nonempty_folders if not name_roles(folder.name)]
    deep = any(
        folder.nonempty_folders for folder in (role_folders + other_folders if chosen else role_folders)
    )
    if not deep and (other_folders or not role_folders):
        _refuse_held_out(role_folders)
        return ()
    trained = [folder.name for folder in role_folders if "train" in name_roles(folder.name)]
    if other_folders and trained and len(trained) == len(role_folders) and not chosen:
        raise InputError(
            f"{quote(top.path)}: {quote(trained[0])} could be a split, or a class beside "
            f"{listing([quote(folder.name) for folder in other_folders], 3)}; "
            f"--train {shlex.quote(trained[0])} takes it as the split"
        )
    return tuple(folder for folder in top.folders if folder.count or name_roles(folder.name))


def _refuse_held_out(folders: Sequence[FolderTree]) -> None:
    """Refuses pictures in `test` beside class folders: as a class they would be trained on."""
    held_out = [
        quote(folder.path) for folder in folders if folder.count and name_roles(folder.name) - {"train"}
    ]
    if held_out:
        raise InputError(
            f"{held_out[0]} has the name of a split and lies among class folders; if it is a class, "
            f"rename it; if it is not, move it elsewhere ({FOLDER_ADVICE})"
        )


def _folder_split(name: str, at: FolderTree, lists: Sequence[Path]) -> Split:
    top, where = _innermost(at, split=name != "all"), quote(at.path)
    classes = cache(lambda: _class_pictures(top))

    def no_label_reason() -> str:
        pictures = classes()
        return pictures if isinstance(pictures, str) else ""

    def read() -> NamedPictures:
        pictures = classes()
        if isinstance(pictures, str):
            raise InputError(f"{where}: {pictures}; {FOLDER_ADVICE}")
        files = [path for paths in pictures.values() for path in paths]
        labels = np.repeat(
            np.arange(len(pictures), dtype=np.int64), [len(paths) for paths in pictures.values()]
        )
        encoded = EncodedPictures(labels, files.__getitem__, lambda i: quote(files[i]))
        return NamedPictures(encoded, tuple(pictures), where, files=files)

    annotated = _annotations(top) is not None

    def check() -> None:
        pictures = classes()
        if annotated or isinstance(pictures, str):
            return
        _refuse_two_readings(top)
        _refuse_unlabelled(top)
        for path in lists:
            refuse_other_labels(path, pictures)

    within = (
        []
        if annotated
        else [
            path
            for class_folder in top.folders
            for folder in class_folder.walk()
            for path in folder.non_files
        ]
    )
    return Split(
        name,
        name_roles(name),
        where,
        sum(class_folder.count for class_folder in top.folders) or top.count,
        no_label_reason,
        (read,),
        non_files=tuple(map(quote, within)),
        broken_links=tuple(quote(path) for path in top.non_files if path.is_symlink()),
        empty_folders=()
        if annotated
        else tuple(quote(class_folder.path) for class_folder in top.folders if not class_folder.count),
        unused_pictures=() if annotated or not top.folders else top.pictures,
        advice=FOLDER_ADVICE,
        notes=() if annotated else (*_notes_on_unused(top), *_notes_on_nested(top)),
        check=check,
        inodes=tuple(
            (class_folder.inode, quote(class_folder.path))
            for class_folder in at.walk()
            if class_folder.pictures
        ),
    )


def _refuse_two_readings(top: FolderTree) -> None:
    """Raises `InputError` where class folders hold equal subfolders, which may be the classes."""
    shared = Counter(inner.name for folder in top.folders for inner in folder.nonempty_folders)
    holders: dict[tuple[str, str], str] = {}
    for folder in top.folders:
        for pair in combinations(
            [inner.name for inner in folder.nonempty_folders if shared[inner.name] > 1], 2
        ):
            first = holders.setdefault(pair, folder.name)
            if first != folder.name:
                _refuse_pair(top, (first, folder.name), pair)


def _refuse_pair(top: FolderTree, outer: tuple[str, str], inner: tuple[str, str]) -> None:
    raise InputError(
        f"{quote(top.path)}: {quote(outer[0])} and {quote(outer[1])} both hold folders "
        f"{quote(inner[0])} and {quote(inner[1])}, so the outer or the "
        "inner folders could be the classes; "
        f"if the inner, name one folder, as --data {shlex.quote(str(top.path / outer[0]))}, choose with "
        "--train SPLIT --test SPLIT, or rename them to train and test; if the outer, put the pictures "
        "of each class right into its folder"
    )


def _refuse_unlabelled(top: FolderTree) -> None:
    """Raises `InputError` for a folder of unlabelled pictures beside class folders."""
    unlabelled = [
        folder
        for folder in top.nonempty_folders
        if re.sub(r"[\W\d_]", "", folder.name).casefold() in UNLABELLED
    ]
    if unlabelled and len(top.nonempty_folders) > 1:
        raise InputError(
            f"{quote(unlabelled[0].path)} has the name of a folder of unlabelled pictures, and lies "
            "beside folders of classes; move it elsewhere, or rename it if it is a class"
        )


def _class_pictures(top: FolderTree) -> dict[str, list[Path]] | str:
    """The pictures of each class at any depth, or the reason in words why there are none."""
    annotations = _annotations(top)
    if annotations is not None:
        return _pictures_by_annotations(annotations, top)
    if not top.folders:
        archives = [path.name for path in top.other_files if path.suffix.casefold() in ARCHIVES]
        packed = f" (unpack {listing(archives, 3)} first)" if archives else ""
        return (
            f"{top.count:,} pictures lie outside class folders"
            if top.pictures
            else f"has no class folders{packed}"
        )
    split = _split_within(top)
    if split is not None:
        return f"{quote(split.path)} has the name of a split and lies among class folders"
    classes: dict[str, list[Path]] = {}
    for class_folder in top.folders:
        files = [path for folder in class_folder.walk() for path in folder.pictures]
        classes[class_folder.name] = files
    return classes


def _annotations(at: FolderTree) -> Path | None:
    return next((path for path in at.other_files if path.name == ANNOTATIONS), None)


def _pictures_by_annotations(path: Path, top: FolderTree) -> dict[str, list[Path]]:
    """Tiny-ImageNet's validation pictures: each line holds a file name and its class, separated by a tab."""
    try:
        text = "".join(_short_lines(path, "utf-8", "strict"))
        lines = [line.split("\t", 2) for line in text.splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{quote(path)}: cannot be read ({error_text(error)})") from None
    files = {file.name: file for folder in top.walk() for file in folder.pictures}
    class_of_file = {line[0]: line[1] for line in lines if len(line) > 1}
    wrong = sorted(files.keys() ^ class_of_file.keys())
    if wrong or len(class_of_file) != len(lines):
        raise InputError(
            f"{quote(path)}: its {len(lines):,} lines and the {len(files):,} pictures beside it do not agree"
            f"{f', as on {quote(wrong[0])}' if wrong else ''}"
        )
    classes: dict[str, list[Path]] = {}
    for name in sorted(files):
        classes.setdefault(class_of_file[name], []).append(files[name])
    return dict(sorted(classes.items()))


def _split_within(top: FolderTree) -> FolderTree | None:
    """A split inside a class folder: CLASS/train/IMAGE and CLASS/test/IMAGE."""
    deep = [
        class_folder
        for class_folder in top.folders
        if class_folder.nonempty_folders and name_roles(class_folder.name)
    ]
    within = [
        inner for class_folder in top.folders for folder in class_folder.folders for inner in folder.walk()
    ]
    held_out = [
        class_folder
        for class_folder in within
        if class_folder.count and name_roles(class_folder.name) - {"train"}
    ]
    return next(iter((*deep, *held_out)), None)


def _notes_on_unused(top: FolderTree) -> tuple[str, ...]:
    if not top.pictures or not top.folders:
        return ()
    return (f"{len(top.pictures):,} pictures beside the folders of {quote(top.path)} are not used",)


def _notes_on_nested(top: FolderTree) -> tuple[str, ...]:
    """A note on pictures in folders within class folders."""
    within = [
        (class_folder, inner) for class_folder in top.folders for inner in class_folder.folders if inner.count
    ]
    if not within:
        return ()
    (first, inner), count = within[0], sum(inner.count for _, inner in within)
    return (
        f"{count:,} images in folders within class folders: those of {quote(inner.path)} are {first.name!r}",
    )


TABLES = (".csv", ".tsv")
LISTS = (*TABLES, ".txt", ".lst", ".list", ".json", ".jsonl")
MOST_ROWS = 1_000_000
MOST_LIST, MOST_LINE, MOST_CARD = 100_000_000, 1_000_000, 1_000_000
LABELS = frozenset({*(name for tier in LABEL_NAMES for name in tier), *LABEL_TEXT_NAMES, "dx", "diagnosis"})
_LABEL_LIST = re.compile(r"(?:^|[-_. ])(?:metadata|labels?|annotations?)$", re.IGNORECASE)
_SPLIT_LIST = re.compile(r"split|^(?:train|test|val|valid)(?:list|_list)?\d*$", re.IGNORECASE)


def label_lists(root: FolderTree) -> tuple[Path, ...]:
    """The files above the pictures that may list their labels: by their names, or any table."""
    files = [path for path in _files_above_pictures(root) if not _is_split_list(path)]
    return tuple(
        path
        for path in files
        if path.suffix.casefold() in TABLES
        or (path.suffix.casefold() in LISTS and _LABEL_LIST.search(path.stem))
    )


def split_lists(root: FolderTree) -> tuple[Path, ...]:
    """The files above the pictures whose names say that they list splits."""
    return tuple(path for path in _files_above_pictures(root) if _is_split_list(path))


def _is_split_list(path: Path) -> bool:
    by_name = bool(_SPLIT_LIST.search(path.stem)) or bool(name_roles(path.stem))
    return path.suffix.casefold() in LISTS and by_name


def _files_above_pictures(root: FolderTree) -> list[Path]:
    """The files of folders that hold folders of pictures, or no pictures at all, as `meta/`."""
    return [
        path
        for folder in root.walk()
        if folder.nonempty_folders or not folder.count
        for path in folder.other_files
    ]


def refuse_other_labels(path: Path, classes: Mapping[str, Sequence[Path]]) -> None:
    """Raises `InputError` where a table gives these pictures other classes than their folders do.

    Folders that differ only in a number are parts of one set, whatever the table calls its columns.
    """
    folders = _folders_by_name(classes)
    rows = (row for row in _rows(path) if any(cell.strip() for cell in row))
    header = next(rows, [])
    lines = [(row, folder) for row in rows if (folder := _folder_of(row, folders)) is not None]
    parts = {re.sub(r"\d+", "", name) for name in classes}
    label_columns = [column for column, name in enumerate(header) if name.strip().casefold() in LABELS]
    agrees = any(_column_agrees(column, lines) for column in range(len(header)))
    if len(lines) > 1 and not agrees and (label_columns or (len(parts) == 1 and len(classes) > 1)):
        disagreement = (
            f"its column {header[label_columns[0]].strip()!r} does not agree"
            if label_columns
            else "no column agrees"
        )
        raise InputError(
            f"{quote(path)}: lists {len(lines):,} of these pictures, and {disagreement} with their folders "
            f"{listing(list(map(quote, classes)), 3)}; put the pictures of each class into a folder with its "
            "name, or move the list elsewhere if the folders are the classes"
        )


def _column_agrees(column: int, lines: Sequence[tuple[list[str], str]]) -> bool:
    """Whether this column has one value for each folder, and one folder for each value."""
    pairs = {(row[column].strip(), folder) for row, folder in lines if column < len(row)}
    return len(pairs) == len({value for value, _ in pairs}) == len({folder for _, folder in pairs})


def _folders_by_name(classes: Mapping[str, Sequence[Path]]) -> dict[str, str | None]:
    """The class folder of each picture by its name, its stem, and both with the parent folder in front.

    None for a name in several folders: it decides nothing.
    """
    folders: dict[str, str | None] = {}
    for folder, path in ((folder, path) for folder, paths in classes.items() for path in paths):
        stems = () if path.stem.isdigit() else (path.stem,)
        for name in {path.name, *stems, f"{path.parent.name}/{path.name}", f"{path.parent.name}/{path.stem}"}:
            folders[name] = folder if folders.get(name, folder) == folder else None
    return folders


def _folder_of(row: Sequence[str], folders: Mapping[str, str | None]) -> str | None:
    for cell in row:
        pieces = cell.strip().replace("\\", "/").split("/")
        hit = folders.get("/".join(pieces[-2:])) or folders.get(pieces[-1])
        if hit is not None:
            return hit
    return None


def _rows(path: Path) -> Iterator[list[str]]:
    """The rows of a table or of lines of JSON, with the column names first; empty for any other text."""
    if path.suffix.casefold() == ".jsonl":
        yield from _json_rows(path)
    elif path.suffix.casefold() in TABLES:
        separator = "\t" if path.suffix.casefold() == ".tsv" else ","
        with suppress(OSError, csv.Error):
            lines = _short_lines(path)
            first = next(lines, "")
            if separator not in first:
                separator = next((candidate for candidate in ";\t" if candidate in first), separator)
            yield from csv.reader(chain([first], lines), delimiter=separator)


def _json_rows(path: Path) -> Iterator[list[str]]:
    header: list[str] | None = None
    with suppress(OSError, InputError):
        for line in _short_lines(path):
            value = parse_json(line) if line.strip() else None
            if isinstance(value, dict):
                if header is None:
                    header = list(value)
                    yield header
                yield [str(value.get(name, "")) for name in header]


def _short_lines(path: Path, encoding: str = "utf-8-sig", errors: str = "replace") -> Iterator[str]:
    """The first lines of a text, up to `MOST_ROWS`, to `MOST_LIST` bytes, and to one that never ends."""
    total = 0
    with path.open(encoding=encoding, errors=errors, newline="") as file:
        for _ in range(MOST_ROWS):
            line = file.readline(MOST_LINE)
            total += len(line)
            if not line or len(line) == MOST_LINE or total > MOST_LIST:
                return
            yield line


def unread_list_notes(labels: Sequence[Path], splits: Sequence[Path]) -> tuple[str, ...]:
    """Notes that these lists are not read, one line for each kind. splits: given where a fifth is drawn."""
    sentences = (
        "not read: {}: the folders' names are the classes",
        "not read: {}: splits are folders (train/, test/), else a random fifth is the test set",
    )
    kinds = zip(sentences, (labels, splits), strict=True)
    return tuple(
        text.format(listing([quote(path.name) for path in files], 3)) for text, files in kinds if files
    )


def dataset_card(root: FolderTree) -> Path | None:
    """The README.md whose front matter declares splits by file."""
    path = next((path for path in root.other_files if path.name.casefold() == "readme.md"), None)
    if path is None:
        return None
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(MOST_CARD)
    except OSError as error:
        raise InputError(f"{quote(path)}: cannot be read ({error_text(error)})") from None
    matter = re.match(r"\ufeff?---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    return path if matter and re.search(r"^[ \t-]*data_files[ \t]*:", matter.group(1), re.MULTILINE) else None


def card_notes(path: Path | None) -> tuple[str, ...]:
    note = "declares splits by file (data_files), which we do not read: the names of files and folders decide"
    return () if path is None else (f"{path.name} {note}; --train SPLIT --test SPLIT choose others",)
