"""Which files or folders are for training and which are held out, by the words in their names.

One table of words and one rule, for parquet files and for folders of images alike:

- what `--train`, `--test` and `--validation` name is taken; the rest follows from the words;
- a test split whose pictures have no labels is not used;
- without a test split the validation split is the test set; beside one it is held out as the validation set
  where that is asked for (`kilolayer train` asks by default);
- two splits of one kind, or a held-out split without a training split, are refused with the choice;
- without any such word all pictures are one pool, of which a fifth of each class becomes the test set.
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
    """What a name says a split is for: `seg_train`, `TestSet` and `val2017` say one thing, `cats` nothing."""
    text = f" {' '.join(_PIECES.findall(name)).casefold()} "
    return frozenset(role for role, words in ROLE_WORDS.items() if any(f" {word} " in text for word in words))


@dataclass(frozen=True, eq=False)
class Split:
    """Some pictures that belong together.

    name: what chooses it; roles: what its name says it is for; where: its files or folder, in words;
    count: how many pictures; unlabelled: why its pictures have no labels, "" where they have;
    lots: the pictures, each file's with its own class names, read when called;
    size: bytes that they take in memory, encoded; damaged: whether a file cannot even be opened;
    no_files: what is neither file nor folder, which `skip_damaged` passes over;
    astray: links in place of class folders; empty: class folders without pictures;
    beside: pictures beside its class folders, which are not used;
    remedy: what to do where it has no labels; notes: what else there is to say;
    trained: what there is to say where it is trained on;
    check: raises `InputError` where its pictures can be read in two ways;
    purposes: the columns that say which rows are held out, and what stands in them;
    numbers: device and inode of its files or folders, and where each is.
    """

    name: str
    roles: frozenset[Role]
    location: str
    count: int
    unlabelled: Callable[[], str]
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
        """Whether it is as good as not there; one of empty class folders is a copy that failed."""
        return not (self.count or self.empty_folders or self.damaged)


@dataclass(frozen=True)
class SourceLayout:
    """All splits of a source, how figures name it, and what was passed over, a line each.

    beside: pictures beside the folders of its splits, which are not used.
    """

    name: str
    path: str
    splits: tuple[Split, ...]
    notes: tuple[str, ...] = ()
    unused_pictures: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Assignment:
    """What is trained on, what is held out, and what is not used and why.

    test: empty where a fifth of the training pictures becomes the test set.
    offered: the validation split that `Data.validation_split` could name.
    """

    train: tuple[Split, ...]
    validation: tuple[Split, ...]
    test: tuple[Split, ...]
    unused: tuple[tuple[Split, str], ...] = ()
    reason: str = ""
    available_validation: str | None = None

    def parts(self) -> dict[str, tuple[Split, ...]]:
        """The parts that there are, by name; `train` always."""
        splits_by_part = {"train": self.train, "validation": self.validation, "test": self.test}
        return {part: splits for part, splits in splits_by_part.items() if splits or part == "train"}

    @property
    def used(self) -> tuple[Split, ...]:
        return (*self.train, *self.validation, *self.test)

    def lines(self, num_drawn: int | None = None) -> tuple[str, ...]:
        """What is used as what, a line for each part. drawn: how many pictures became the test set."""
        used = [f"{part}: {_described_splits(splits)}" for part, splits in self.parts().items()]
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
            *(f"not used: {_described_splits([split])}: {why}" for split, why in self.unused),
        )


def _described_splits(splits: Sequence[Split]) -> str:
    return " and ".join(f"{quantity(split.count, 'image')} of {split.location}" for split in splits)


def choose_splits(layout: SourceLayout, names: str, option: str) -> tuple[Split, ...]:
    """The splits that `names` means, joined by `+`: as written, in another case, by a word within, or
    by what they are for.

    Raises `InputError` that lists the splits there are.
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
    """Decides what each split is for. Raises `InputError` with the choice where that is not plain."""
    chosen = _splits_by_option(layout, data)
    chosen_splits = {split for splits in chosen.values() for split in splits}
    remaining = [split for split in layout.splits if split not in chosen_splits and not split.is_empty]
    is_pool = not chosen_splits and not any(split.roles for split in layout.splits)
    train = chosen["train"] or (_single_split(layout) if is_pool else _training_split(layout, remaining))
    remaining, unused = _labelled_splits([split for split in remaining if split not in train])
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
            unused[split] = _unused_reason(split, offered)
    return Assignment(train, validation, test, tuple(unused.items()), reason, offered)


def _splits_by_option(layout: SourceLayout, data: Data) -> dict[Role, tuple[Split, ...]]:
    """The splits that are chosen by name. Raises `InputError` where one is chosen twice."""
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


def _training_split(layout: SourceLayout, rest: Sequence[Split]) -> tuple[Split, ...]:
    """The split whose name says that it is for training. Raises `InputError` where there is none."""
    train = _split_for_role(layout, rest, "train")
    if not train:
        held_out = [split for split in layout.splits if split.roles] or layout.splits
        raise InputError(
            f"{layout.path}: has {_split_names(held_out)}, but no train split; choose with --train SPLIT "
            f"(it has: {_split_names(layout.splits)})"
        )
    return train


def _check_labels(layout: SourceLayout, splits: Sequence[Split]) -> None:
    for split in splits:
        if why := split.unlabelled():
            remedy = f"; {split.advice}" if split.advice else ""
            whose = "" if split.name == "all" else f"split {split.name!r} has no labels: "
            raise InputError(f"{layout.path}: {whose}{why}{remedy}")


def _check_inodes(layout: SourceLayout, splits: Sequence[Split]) -> None:
    """Raises `InputError` where a link makes two classes, or two parts, one and the same."""
    places: dict[tuple[int, int], str] = {}
    for number, where in (pair for split in splits for pair in split.inodes):
        first = places.setdefault(number, where)
        if first != where:
            raise InputError(
                f"{layout.path}: {first} and {where} are one and the same, by a link; remove the link, "
                "or choose other splits with --train SPLIT --test SPLIT"
            )


SPLIT_COLUMNS = ("split", "splits", "data_split", "split_name", "usage", "phase", "fold")
"""Columns that say which rows are held out whatever the words in them are."""
MAX_PARTS = 20
SEPARATE_FILES = "write a file for each, as train.parquet and test.parquet, or drop the column"


def _check_row_roles(
    layout: SourceLayout, train: Sequence[Split], used: Sequence[Split], *, test_is_drawn: bool
) -> None:
    """Raises `InputError` where a column says of rows that they are held out, and nothing reads it.

    drawn: whether a fifth of the training rows becomes the test set.
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
                f"{listing(sorted(map(quote, values)), 5)}, all of which would be trained on; {SEPARATE_FILES}"
            )


def _refuse_contrary_rows(layout: SourceLayout, split: Split) -> None:
    """Raises `InputError` where rows of a training file are held out by a column, or the reverse."""
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
    """Whether these values part the rows: `train` and `trainval` do not, nor do other words in `set`."""
    meanings = {name_roles(value) for value in values}
    if len(values) < 2 or (len(meanings) == 1 and meanings != {frozenset()}):
        return False
    numbers = len(values) <= MAX_PARTS and all(value.lstrip("-").isdigit() for value in values)
    return len(meanings) > 1 or numbers or column.casefold() in SPLIT_COLUMNS


def _single_split(layout: SourceLayout) -> tuple[Split, ...]:
    """The only split. Raises `InputError` where there are several, since any of them may be held out."""
    if len(layout.splits) > 1:
        pooled = "+".join(split.name for split in layout.splits)
        raise InputError(
            f"{layout.path}: nothing says which of {_split_names(layout.splits)} are to be trained on; choose with "
            f"--train SPLIT --test SPLIT, or pool them: --train {shlex.quote(pooled)}"
        )
    return layout.splits


def _labelled_splits(splits: Sequence[Split]) -> tuple[list[Split], dict[Split, str]]:
    """Those splits that can be tested on, and why other held-out splits cannot."""
    reasons = {split: split.unlabelled() for split in splits if split.roles - {"train"}}
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


def _unused_reason(split: Split, offered: str | None) -> str:
    if split.name == offered:
        return f"--validation {shlex.quote(split.name)} holds it out"
    if split.damaged and not split.count:
        return "cannot be read"
    return "empty" if split.is_empty else "neither the train nor the test split"


def _split_names(splits: Sequence[Split]) -> str:
    return listing([split.name if split.name.isprintable() else quote(split.name) for split in splits])
