"""Reads a whole data set and names everything that would spoil a training or its figures (`check-data`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from kilolayer.data.config import Data
from kilolayer.data.images import Images, StoredDataset
from kilolayer.data.loading import find_stored_dataset, source_layout
from kilolayer.data.pictures.decoding import EncodedPictures, Unreadable
from kilolayer.data.pictures.inspection import InspectedPicture, inspect_pictures, pixel_digest
from kilolayer.data.pictures.rendering import TRAITS, trait_sentence
from kilolayer.data.registry import DATASETS
from kilolayer.data.sources.classes import (
    NamedPictures,
    check_names,
    check_names_agree,
    drop_out_of_range,
    join_pictures,
    label_error,
    labels_out_of_range,
    name_notes,
    union_of_names,
)
from kilolayer.data.sources.splits import SourceLayout, Split, assign_splits
from kilolayer.errors import KilolayerError
from kilolayer.system.message_text import is_text, listing, quote

DEFECTS = {
    "damaged": "cannot be read",
    "empty": "empty",
    "too_large": "too large",
    "no_file": "not a file, but a folder, a pipe, or a link that leads nowhere or in a circle",
    "label": "labels outside the classes",
    "class": "classes without images in train or in test, or with unprintable names",
    "few_classes": "fewer than 2 classes",
    "beside": "unreadable, and not used because they lie beside the class folders",
    "train_and_test": "the same pixels in two of train, validation and test",
    "labels_differ": "the same pixels under different classes",
    "twice": "the same pixels more than once in one part",
    "name": "names with control characters, broken encodings or spaces at their ends",
}
"""Every kind of defect, in words. Training accepts the kinds in `TOLERATED` and refuses the others."""
TOLERATED = ("beside", "train_and_test", "labels_differ", "twice", "name")


@dataclass(frozen=True)
class Defect:
    """A kind of defect and its locations, in words."""

    kind: str
    places: tuple[str, ...]

    @property
    def is_refused(self) -> bool:
        """Whether training refuses the data because of it."""
        return self.kind not in TOLERATED


@dataclass(frozen=True)
class PictureTrait:
    """A conversion that shows pictures as their viewer does (see `TRAITS`), and their locations."""

    kind: str
    places: tuple[str, ...]

    @property
    def words(self) -> str:
        """A sentence, as `3 pictures are transparent: shown over white`."""
        count = len(self.places)
        return trait_sentence(self.kind, f"{count:,} {'picture' if count == 1 else 'pictures'}", count)


@dataclass(frozen=True)
class DataReport:
    """What was found in a data set. `images`: the number in each part. `looks` are conversions, not defects.

    origin: which files or folders are used for which part, and which are not used and why, one line each.
    """

    images: dict[str, int]
    classes: int
    findings: tuple[Defect, ...]
    looks: tuple[PictureTrait, ...] = ()
    origin: tuple[str, ...] = ()


Defects = Iterator[tuple[str, str]]
"""Pairs of a kind and a location."""


def find_defects(data: Data) -> DataReport:
    """Reads a whole data set and reports its defects.

    Raises `InputError` only where there is no such data set.

    >>> report = find_defects(Data("digits"))
    >>> report.images, report.findings
    ({'train': 1437, 'test': 360}, ())
    """
    stored = find_stored_dataset(data)
    return _check_files(source_layout(data), data) if stored is None else _check_stored(stored)


def _data_report(sets: list[PixelDigests], classes: int, entries: list[tuple[str, str]]) -> DataReport:
    entries = [*entries, *_classes_missing(sets), *find_duplicates(sets)]
    by_kind = {
        kind: tuple(location for entry_kind, location in entries if entry_kind == kind)
        for kind in (*DEFECTS, *TRAITS)
    }
    if len(by_kind["grey"]) == sum(name is not None for part in sets for name in part.digests):
        del by_kind["grey"]  # Grey is worth a line only among colour pictures.
    return DataReport(
        {part.name: len(part.labels) for part in sets},
        classes,
        tuple(Defect(kind, by_kind[kind]) for kind in DEFECTS if by_kind[kind]),
        tuple(PictureTrait(kind, by_kind[kind]) for kind in TRAITS if by_kind.get(kind)),
    )


def _classes_missing(sets: list[PixelDigests]) -> Defects:
    present = {part.name: {part.classes[label] for label in part.labels} for part in sets}
    train = present.pop("train", None)
    if train is None or not present:
        return
    if "test" in present:
        missing = sorted(train - present["test"])
        yield from (("class", f"{quote(name)} is missing from test") for name in missing)
    missing = sorted(set.union(*present.values()) - train)
    yield from (("class", f"{quote(name)} is missing from train") for name in missing)


def _inspect_part(
    name: str, pictures: EncodedPictures, classes: tuple[str, ...], entries: list[tuple[str, str]]
) -> PixelDigests:
    """A part with all its pictures decoded; their defects and traits are added to `entries`."""
    results = inspect_pictures(pictures, f"reading the {name} images")
    for i, result in enumerate(results):
        if isinstance(result, Unreadable):
            entries.append((result.kind, f"{pictures.locate(i)} ({result.reason})"))
        else:
            entries += [
                (trait, pictures.locate(i)) for trait in (*result.traits, *("grey",) * result.header.grey)
            ]
    names = [result.digest if isinstance(result, InspectedPicture) else None for result in results]
    return PixelDigests(name, tuple(pictures.labels.tolist()), classes, tuple(names), pictures.locate)


def _check_files(layout: SourceLayout, data: Data) -> DataReport:
    entries: list[tuple[str, str]] = []
    assigned = assign_splits(layout, data)
    if assigned.available_validation:  # as `kilolayer train` does by default
        assigned = assign_splits(layout, replace(data, validation_split=assigned.available_validation))
    lots = {part: list(_readable_lots(splits, entries)) for part, splits in assigned.parts().items()}
    all_lots = [lot for part_lots in lots.values() for lot in part_lots]
    classes = union_of_names(all_lots)
    if len(classes) == 1:
        entries.append(("few_classes", f"{quote(classes[0])} is the only class"))
    entries += _check_unused(
        [*layout.unused_pictures, *(path for split in assigned.used for path in split.unused_pictures)]
    )
    with _collect_errors(entries, "class"):
        check_names_agree(all_lots)
    filled = {part: join_pictures(part_lots, classes) for part, part_lots in lots.items() if part_lots}
    sets = [
        _inspect_part(part, replace(pictures, appearance=data.appearance), classes, entries)
        for part, pictures in filled.items()
    ]
    origin = (*assigned.lines(), *name_notes(all_lots), *layout.notes)
    return replace(_data_report(sets, len(classes), entries), origin=origin)


def _check_unused(paths: Sequence[Path]) -> Defects:
    """The unreadable pictures among those that are not used."""
    pictures = EncodedPictures(np.zeros(len(paths), np.int64), paths.__getitem__, lambda i: quote(paths[i]))
    for i, result in enumerate(
        inspect_pictures(pictures, "reading the images beside the folders") if paths else ()
    ):
        if isinstance(result, Unreadable):
            yield "beside", f"{pictures.locate(i)} ({result.reason})"


def _readable_lots(splits: Sequence[Split], entries: list[tuple[str, str]]) -> Iterator[NamedPictures]:
    """The readable pictures of these splits; defects are added to `entries`."""
    for split in splits:
        entries += [("no_file", location) for location in (*split.non_files, *split.broken_links)]
        entries += [("class", f"{location} is empty") for location in split.empty_folders]
        for read_lot in split.readers:
            with _collect_errors(entries):
                lot = read_lot()
                with _collect_errors(entries, "class"):
                    check_names(lot)
                entries += [("name", quote(path)) for path in lot.files if _is_odd_name(path.name)]
                entries += [("label", label_error(lot, i)) for i in labels_out_of_range(lot).tolist()]
                yield drop_out_of_range(lot)


def _is_odd_name(name: str) -> bool:
    return not is_text(name) or name != name.strip()


def _check_stored(stored: StoredDataset) -> DataReport:
    entries: list[tuple[str, str]] = []
    parts: dict[str, Images] = {}
    for name, read in (("train", stored.read_train), ("test", stored.read_test)):
        with _collect_errors(entries):
            parts[name] = read()
    return _check_arrays(parts, list(dict.fromkeys(entries)), DATASETS[stored.name].num_classes)


def _check_arrays(sets: dict[str, Images], entries: list[tuple[str, str]], classes: int) -> DataReport:
    names = tuple(map(str, range(classes)))
    parts = [
        PixelDigests(
            name,
            tuple(images.labels.tolist()),
            names,
            tuple(pixel_digest(pixels.tobytes(), pixels.shape) for pixels in images.pixels.numpy()),
            partial("{} image {}".format, name),
        )
        for name, images in sets.items()
    ]
    return _data_report(parts, classes, entries)


@contextmanager
def _collect_errors(entries: list[tuple[str, str]], kind: str = "damaged") -> Iterator[None]:
    """Adds an error raised within to `entries`, and goes on behind the block."""
    try:
        yield
    except KilolayerError as error:
        entries.append((kind, str(error)))


Member = tuple["PixelDigests", int]


@dataclass(frozen=True)
class PixelDigests:
    """The labels and pixel digests of one part; the digest of an unreadable picture is None."""

    name: str
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    digests: tuple[str | None, ...]
    locate: Callable[[int], str]


def find_duplicates(parts: Sequence[PixelDigests]) -> Iterator[tuple[str, str]]:
    """For every picture that occurs more than once: the kind of defect, and its locations."""
    for members in _groups(parts):
        places = listing([part.locate(i) for part, i in members], 5)
        names = {part.name for part, _ in members}
        if len(names) > 1:
            yield "train_and_test", places
        if len({part.classes[part.labels[i]] for part, i in members}) > 1:
            yield "labels_differ", places
        if len(members) > len(names):
            yield "twice", places


def _groups(parts: Sequence[PixelDigests]) -> Iterator[list[Member]]:
    by_digest: dict[str, list[Member]] = {}
    for part in parts:
        for i, digest in enumerate(part.digests):
            if digest is not None:
                by_digest.setdefault(digest, []).append((part, i))
    return (members for members in by_digest.values() if len(members) > 1)
