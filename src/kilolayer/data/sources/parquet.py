"""Parquet files as Hugging Face stores them: single files or folders of shards; names tell the splits."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from kilolayer.data.config import Data
from kilolayer.data.pictures.decoding import EncodedPictures
from kilolayer.data.sources.classes import NamedPictures
from kilolayer.data.sources.parquet_table import ParquetTable, import_arrow
from kilolayer.data.sources.scan import FolderTree
from kilolayer.data.sources.splits import Role, SourceLayout, Split, name_roles
from kilolayer.errors import InputError
from kilolayer.system.message_text import listing, quote

ENDING = ".parquet"
MOST_CLASSES = 100_000
_SHARD = re.compile(r"(^part[-_.]?\d.*|(?:^|[-_. ]+)\d+)?(?:[-_. ]of[-_. ]\d+)?(?:[-_.][0-9a-f]{16})?$")
"""The part of a name that numbers shards: -00000-of-00002, _3, 0000, and the hash that hubs append."""


_COPY = re.compile(r"\s*(?:\(\d+\)|[-_ ]copy(?:[-_ ]?\d+)?)$", re.IGNORECASE)
"""The ending that browsers and systems give the second copy of a file."""
_TOTAL = re.compile(r"[-_. ]of[-_. ](\d+)")


def is_parquet(path: Path) -> bool:
    return path.suffix.casefold() == ENDING


def parquet_files(root: FolderTree) -> list[Path]:
    """The parquet files in a folder and below it."""
    return sorted(path for folder in root.walk() for path in folder.other_files if is_parquet(path))


def holds_images(files: Sequence[Path]) -> bool:
    """Whether any of these files has a column of images; names and numbers alone are not a data set."""
    return any(ParquetTable(path).columns.holds_images() for path in files)


def parquet_layout(root: Path, files: Sequence[Path], data: Data) -> SourceLayout:
    """The splits in these files of `root`. Raises `InputError`."""
    import_arrow()
    if root.is_file():
        split = replace(
            _parquet_split("all", frozenset(), [root], data, root), training_notes=_role_notes(root)
        )
        return SourceLayout(root.resolve().stem, quote(root), (split,))
    if data.train is None:
        _refuse_second_downloads(root, files)
    groups: dict[tuple[str, str], tuple[str, list[Path]]] = {}
    for path in files:
        above, name = _split_name(path.relative_to(root))
        groups.setdefault((above, name.casefold()), (name, []))[1].append(path)
    configurations = sorted({above for above, _ in groups})
    has_configurations = len(configurations) > 1
    splits = tuple(
        _parquet_split(
            f"{above}/{name}" if has_configurations and above else name, name_roles(name), paths, data, root
        )
        for (above, _), (name, paths) in groups.items()
    )
    if has_configurations and data.train is None:
        _refuse_configurations(root, configurations, splits)
    return SourceLayout(root.resolve().name, quote(root), splits)


def _role_notes(path: Path) -> tuple[str, ...]:
    """A note where a file that is trained on is held out by its name."""
    held_out = sorted(name_roles(path.stem) - {"train"})
    return (
        (f"{quote(path.name)} is {' or '.join(held_out)} by its name, and is trained on",) if held_out else ()
    )


def _refuse_second_downloads(root: Path, files: Sequence[Path]) -> None:
    """Refuses two copies of a file. In a pool, rows would be trained on twice, or trained and tested on."""
    by_stem = {path.with_name(path.stem): path for path in files}
    for path in files:
        first = by_stem.get(path.with_name(re.sub(_COPY, "", path.stem)))
        if first is not None and first != path:
            raise InputError(
                f"{quote(root)}: {quote(path.name)} looks like a second download of {quote(first.name)}; "
                "delete one of them, or choose with --train SPLIT"
            )


def _refuse_configurations(root: Path, configurations: Sequence[str], splits: Sequence[Split]) -> None:
    names = [name for name in configurations if name]
    train = next((split.name for split in splits if "train" in split.roles), splits[0].name)
    test = next((split.name for split in splits if "test" in split.roles), "SPLIT")
    more_files = ", and files beside them" if "" in configurations else ""
    raise InputError(
        f"{quote(root)}: holds several configurations: {listing([quote(name) for name in names])}"
        f"{more_files}; name the folder of one, as {quote(root / names[0])}, or choose its splits: "
        f"--train {shlex.quote(train)} --test {shlex.quote(test)}"
    )


def _split_name(path: Path) -> tuple[str, str]:
    """The configuration and the split of a file, by its path.

    The innermost name with a role decides: `train-00000-of-00002.parquet` and
        `CONFIGURATION/train/0000.parquet` both belong to `train`.
    """
    names = [*path.parts[:-1], path.name[: -len(ENDING)]]
    at = next((i for i in range(len(names) - 1, -1, -1) if name_roles(names[i])), len(names) - 1)
    bare = re.sub(_SHARD, "", names[at]).strip("-_. ")
    if name_roles(bare):
        bare = bare.rstrip("0123456789-_. ")
    return "/".join(name for name in names[:at] if name != "data"), bare or "all"


def _parquet_split(
    name: str, purposes: frozenset[Role], paths: Sequence[Path], data: Data, root: Path
) -> Split:
    tables = [_open_table(path, data) for path in paths]
    sound = [table for table in tables if isinstance(table, ParquetTable)]

    @cache
    def no_label_reason() -> str:
        reasons = [table.no_label_reason() for table in sound if table.count]
        return reasons[0] if reasons and all(reasons) else ""

    more = f" and {len(paths) - 1:,} more {'file' if len(paths) == 2 else 'files'}" if len(paths) > 1 else ""
    return Split(
        name,
        purposes,
        f"{quote(paths[0].relative_to(root) if root.is_dir() else paths[0].name)}{more}",
        sum(table.count for table in sound),
        no_label_reason,
        tuple(
            partial(_read_pictures, table)
            for table in tables
            if not isinstance(table, ParquetTable) or table.count
        ),
        size=sum(table.size for table in sound),
        damaged=len(sound) < len(tables),
        notes=_missing_shard_notes(name, paths),
        row_roles=cache(lambda: _row_roles(sound)),
        inodes=tuple(_inode(path) for path in paths),
    )


def _inode(path: Path) -> tuple[tuple[int, int], str]:
    state = path.stat()
    return (state.st_dev, state.st_ino), quote(path)


def _row_roles(tables: Sequence[ParquetTable]) -> dict[str, frozenset[str]]:
    """The columns that assign rows to splits, with their values. A flag's values are its name and "no"."""
    values_by_column: dict[str, frozenset[str]] = {}
    for table in tables:
        flags = table.flags(lambda name: bool(name_roles(name)))
        columns = {name: {name if flag else "no" for flag in values} for name, values in flags.items()}
        for name, values in (*table.splits().items(), *columns.items()):
            values_by_column[name] = values_by_column.get(name, frozenset()) | frozenset(values)
    return values_by_column


def _missing_shard_notes(name: str, paths: Sequence[Path]) -> tuple[str, ...]:
    """A note where names such as train-00000-of-00003 announce more files than exist."""
    totals = [int(match.group(1)) for path in paths if (match := _TOTAL.search(path.stem))]
    if not totals or len(paths) >= max(totals):
        return ()
    return (f"files of {name}: {len(paths):,} of {max(totals):,} are here, by the numbers in their names",)


def _refuse_splits_of_rows(table: ParquetTable) -> None:
    for column, values in table.splits().items():
        purposes = {purpose for value in values for purpose in name_roles(value)}
        if len(purposes) > 1:
            rows = f"column {column!r} says that rows are of {listing(sorted(values), 5)}"
            raise InputError(
                f"{quote(table.path)}: {rows}; write a file for each, as train.parquet and test.parquet"
            )


def _open_table(path: Path, data: Data) -> ParquetTable | InputError:
    """The table of a file, or the error of a damaged file. The error is raised where the file is used."""
    try:
        return ParquetTable(path, data.image_column, data.label_column)
    except InputError as error:
        return error


def _read_pictures(table: ParquetTable | InputError) -> NamedPictures:
    if isinstance(table, InputError):
        raise table
    _refuse_splits_of_rows(table)
    rows = table.read()
    names = rows.names
    if rows.naming == "numbers":
        names = tuple(str(number) for number in range(min(MOST_CLASSES, 1 + int(rows.labels.max()))))
    where = quote(rows.path)
    pictures = EncodedPictures(
        rows.labels, rows.image, lambda row: f"{where} row {row}", contents=rows.encoded.index
    )
    return NamedPictures(pictures, names, where, rows.naming, rows.column, number_names=rows.number_names)
