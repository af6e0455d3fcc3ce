"""Files of text beside pictures that say what the folders may not: labels, or which pictures are held out.

They are not read as such. Where they contradict what is read, that is refused; where they may, it is said.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from kilolayer.data.sources.parquet_columns import LABEL_NAMES, LABEL_TEXT_NAMES
from kilolayer.data.sources.scan import FolderTree
from kilolayer.data.sources.splits import name_roles
from kilolayer.errors import InputError
from kilolayer.system.message_text import listing, quote

TABLES = (".csv", ".tsv")
LISTS = (*TABLES, ".txt", ".lst", ".list", ".json", ".jsonl")
MOST_ROWS = 1_000_000
LABELS = frozenset({*(name for tier in LABEL_NAMES for name in tier), *LABEL_TEXT_NAMES, "dx", "diagnosis"})
_LABEL_LIST = re.compile(r"(?:^|[-_. ])(?:metadata|labels?|annotations?)$", re.IGNORECASE)
_SPLIT_LIST = re.compile(r"split|^(?:train|test|val|valid)(?:list|_list)?\d*$", re.IGNORECASE)


def label_lists(root: FolderTree) -> tuple[Path, ...]:
    """The files above the pictures that may list their labels: by their names, or tables of any name."""
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
    return [path for folder in root.walk() if folder.filled or not folder.count for path in folder.others]


def refuse_other_labels(path: Path, classes: Mapping[str, Sequence[Path]]) -> None:
    """Raises `InputError` where a table lists these pictures with other classes than their folders.

    Folders that differ only in a number are parts of one set, whatever the table calls its columns.
    """
    folders = _folders_by_name(classes)
    rows = [row for row in _rows(path) if any(cell.strip() for cell in row)]
    header, table_rows = (rows[0], rows[1:]) if rows else ([], [])
    lines = [(row, folder) for row in table_rows if (folder := _folder_of(row, folders)) is not None]
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
    """The class folder of each picture by its name, its stem, and either with the folder above it.

    None for a name that stands in several: it says nothing.
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


def _rows(path: Path) -> list[list[str]]:
    """The cells of a table or of lines of JSON, the names of columns first; none where it is no such text."""
    if path.suffix.casefold() == ".jsonl":
        return _json_rows(path)
    if path.suffix.casefold() not in TABLES:
        return []
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            separator = "\t" if path.suffix.casefold() == ".tsv" else ","
            first = file.readline()
            if separator not in first:
                separator = next((candidate for candidate in ";\t" if candidate in first), separator)
            file.seek(0)
            return list(islice(csv.reader(file, delimiter=separator), MOST_ROWS))
    except (OSError, csv.Error):
        return []


def _json_rows(path: Path) -> list[list[str]]:
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            values = [json.loads(line) for line in islice(file, MOST_ROWS) if line.strip()]
    except (OSError, ValueError, RecursionError):
        return []
    lines = [value for value in values if isinstance(value, dict)]
    header = list(lines[0]) if lines else []
    return [header, *([str(line.get(name, "")) for name in header] for line in lines)]


def unread_list_notes(labels: Sequence[Path], splits: Sequence[Path]) -> tuple[str, ...]:
    """That these lists are not read, a line for each kind. splits: where a fifth is drawn."""
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
    path = next((path for path in root.others if path.name.casefold() == "readme.md"), None)
    if path is None:
        return None
    try:
        text = path.read_text("utf-8", errors="replace")
    except OSError:
        return None
    matter = re.match(r"\ufeff?---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    return path if matter and re.search(r"^[\s-]*data_files\s*:", matter.group(1), re.MULTILINE) else None


def card_notes(path: Path | None) -> tuple[str, ...]:
    note = "declares splits by file (data_files), which is not read: the names of files and folders decide"
    return () if path is None else (f"{path.name} {note}; --train SPLIT --test SPLIT choose others",)
