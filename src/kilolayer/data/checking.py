"""A whole data set read, and everything named that would spoil a training or its figures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from kilolayer.data import cifar, parquet
from kilolayer.data.appearance import LOOKS, sentence
from kilolayer.data.bundle import read
from kilolayer.data.describe import Appearance, Data
from kilolayer.data.digits import digits
from kilolayer.data.duplicates import Part, duplicates
from kilolayer.data.folder import pictures
from kilolayer.data.images import Images
from kilolayer.data.inspecting import Seen, digest, inspect
from kilolayer.data.loading import cifar_at
from kilolayer.data.pictures import Pictures, Unreadable
from kilolayer.data.scanning import Scan, parts, scan
from kilolayer.data.table import Rows, Table, arrow
from kilolayer.data.wording import is_text, quoted
from kilolayer.errors import InputError
from kilolayer.folders import expand

KINDS = {
    "damaged": "cannot be read",
    "empty": "empty",
    "too_large": "too large",
    "no_file": "no file, but a folder, a pipe, or a link that leads nowhere or in a circle",
    "label": "labels outside the classes",
    "class": "classes without images in train or in test, or with names that are no text",
    "train_and_test": "the same pixels in train and in test",
    "labels_differ": "the same pixels under different classes",
    "twice": "the same pixels more than once in one part",
    "name": "names with control characters, broken encodings or spaces at their ends",
}
"""What can be found. Training begins with the last four, and refuses the others."""
ACCEPTED = ("train_and_test", "labels_differ", "twice", "name")


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
    """A data set that was read whole. `images`: how many there are in each part; `looks` are no faults."""

    images: dict[str, int]
    classes: int
    findings: tuple[Finding, ...]
    looks: tuple[Look, ...] = ()


Found = Iterator[tuple[str, str]]
"""Kinds and places."""


def check(data: Data) -> Report:
    """Reads all of a data set. Raises `InputError` only where there is none at all."""
    if data.source == "digits":
        source = digits()
        every = np.arange(source.count)
        return _arrays(
            {"train": source.read_train(every), "test": source.read_test()}, [], len(source.classes)
        )
    if found := cifar_at(data):
        return _cifar(*found)
    path = Path(expand(data.source))
    read = _parquet if parquet.parquet_files(path) else _folder
    return read(path, data.appearance)


def _report(sets: list[Part], classes: int, found: list[tuple[str, str]]) -> Report:
    found = [*found, *_classes_missing(sets), *duplicates(sets)]
    by_kind = {kind: tuple(place for one, place in found if one == kind) for kind in (*KINDS, *LOOKS)}
    return Report(
        {part.name: len(part.labels) for part in sets},
        classes,
        tuple(Finding(kind, by_kind[kind]) for kind in KINDS if by_kind[kind]),
        tuple(Look(kind, by_kind[kind]) for kind in LOOKS if by_kind[kind]),
    )


def _classes_missing(sets: list[Part]) -> Found:
    if len(sets) < 2:
        return
    train, test = ({part.classes[label] for label in part.labels} for part in sets)
    yield from (("class", f"{quoted(name)} is missing from test") for name in sorted(train - test))
    yield from (("class", f"{quoted(name)} is missing from train") for name in sorted(test - train))


def _pictures(name: str, shown: Pictures, classes: tuple[str, ...], found: list[tuple[str, str]]) -> Part:
    """A part whose pictures are decoded; what is wrong with them, and their looks, are added to `found`."""
    seen = inspect(shown, f"reading the {name} images")
    for i, one in enumerate(seen):
        if isinstance(one, Unreadable):
            found.append((one.kind, f"{shown.where(i)} ({one.reason})"))
        else:
            found += [(look, shown.where(i)) for look in one.looks]
    names = [one.digest if isinstance(one, Seen) else None for one in seen]
    return Part(name, tuple(shown.labels.tolist()), classes, tuple(names), shown.where)


def _folder(root: Path, appearance: Appearance) -> Report:
    train_root, test_root = parts(root)
    scans = {"train": scan(train_root)} | ({"test": scan(test_root)} if test_root else {})
    classes = tuple(sorted({name for one in scans.values() for name in one.classes}))
    found = [each for one in scans.values() for each in _of_scan(one)]
    sets = [
        _pictures(name, replace(pictures(one.classes, classes), appearance=appearance), classes, found)
        for name, one in scans.items()
    ]
    return _report(sets, len(classes), found)


def _of_scan(one: Scan) -> Found:
    yield from (("no_file", quoted(path)) for path in (*one.no_files, *one.astray))
    yield from (
        ("class", f"{quoted(one.root / name)} is empty") for name, each in one.classes.items() if not each
    )
    yield from (("class", f"{quoted(name)} is no text") for name in one.classes if not is_text(name))
    files = (path for paths in one.classes.values() for path in paths)
    yield from (("name", quoted(p)) for p in files if not is_text(p.name) or p.name != p.name.strip())


def _parquet(root: Path, appearance: Appearance) -> Report:
    arrow()
    found: list[tuple[str, str]] = []
    tables: dict[str, list[Rows]] = {"train": [], "test": []}
    for name, paths in zip(tables, parquet.parts(root), strict=True):
        for path in paths:
            with _noting(found):
                tables[name].append(Table(path).read())
    every = [rows for part in tables.values() for rows in part]
    if not every:
        return _report([], 0, found)
    count = parquet.class_count(every)
    names = every[0].names or tuple(map(str, range(count)))
    found += [each for rows in every for each in _labels(rows, count)]
    sets = [
        _pictures(name, replace(_within(parquet.pictures(part), count), appearance=appearance), names, found)
        for name, part in tables.items()
        if part
    ]
    return _report(sets, count, found)


def _labels(rows: Rows, count: int) -> Found:
    for row in np.flatnonzero((rows.labels < 0) | (rows.labels >= count)).tolist():
        yield "label", f"{quoted(rows.path)} row {row}: {rows.labels[row]}, allowed are 0 to {count - 1}"


def _within(shown: Pictures, count: int) -> Pictures:
    return shown.take(np.flatnonzero((shown.labels >= 0) & (shown.labels < count)))


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
def _noting(found: list[tuple[str, str]]) -> Iterator[None]:
    """What is wrong with a file within is one of the findings, and ends nothing else."""
    try:
        yield
    except InputError as error:
        found.append(("damaged", str(error)))
