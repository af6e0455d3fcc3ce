"""A whole data set read, and everything named that would spoil a training or its figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from kilolayer.data import cifar
from kilolayer.data.appearance import LOOKS, sentence
from kilolayer.data.bundle import read
from kilolayer.data.classes import (
    NamedPictures,
    check_names,
    check_together,
    joined,
    label_outside,
    outside,
    remarks,
    union,
    within,
)
from kilolayer.data.describe import Data
from kilolayer.data.digits import digits
from kilolayer.data.duplicates import Part, duplicates
from kilolayer.data.images import Images
from kilolayer.data.inspecting import Seen, digest, inspect
from kilolayer.data.loading import cifar_at, layout, refuse_choices
from kilolayer.data.pictures import Pictures, Unreadable
from kilolayer.data.splits import Layout, Split, assign
from kilolayer.data.wording import is_text, quoted
from kilolayer.errors import InputError

KINDS = {
    "damaged": "cannot be read",
    "empty": "empty",
    "too_large": "too large",
    "no_file": "no file, but a folder, a pipe, or a link that leads nowhere or in a circle",
    "label": "labels outside the classes",
    "class": "classes without images in train or in test, or with names that are no text",
    "few_classes": "fewer than 2 classes",
    "beside": "cannot be read, and not used, since they lie beside the folders",
    "train_and_test": "the same pixels in two of train, validation and test",
    "labels_differ": "the same pixels under different classes",
    "twice": "the same pixels more than once in one part",
    "name": "names with control characters, broken encodings or spaces at their ends",
}
"""What can be found. Training begins with the last five, and refuses the others."""
ACCEPTED = ("beside", "train_and_test", "labels_differ", "twice", "name")


@dataclass(frozen=True)
class Finding:
    """One kind of what is wrong, and where, each place in words."""

    kind: str
    places: tuple[str, ...]

    @property
    def refused(self) -> bool:
        """Whether training refuses the data for it."""
        return self.kind not in ACCEPTED


@dataclass(frozen=True)
class Look:
    """What is done to show some pictures as their viewer does (see `LOOKS`), and where they are."""

    kind: str
    places: tuple[str, ...]

    @property
    def words(self) -> str:
        """As `3 pictures are transparent: shown over white`."""
        count = len(self.places)
        return sentence(self.kind, f"{count:,} {'picture' if count == 1 else 'pictures'}", count)


@dataclass(frozen=True)
class Report:
    """A data set that was read whole. `images`: how many there are in each part; `looks` are no faults.

    origin: which files or folders are used as what, what is not used and why, a line each.
    """

    images: dict[str, int]
    classes: int
    findings: tuple[Finding, ...]
    looks: tuple[Look, ...] = ()
    origin: tuple[str, ...] = ()


Found = Iterator[tuple[str, str]]
"""Kinds and places."""


def check(data: Data) -> Report:
    """Reads all of a data set. Raises `InputError` only where there is none at all."""
    if data.source == "digits":
        refuse_choices(data)
        source = digits()
        every = np.arange(source.count)
        return _arrays(
            {"train": source.read_train(every), "test": source.read_test()}, [], len(source.classes)
        )
    if found := cifar_at(data):
        refuse_choices(data)
        return _cifar(*found)
    return _in_files(layout(data), data)


def _report(sets: list[Part], classes: int, found: list[tuple[str, str]]) -> Report:
    found = [*found, *_classes_missing(sets), *duplicates(sets)]
    by_kind = {kind: tuple(place for one, place in found if one == kind) for kind in (*KINDS, *LOOKS)}
    if len(by_kind["grey"]) == sum(name is not None for part in sets for name in part.digests):
        del by_kind["grey"]  # all of them
    return Report(
        {part.name: len(part.labels) for part in sets},
        classes,
        tuple(Finding(kind, by_kind[kind]) for kind in KINDS if by_kind[kind]),
        tuple(Look(kind, by_kind[kind]) for kind in LOOKS if by_kind.get(kind)),
    )


def _classes_missing(sets: list[Part]) -> Found:
    present = {part.name: {part.classes[label] for label in part.labels} for part in sets}
    train = present.pop("train", None)
    if train is None or not present:
        return
    if "test" in present:
        missing = sorted(train - present["test"])
        yield from (("class", f"{quoted(name)} is missing from test") for name in missing)
    missing = sorted(set.union(*present.values()) - train)
    yield from (("class", f"{quoted(name)} is missing from train") for name in missing)


def _pictures(name: str, shown: Pictures, classes: tuple[str, ...], found: list[tuple[str, str]]) -> Part:
    """A part whose pictures are decoded; what is wrong with them, and their looks, are added to `found`."""
    seen = inspect(shown, f"reading the {name} images")
    for i, one in enumerate(seen):
        if isinstance(one, Unreadable):
            found.append((one.kind, f"{shown.where(i)} ({one.reason})"))
        else:
            found += [(look, shown.where(i)) for look in (*one.looks, *("grey",) * one.header.grey)]
    names = [one.digest if isinstance(one, Seen) else None for one in seen]
    return Part(name, tuple(shown.labels.tolist()), classes, tuple(names), shown.where)


def _in_files(there: Layout, data: Data) -> Report:
    found: list[tuple[str, str]] = []
    assigned = assign(there, data)
    if assigned.offered:  # as `kilolayer train` does where nothing else is asked for
        assigned = assign(there, replace(data, validation_split=assigned.offered))
    lots = {part: list(_lots(splits, found)) for part, splits in assigned.parts().items()}
    every = [lot for some in lots.values() for lot in some]
    classes = union(every)
    if len(classes) == 1:
        found.append(("few_classes", f"{quoted(classes[0])} is the only class"))
    found += _beside([*there.beside, *(path for split in assigned.used for path in split.beside)])
    with _noting(found, "class"):
        check_together(every)
    filled = {part: joined(some, classes) for part, some in lots.items() if some}
    sets = [
        _pictures(part, replace(pictures, appearance=data.appearance), classes, found)
        for part, pictures in filled.items()
    ]
    origin = (*assigned.lines(), *remarks(every), *there.notes)
    return replace(_report(sets, len(classes), found), origin=origin)


def _beside(paths: Sequence[Path]) -> Found:
    """Those of the pictures which are not used that could not be read either."""
    shown = Pictures(np.zeros(len(paths), np.int64), paths.__getitem__, lambda i: quoted(paths[i]))
    for i, one in enumerate(inspect(shown, "reading the images beside the folders") if paths else ()):
        if isinstance(one, Unreadable):
            yield "beside", f"{shown.where(i)} ({one.reason})"


def _lots(splits: Sequence[Split], found: list[tuple[str, str]]) -> Iterator[NamedPictures]:
    """What can be read of these splits; the rest is added to `found`."""
    for split in splits:
        found += [("no_file", place) for place in (*split.no_files, *split.astray)]
        found += [("class", f"{place} is empty") for place in split.empty]
        for read_lot in split.lots:
            with _noting(found):
                lot = read_lot()
                with _noting(found, "class"):
                    check_names(lot)
                found += [("name", quoted(path)) for path in lot.files if _is_odd(path.name)]
                found += [("label", label_outside(lot, i)) for i in outside(lot).tolist()]
                yield within(lot)


def _is_odd(name: str) -> bool:
    return not is_text(name) or name != name.strip()


def _cifar(layout: cifar.Layout, place: Path) -> Report:
    found: list[tuple[str, str]] = []
    sets: dict[str, Images] = {}
    with _noting(found):
        files = read(place, (*layout.train, layout.test), layout.required)
        for name, names in (("train", layout.train), ("test", (layout.test,))):
            with _noting(found):
                sets[name] = cifar.images(layout, {each: files[each] for each in names}, place)
    return _arrays(sets, found, layout.classes)


def _arrays(sets: dict[str, Images], found: list[tuple[str, str]], classes: int) -> Report:
    names = tuple(map(str, range(classes)))
    made = [
        Part(
            name,
            tuple(images.labels.tolist()),
            names,
            tuple(digest(pixels.tobytes(), pixels.shape) for pixels in images.pixels.numpy()),
            partial("{} image {}".format, name),
        )
        for name, images in sets.items()
    ]
    return _report(made, classes, found)


@contextmanager
def _noting(found: list[tuple[str, str]], kind: str = "damaged") -> Iterator[None]:
    """What is wrong with a file within is one of the findings, and ends nothing else."""
    try:
        yield
    except InputError as error:
        found.append((kind, str(error)))
