"""Class names of several files or folders made one list: a label follows its name, never its number."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kilolayer.data.pictures import Pictures
from kilolayer.data.wording import is_text, listed, quoted
from kilolayer.errors import InputError


@dataclass(frozen=True)
class NamedPictures:
    """Pictures whose labels number the names of their own file or folder.

    where: the file or folder, in words. given: how the names are given: as a list whose order counts, as text
    beside each picture (a folder's name, a string), or not at all, so that the numbers are the names.
    column: the labels' name in a table; files: the pictures' own, where they are files;
    spoken: the numbers, and what a text column beside them calls them.
    """

    pictures: Pictures
    names: tuple[str, ...]
    where: str
    given: Literal["list", "text", "numbers"] = "text"
    column: str = ""
    files: Sequence[Path] = ()
    spoken: Sequence[tuple[int, str]] = ()


def composed(name: str) -> str:
    """The name in Unicode's composed form: macOS writes é as two characters, other systems as one."""
    return unicodedata.normalize("NFC", name)


def class_names(lots: Sequence[NamedPictures]) -> tuple[str, ...]:
    """The classes of all lots together (see `union`). Raises `InputError`.

    Refused: a name that no report could show or that stands twice in one list, names that differ only in case
    or in blanks at their ends, and files with names beside files with numbers only.
    """
    for lot in lots:
        check_names(lot)
        _check_labels(lot)
    check_together(lots)
    return union(lots)


def check_together(lots: Sequence[NamedPictures]) -> None:
    """Raises `InputError` where the names of different files cannot be matched."""
    _check_numbers(lots)
    _check_columns(lots)
    _check_spoken(lots)
    _check_alike(union(lots))


def union(lots: Sequence[NamedPictures]) -> tuple[str, ...]:
    """The first list of names in its order, then those that the others add; what no list orders is sorted."""
    lists = [lot.names for lot in lots if lot.given == "list"]
    text = sorted({name for lot in lots if lot.given == "text" for name in map(composed, lot.names)})
    numbers = max((lot.names for lot in lots if lot.given == "numbers"), key=len, default=())
    return tuple(dict.fromkeys(composed(name) for names in (*lists, text, numbers) for name in names))


def joined(lots: Sequence[NamedPictures], classes: tuple[str, ...]) -> Pictures:
    """The pictures of all lots, one after the other, labelled by their places in `classes`."""
    place = {name: number for number, name in enumerate(classes)}
    tables = [np.array([place[composed(name)] for name in lot.names], np.int64) for lot in lots]
    labels = [table[lot.pictures.labels] for table, lot in zip(tables, lots, strict=True)]
    starts = np.cumsum([0, *(len(part) for part in labels)])

    def at(i: int) -> tuple[Pictures, int]:
        number = int(np.searchsorted(starts, i, "right")) - 1
        return lots[number].pictures, i - int(starts[number])

    def raw(i: int) -> object:
        pictures, row = at(i)
        return pictures.raw(row)

    def where(i: int) -> str:
        pictures, row = at(i)
        return pictures.where(row)

    empty: NDArray[np.int64] = np.empty(0, np.int64)
    return Pictures(np.concatenate([empty, *labels]), raw, where)  # type: ignore[arg-type]


def remarks(lots: Sequence[NamedPictures]) -> tuple[str, ...]:
    """What there is to say of the names: other numbers for them, or another way of writing them."""
    lists = [(lot.where, tuple(map(composed, lot.names))) for lot in lots if lot.given == "list"]
    other = [where for where, names in lists if names != lists[0][1]]
    apart = sorted({name for lot in lots for name in lot.names if name != composed(name)})
    return (
        *([f"other class numbers in {listed(other, 3)}: labels follow the names"] if other else []),
        *([f"accents are read as one letter with the one before: {listed(apart, 3)}"] if apart else []),
    )


def check_names(lot: NamedPictures) -> None:
    """Raises `InputError` for names that no report could show, or that stand twice in one list."""
    counts = Counter(map(composed, lot.names))
    twice = {name for name, count in counts.items() if count > 1}
    unfit = [quoted(name) for name in counts if name in twice or not is_text(name) or not name.strip()]
    if unfit:
        raise InputError(
            f"{lot.where}: {len(unfit)} class names are no text, empty, or twice there: {listed(unfit)}"
        )


def outside(lot: NamedPictures) -> NDArray[np.int64]:
    """Which pictures have labels that number none of the lot's names."""
    labels = lot.pictures.labels
    return np.flatnonzero((labels < 0) | (labels >= len(lot.names)))


def within(lot: NamedPictures) -> NamedPictures:
    """The other pictures."""
    inside = np.setdiff1d(np.arange(len(lot.pictures)), outside(lot))
    return replace(lot, pictures=lot.pictures.take(inside))


def label_outside(lot: NamedPictures, i: int) -> str:
    """What is wrong with the label of picture i, in words."""
    allowed = f"the classes 0 to {len(lot.names) - 1}" if lot.names else "any class"
    return f"{lot.pictures.where(i)}: label {lot.pictures.labels[i]} is outside {allowed}"


def _check_labels(lot: NamedPictures) -> None:
    wrong = outside(lot).tolist()
    if wrong:
        more = f" ({len(wrong):,} such labels)" if len(wrong) > 1 else ""
        raise InputError(f"{label_outside(lot, wrong[0])}{more}")


def _check_numbers(lots: Sequence[NamedPictures]) -> None:
    named = [lot for lot in lots if lot.given != "numbers" and lot.names]
    bare = [lot for lot in lots if lot.given == "numbers" and len(lot.pictures)]
    plain = all(name == str(number) for lot in named for number, name in enumerate(lot.names))
    if named and bare and not plain:
        raise InputError(
            f"{named[0].where} names its classes ({listed([quoted(n) for n in named[0].names], 3)}), "
            f"{bare[0].where} has only numbers, which could mean other classes; write the names into both"
        )


def _check_columns(lots: Sequence[NamedPictures]) -> None:
    columns = {lot.column: lot.where for lot in lots if lot.given == "numbers" and len(lot.pictures)}
    if len(columns) > 1:
        places = " and ".join(f"{name!r} of {where}" for name, where in columns.items())
        raise InputError(
            f"data: labels are numbers in column {places}, which could mean other classes; "
            "choose one that all files have, with --label-column NAME"
        )


def _check_spoken(lots: Sequence[NamedPictures]) -> None:
    """Raises `InputError` where a number has two names beside it, or a name two numbers."""
    pairs = {pair: lot.where for lot in reversed(lots) for pair in lot.spoken}
    seen: dict[int | str, tuple[tuple[int, str], str]] = {}
    for (number, name), where in sorted(pairs.items()):
        for key in (number, name):
            (other, called), place = seen.setdefault(key, ((number, name), where))
            if (other, called) != (number, name):
                raise InputError(
                    f"data: label {other} is {called!r} in {place}, and label {number} is {name!r} in "
                    f"{where}; number the classes alike, or choose the names with --label-column NAME"
                )


def _check_alike(names: Sequence[str]) -> None:
    """Single characters may differ in case: the letters of an alphabet are classes."""
    groups: dict[str, list[str]] = {}
    for name in names:
        plain = name.strip() if len(name.strip()) == 1 else name.strip().casefold()
        groups.setdefault(plain, []).append(name)
    alike = [" and ".join(map(quoted, group)) for group in groups.values() if len(group) > 1]
    if alike:
        raise InputError(
            f"data: classes that differ only in case or in blanks at their ends: {listed(alike)}; "
            "rename them so that each class has one name"
        )
