"""Which files or folders are for training and which are held out, by the words in their names.

One table of words and one rule serve parquet files and folders of images:

- `--train`, `--test` and `--validation` come first; the words decide the rest;
- a test split without labels is not used;
- without a test split the validation split becomes the test set; beside a test split it becomes the
validation set where
  the description asks for it (`kilolayer train` does by default);
- two splits for one role, or a held-out split without a training split, are an error that names the choice;
- where no name has such a word, all pictures are one pool, and a fifth of each class becomes the test set.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kilolayer.data.config import Data
from kilolayer.data.sources.classes import NamedPictures
from kilolayer.errors import InputError
from kilolayer.system.message_text import listing, quantity, quote

Role = Literal["train", "validation", "test"]

ROLE_WORDS: dict[Role, tuple[str, ...]] = {
    "train": ("train", "training", "trainset", "traindata", "trainval", "trn"),
    "validation": ("validation", "valid", "val", "validate", "valset", "dev", "devset", "development"),
    "test": (
        "test", "tests", "testing", "testset", "testdata", "tst", "eval", "evaluation",
        "holdout", "hold out", "heldout", "held out", "unseen", "blind",
    ),
}  # fmt: skip
_PIECES = re.compile(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+(?![^\W\d_A-Z])|[^\W\d_]+")


def name_roles(name: str) -> frozenset[Role]:
    """The roles that a name tells.

    >>> [sorted(name_roles(name)) for name in ("seg_train", "TestSet", "val2017", "cats")]
    [['train'], ['test'], ['validation'], []]
    """
    text = f" {' '.join(_PIECES.findall(name)).casefold()} "
    return frozenset(role for role, words in ROLE_WORDS.items() if any(f" {word} " in text for word in words))


@dataclass(frozen=True, eq=False)
class Split:
    """Pictures of a source that belong together.

    name: chooses the split on the command line. roles: what its name says it is for. location: its files or
        folder in words.
    count: the number of pictures. unlabelled: why the pictures have no labels; "" where they have labels.
    readers: each reads the pictures of one file, with that file's class names.
    size: the bytes of the encoded pictures in memory. damaged: whether a file cannot be opened.
    non_files: entries that are neither file nor folder (`skip_damaged` ignores them).
    broken_links: links in place of class folders. empty_folders: class folders without pictures.
    unused_pictures: pictures beside the class folders. advice: what to do where it has no labels.
    notes: notes in any use. training_notes: notes where the split is trained on.
    check: raises `InputError` where the pictures can be read in two ways.
    row_roles: the columns that assign rows to splits, with their values.
    inodes: device and inode of its files or folders, with their locations.
    """

    name: str
    roles: frozenset[Role]
    location: str
    count: int
    no_label_reason: Callable[[], str]
    readers: tuple[Callable[[], NamedPictures], ...]
    size: int = 0
    damaged: bool = False
    non_files: tuple[str, ...] = ()
    broken_links: tuple[str, ...] = ()
    empty_folders: tuple[str, ...] = ()
    unused_pictures: tuple[Path, ...] = ()
    advice: str = ""
    notes: tuple[str, ...] = ()
    training_notes: tuple[str, ...] = ()
    check: Callable[[], None] = lambda: None
    row_roles: Callable[[], Mapping[str, frozenset[str]]] = dict
    inodes: tuple[tuple[tuple[int, int], str], ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether it counts as absent. A split of empty class folders does not: it is a failed copy."""
        return not (self.count or self.empty_folders or self.damaged)


@dataclass(frozen=True)
class SourceLayout:
    """All splits of a source, and its name in figures.

    path: the path in messages. notes: what was ignored, one line each. unused_pictures: pictures beside the
        split folders.
    """

    name: str
    path: str
    splits: tuple[Split, ...]
    notes: tuple[str, ...] = ()
    unused_pictures: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Assignment:
    """Which splits are trained on, which are held out, and which are not used and why.

    test: empty where a fifth of the training pictures becomes the test set.
    available_validation: the validation split that `Data.validation_split` could name.
    """

    train: tuple[Split, ...]
    validation: tuple[Split, ...]
    test: tuple[Split, ...]
    unused: tuple[tuple[Split, str], ...] = ()
    reason: str = ""
    available_validation: str | None = None

    def parts(self) -> dict[str, tuple[Split, ...]]:
        """The splits of each part that exists; `train` always exists."""
        splits_by_part = {"train": self.train, "validation": self.validation, "test": self.test}
        return {part: splits for part, splits in splits_by_part.items() if splits or part == "train"}

    @property
    def used(self) -> tuple[Split, ...]:
        return (*self.train, *self.validation, *self.test)

    def lines(self, num_drawn: int | None = None) -> tuple[str, ...]:
        """One line for each part. num_drawn: the size of a test set drawn from the training pictures."""
        used = [f"{part}: {_splits_text(splits)}" for part, splits in self.parts().items()]
        if not self.test:
            count = f"{num_drawn:,} of these images, " if num_drawn is not None else ""
            used.append(f"test: {count}a fifth of each class")
        elif self.reason:
            used[-1] += f" ({self.reason})"
        notes = (note for split in self.used for note in split.notes)
        trained = (note for split in self.train for note in split.training_notes)
        return (
            *used,
            *notes,
            *trained,
            *(f"not used: {_splits_text([split])}: {why}" for split, why in self.unused),
        )


def _splits_text(splits: Sequence[Split]) -> str:
    return " and ".join(f"{quantity(split.count, 'image')} of {split.location}" for split in splits)


def choose_splits(layout: SourceLayout, names: str, option: str) -> tuple[Split, ...]:
    """The splits that `names` means; `+` joins several names.

    A name matches exactly, in another case, by a word within it, or by its role, in this order. Raises
    `InputError` that lists the splits.
    """
    exact = [split for split in layout.splits if split.name == names]
    if exact:
        return (exact[0],)
    return tuple(_choose_split(layout, name.strip(), option) for name in names.split("+"))


def _choose_split(layout: SourceLayout, name: str, option: str) -> Split:
    tests: tuple[Callable[[Split], bool], ...] = (
        lambda split: split.name == name,
        lambda split: split.name.casefold() == name.casefold(),
        lambda split: name.casefold() in re.split(r"[\W_]+", split.name.casefold()),
        lambda split: split.roles == {name.casefold()},
    )
    for test in tests:
        hits = [split for split in layout.splits if test(split)]
        if len(hits) == 1:
            return hits[0]
        if hits:
            raise InputError(f"{option} {name} means several splits of {layout.path}: {_split_names(hits)}")
    raise InputError(
        f"{layout.path} has no split {name!r} for {option}; it has: {_split_names(layout.splits)}"
    )


def assign_splits(layout: SourceLayout, data: Data) -> Assignment:
    """Decides the role of each split. Raises `InputError` with the choices where the role is unclear."""
    chosen = _splits_by_option(layout, data)
    chosen_splits = {split for splits in chosen.values() for split in splits}
    remaining = [split for split in layout.splits if split not in chosen_splits and not split.is_empty]
    is_pool = not chosen_splits and not any(split.roles for split in layout.splits)
    train = chosen["train"] or (_single_split(layout) if is_pool else _training_split(layout, remaining))
    remaining, unused = _splits_with_labels([split for split in remaining if split not in train])
    validation, test = chosen["validation"], chosen["test"] or _split_for_role(layout, remaining, "test")
    offered, reason = _validation_candidate(remaining, test, validation), ""
    if not test and not validation:
        test = _split_for_role(layout, remaining, "validation", option="test")
        offered = None
        reason = "the validation split, since there is no test split with labels" if test else ""
    used = (*train, *validation, *test)
    _check_labels(layout, used)
    _check_inodes(layout, used)
    _check_row_roles(layout, train, used, test_is_drawn=not test)
    for split in used:
        split.check()
    for split in layout.splits:
        if split not in used and split not in unused:
            unused[split] = _reason_unused(split, offered)
    return Assignment(train, validation, test, tuple(unused.items()), reason, offered)


def _splits_by_option(layout: SourceLayout, data: Data) -> dict[Role, tuple[Split, ...]]:
    """The splits that the description names. Raises `InputError` where one is named twice."""
    chosen: dict[Role, tuple[Split, ...]] = {
        "train": choose_splits(layout, data.train, "--train") if data.train else (),
        "validation": choose_splits(layout, data.validation_split, "--validation")
        if data.validation_split
        else (),
        "test": choose_splits(layout, data.test, "--test") if data.test else (),
    }
    splits_chosen = [split for splits in chosen.values() for split in splits]
    duplicates = [split.name for split in splits_chosen if splits_chosen.count(split) > 1]
    if duplicates:
        raise InputError(
            f"split {duplicates[0]!r} is chosen twice; choose different splits to train and to test on"
        )
    return chosen


def _training_split(layout: SourceLayout, remaining: Sequence[Split]) -> tuple[Split, ...]:
    """The split whose name says that it is for training. Raises `InputError` where there is none."""
    train = _split_for_role(layout, remaining, "train")
    if not train:
        held_out = [split for split in layout.splits if split.roles] or layout.splits
        raise InputError(
            f"{layout.path}: has {_split_names(held_out)}, but no train split; choose with --train SPLIT "
            f"(it has: {_split_names(layout.splits)})"
        )
    return train


def _check_labels(layout: SourceLayout, splits: Sequence[Split]) -> None:
    for split in splits:
        if why := split.no_label_reason():
            remedy = f"; {split.advice}" if split.advice else ""
            whose = "" if split.name == "all" else f"split {split.name!r} has no labels: "
            raise InputError(f"{layout.path}: {whose}{why}{remedy}")


def _check_inodes(layout: SourceLayout, splits: Sequence[Split]) -> None:
    """Raises `InputError` where links make two classes, or two parts, the same folder."""
    places: dict[tuple[int, int], str] = {}
    for number, where in (pair for split in splits for pair in split.inodes):
        first = places.setdefault(number, where)
        if first != where:
            raise InputError(
                f"{layout.path}: a link makes {first} and {where} identical; remove the link, "
                "or choose other splits with --train SPLIT --test SPLIT"
            )


SPLIT_COLUMNS = ("split", "splits", "data_split", "split_name", "usage", "phase", "fold")
"""Columns that hold the split of each row, whatever their words are."""
MAX_PARTS = 20
SEPARATE_FILES = "write a file for each, as train.parquet and test.parquet, or drop the column"


def _check_row_roles(
    layout: SourceLayout, train: Sequence[Split], used: Sequence[Split], *, test_is_drawn: bool
) -> None:
    """Raises `InputError` where a column holds out rows that would be trained on.

    test_is_drawn: whether a fifth of the training rows becomes the test set.
    """
    for split in used:
        _refuse_contrary_rows(layout, split)
    values_by_column: dict[str, frozenset[str]] = {}
    for split in train:
        for column, values in split.row_roles().items():
            values_by_column[column] = values_by_column.get(column, frozenset()) | values
    for column, values in values_by_column.items():
        if _parts_rows(column, values) and (test_is_drawn or column.casefold() != "fold"):
            raise InputError(
                f"{layout.path}: column {column!r} says that rows are of "
                f"{listing(sorted(map(quote, values)), 5)}, and training would use all of them; "
                f"{SEPARATE_FILES}"
            )


def _refuse_contrary_rows(layout: SourceLayout, split: Split) -> None:
    """Raises `InputError` where a column contradicts the role in the name of the file."""
    for column, values in split.row_roles().items():
        wrong = sorted(
            value
            for value in values
            if split.roles
            and name_roles(value)
            and ("train" in name_roles(value)) != ("train" in split.roles)
        )
        if wrong:
            raise InputError(
                f"{layout.path}: {split.location} is {' or '.join(sorted(split.roles))} by its name, and its "
                f"column {column!r} says {listing([quote(value) for value in wrong], 3)}; {SEPARATE_FILES}"
            )


def _parts_rows(column: str, values: frozenset[str]) -> bool:
    """Whether these values divide the rows: `train` and `trainval` do not, nor unknown words in `set`."""
    meanings = {name_roles(value) for value in values}
    if len(values) < 2 or (len(meanings) == 1 and meanings != {frozenset()}):
        return False
    numbers = len(values) <= MAX_PARTS and all(value.lstrip("-").isdigit() for value in values)
    return len(meanings) > 1 or numbers or column.casefold() in SPLIT_COLUMNS


def _single_split(layout: SourceLayout) -> tuple[Split, ...]:
    """The only split. Raises `InputError` where there are several, since any may be held out."""
    if len(layout.splits) > 1:
        pooled = "+".join(split.name for split in layout.splits)
        raise InputError(
            f"{layout.path}: no name says which of {_split_names(layout.splits)} to train on; choose with "
            f"--train SPLIT --test SPLIT, or pool them: --train {shlex.quote(pooled)}"
        )
    return layout.splits


def _splits_with_labels(splits: Sequence[Split]) -> tuple[list[Split], dict[Split, str]]:
    """The splits with labels, and for each other held-out split why it has none."""
    reasons = {split: split.no_label_reason() for split in splits if split.roles - {"train"}}
    without = {split: why for split, why in reasons.items() if why}
    return [split for split in splits if split not in without], without


def _split_for_role(
    layout: SourceLayout, splits: Sequence[Split], role: Role, option: str = ""
) -> tuple[Split, ...]:
    """The one split for this role, if there is one. Raises `InputError` where there are several."""
    hits = [split for split in splits if role in split.roles]
    unclear = [split for split in hits if len(split.roles) > 1]
    if len(hits) > 1 or unclear:
        problem = f"several splits could be the {option or role} set: {_split_names(hits)}"
        if unclear:
            problem = f"{quote(unclear[0].name)} could be {' or '.join(sorted(unclear[0].roles))}"
        example = "+".join(split.name for split in hits) if role == "train" and not unclear else hits[0].name
        raise InputError(
            f"{layout.path}: {problem}; choose with --train SPLIT --test SPLIT, as --{option or role} "
            f"{shlex.quote(example)} (it has: {_split_names(layout.splits)})"
        )
    return tuple(hits)


def _validation_candidate(
    remaining: Sequence[Split], test: Sequence[Split], validation: Sequence[Split]
) -> str | None:
    hits = [split.name for split in remaining if split.roles == {"validation"} and split not in test]
    return hits[0] if len(hits) == 1 and not validation else None


def _reason_unused(split: Split, offered: str | None) -> str:
    if split.name == offered:
        return f"--validation {shlex.quote(split.name)} would hold it out"
    if split.damaged and not split.count:
        return "cannot be read"
    return "empty" if split.is_empty else "neither the train nor the test split"


def _split_names(splits: Sequence[Split]) -> str:
    return listing([split.name if split.name.isprintable() else quote(split.name) for split in splits])
