"""Merges the class names of several sources into one list. A label follows its name, never its number."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kilolayer.data.pictures.decoding import EncodedPictures
from kilolayer.errors import InputError
from kilolayer.system.message_text import is_text, listing, quote


@dataclass(frozen=True)
class NamedPictures:
    """Pictures whose labels index the class names of their own file or folder.

    location: the file or folder in words. naming: how the names are given: as a list in order, as text beside
        each picture (the name of a folder, a string), or only as numbers. column: the name of the label
        column of a table.
    files: the paths of the pictures, where they are files. number_names: the numbers with the names in a text
        column.
    """

    pictures: EncodedPictures
    names: tuple[str, ...]
    location: str
    naming: Literal["list", "text", "numbers"] = "text"
    column: str = ""
    files: Sequence[Path] = ()
    number_names: Sequence[tuple[int, str]] = ()


def nfc(name: str) -> str:
    """The name in Unicode's composed form (NFC). macOS writes é as two characters, other systems as one."""
    return unicodedata.normalize("NFC", name)


def merge_class_names(lots: Sequence[NamedPictures]) -> tuple[str, ...]:
    """The classes of all lots together (see `union_of_names`).

    Raises `InputError` for a name that cannot be printed or occurs twice in one list, for names that differ
    only in case or in surrounding blanks, and for files with names beside files with numbers only.
    """
    for lot in lots:
        check_names(lot)
        _check_labels(lot)
    check_names_agree(lots)
    return union_of_names(lots)


def check_names_agree(lots: Sequence[NamedPictures]) -> None:
    """Raises `InputError` where the names of different files cannot be matched."""
    _check_numbers(lots)
    _check_columns(lots)
    _check_number_names(lots)
    _check_distinct(union_of_names(lots))


def union_of_names(lots: Sequence[NamedPictures]) -> tuple[str, ...]:
    """The first list of names in its order, then the names that others add; text and numbers are sorted."""
    lists = [lot.names for lot in lots if lot.naming == "list"]
    text = sorted({name for lot in lots if lot.naming == "text" for name in map(nfc, lot.names)})
    numbers = max((lot.names for lot in lots if lot.naming == "numbers"), key=len, default=())
    return tuple(dict.fromkeys(nfc(name) for names in (*lists, text, numbers) for name in names))


def join_pictures(lots: Sequence[NamedPictures], classes: tuple[str, ...]) -> EncodedPictures:
    """The pictures of all lots in one sequence, labelled by their indices in `classes`."""
    class_index = {name: number for number, name in enumerate(classes)}
    tables = [np.array([class_index[nfc(name)] for name in lot.names], np.int64) for lot in lots]
    labels = [table[lot.pictures.labels] for table, lot in zip(tables, lots, strict=True)]
    starts = np.cumsum([0, *(len(part) for part in labels)])

    def at(i: int) -> tuple[EncodedPictures, int]:
        number = int(np.searchsorted(starts, i, "right")) - 1
        return lots[number].pictures, i - int(starts[number])

    def raw(i: int) -> object:
        pictures, row = at(i)
        return pictures.encoded(row)

    def where(i: int) -> str:
        pictures, row = at(i)
        return pictures.locate(row)

    empty: NDArray[np.int64] = np.empty(0, np.int64)
    return EncodedPictures(
        np.concatenate([empty, *labels]),
        raw,  # type: ignore[arg-type]
        where,
        contents=_joined_contents([lot.pictures for lot in lots]),
    )


def _joined_contents(parts: Sequence[EncodedPictures]) -> NDArray[np.int64] | None:
    """The numbers of the contents, of other ranges for each part; None where all pictures differ."""
    if all(part.contents is None for part in parts):
        return None
    numbers, start = [np.empty(0, np.int64)], 0
    for part in parts:
        contents = np.arange(len(part)) if part.contents is None else part.contents
        numbers.append(contents + (start - int(contents.min(initial=0))))
        start = 1 + int(numbers[-1].max(initial=start))
    return np.concatenate(numbers)


def name_notes(lots: Sequence[NamedPictures]) -> tuple[str, ...]:
    """Notes on the names: other class numbers, or other Unicode forms."""
    lists = [(lot.location, tuple(map(nfc, lot.names))) for lot in lots if lot.naming == "list"]
    reordered = [where for where, names in lists if names != lists[0][1]]
    decomposed = sorted({name for lot in lots for name in lot.names if name != nfc(name)})
    return (
        *([f"other class numbers in {listing(reordered, 3)}: labels follow the names"] if reordered else []),
        *(
            [f"accents are read as one letter with the one before: {listing(decomposed, 3)}"]
            if decomposed
            else []
        ),
    )


def check_names(lot: NamedPictures) -> None:
    """Raises `InputError` for names that cannot be printed, or that occur twice in one list."""
    counts = Counter(map(nfc, lot.names))
    duplicates = {name for name, count in counts.items() if count > 1}
    unfit = [quote(name) for name in counts if name in duplicates or not is_text(name) or not name.strip()]
    if unfit:
        raise InputError(
            f"{lot.location}: {len(unfit)} class names are unprintable, empty or duplicated: {listing(unfit)}"
        )


def labels_out_of_range(lot: NamedPictures) -> NDArray[np.int64]:
    """The indices of pictures whose labels are not indices of the lot's names."""
    labels = lot.pictures.labels
    return np.flatnonzero((labels < 0) | (labels >= len(lot.names)))


def drop_out_of_range(lot: NamedPictures) -> NamedPictures:
    """The lot without the pictures whose labels are out of range."""
    inside = np.setdiff1d(np.arange(len(lot.pictures)), labels_out_of_range(lot))
    return replace(lot, pictures=lot.pictures.take(inside))


def label_error(lot: NamedPictures, i: int) -> str:
    """What is wrong with the label of picture i, in words."""
    allowed = f"the classes 0 to {len(lot.names) - 1}" if lot.names else "any class"
    return f"{lot.pictures.locate(i)}: label {lot.pictures.labels[i]} is outside {allowed}"


def _check_labels(lot: NamedPictures) -> None:
    wrong = labels_out_of_range(lot).tolist()
    if wrong:
        more = f" ({len(wrong):,} such labels)" if len(wrong) > 1 else ""
        raise InputError(f"{label_error(lot, wrong[0])}{more}")


def _check_numbers(lots: Sequence[NamedPictures]) -> None:
    named_lots = [lot for lot in lots if lot.naming != "numbers" and lot.names]
    numbered_lots = [lot for lot in lots if lot.naming == "numbers" and len(lot.pictures)]
    plain = all(name == str(number) for lot in named_lots for number, name in enumerate(lot.names))
    if named_lots and numbered_lots and not plain:
        raise InputError(
            f"{named_lots[0].location} names its classes "
            f"({listing([quote(n) for n in named_lots[0].names], 3)}), {numbered_lots[0].location} has only "
            "numbers, which could mean other classes; write the names into both"
        )


def _check_columns(lots: Sequence[NamedPictures]) -> None:
    columns = {lot.column: lot.location for lot in lots if lot.naming == "numbers" and len(lot.pictures)}
    if len(columns) > 1:
        columns_text = " and ".join(f"{name!r} of {where}" for name, where in columns.items())
        raise InputError(
            f"data: labels are numbers in column {columns_text}, which could mean different classes; "
            "choose a column that all files have, with --label-column NAME"
        )


def _check_number_names(lots: Sequence[NamedPictures]) -> None:
    """Raises `InputError` where a number has two names beside it, or a name two numbers."""
    pairs = {pair: lot.location for lot in reversed(lots) for pair in lot.number_names}
    first_pairs: dict[int | str, tuple[tuple[int, str], str]] = {}
    for (number, name), location in sorted(pairs.items()):
        for key in (number, name):
            (first_number, first_name), first_location = first_pairs.setdefault(
                key, ((number, name), location)
            )
            if (first_number, first_name) != (number, name):
                raise InputError(
                    f"data: label {first_number} is {first_name!r} in {first_location}, and label {number} "
                    f"is {name!r} in {location}; number the classes in one way, or choose the names with "
                    "--label-column NAME"
                )


def _check_distinct(names: Sequence[str]) -> None:
    """Single characters may differ in case: the letters of an alphabet are classes."""
    groups: dict[str, list[str]] = {}
    for name in names:
        plain = name.strip() if len(name.strip()) == 1 else name.strip().casefold()
        groups.setdefault(plain, []).append(name)
    similar = [" and ".join(map(quote, group)) for group in groups.values() if len(group) > 1]
    if similar:
        raise InputError(
            f"data: classes that differ only in case or in blanks at their ends: {listing(similar)}; "
            "rename them so that each class has one name"
        )
