"""Hugging Face parquet: an image column of structs {bytes, path} beside a column of whole-number labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kilolayer.data.describe import Data
from kilolayer.data.images import Source
from kilolayer.data.labelled import fifth, source
from kilolayer.data.memory import require_memory
from kilolayer.data.pictures import Pictures
from kilolayer.data.table import Rows, Table
from kilolayer.data.wording import quoted
from kilolayer.errors import InputError

TEST = ("test", "validation", "valid", "val")
MOST_CLASSES = 100_000


def parquet_files(root: Path) -> list[Path]:
    """The parquet files at this path, in it, or in its `data` folder, where Hugging Face puts them."""
    if root.is_file():
        return [root] if root.suffix == ".parquet" else []
    return sorted(root.glob("*.parquet")) or sorted((root / "data").glob("*.parquet"))


def parquet(root: Path, data: Data) -> Source:
    """The data set in this file or folder. Raises InputError."""
    train_tables, test_tables = ([Table(path) for path in paths] for paths in parts(root))
    kept = sum(table.size for table in (*train_tables, *test_tables))
    require_memory(kept, f"the encoded images of {quoted(root)}")
    train_rows, test_rows = [table.read() for table in train_tables], [table.read() for table in test_tables]
    classes = class_names(train_rows + test_rows)
    train, test = pictures(train_rows), pictures(test_rows)
    if not test_tables:
        drawn = fifth(train.labels, classes, data.split_seed)
        train, test = train.take(np.flatnonzero(~drawn)), train.take(np.flatnonzero(drawn))
    name = root.resolve().stem if root.is_file() else root.resolve().name
    return source(
        name,
        classes,
        train,
        test,
        data.image_size,
        appearance=data.appearance,
        skip_damaged=data.skip_damaged,
        kept=kept,
    )


def parts(root: Path) -> tuple[list[Path], list[Path]]:
    """Training and test files, by how their names begin; a single file or any other names: training."""
    files = parquet_files(root)
    if root.is_file():
        return files, []
    train = [path for path in files if path.name.startswith("train")]
    tests = [[path for path in files if path.name.startswith(name)] for name in TEST]
    test = next((found for found in tests if found), [])
    if test and not train:
        raise InputError(f"{quoted(root)}: has {test[0].name} but no train-*.parquet")
    return train or files, test


def pictures(part: list[Rows]) -> Pictures:
    """The rows of these tables, one after the other."""
    labels = [rows.labels for rows in part]
    starts = np.cumsum([0, *(len(each) for each in labels)])

    def place(i: int) -> tuple[Rows, int]:
        number = int(np.searchsorted(starts, i, "right")) - 1
        return part[number], i - int(starts[number])

    def raw(i: int) -> bytes:
        rows, row = place(i)
        return rows.image(row)

    def where(i: int) -> str:
        rows, row = place(i)
        return f"{quoted(rows.path)} row {row}"

    return Pictures(np.concatenate([np.empty(0, np.int64), *labels]), raw, where)


def class_count(part: list[Rows]) -> int:
    """As many as there are names, or else as the greatest label asks for."""
    return len(part[0].names) or min(MOST_CLASSES, 1 + max(int(rows.labels.max()) for rows in part))


def class_names(part: list[Rows]) -> tuple[str, ...]:
    """The classes of these tables. Raises `InputError` for labels outside of them."""
    names, count = part[0].names, class_count(part)
    for rows in part:
        wrong = np.flatnonzero((rows.labels < 0) | (rows.labels >= count))
        if len(wrong):
            where = f"{quoted(rows.path)} row {wrong[0]}"
            raise InputError(
                f"{where}: label {rows.labels[wrong[0]]} is outside the classes 0 to {count - 1}"
            )
    return names or tuple(str(number) for number in range(count))
