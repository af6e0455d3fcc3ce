"""One parquet file with a column of encoded images and a column of labels (pyarrow, an optional extra)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kilolayer.data.sources.parquet_columns import (
    ParquetColumns,
    import_arrow,
    is_image_type,
    is_integer_type,
    is_text_type,
)
from kilolayer.errors import InputError, KilolayerError
from kilolayer.system.message_text import error_text, quote

POINTER = b"version https://git-lfs"
"""How a file begins that Git LFS has not fetched."""
MOST_DICTIONARY = 2**30
"""Bytes of a row group up to which its images are read as a dictionary; pyarrow's ends at 2 GB."""
UNLABELLED = -1


@dataclass(frozen=True)
class Rows:
    """What one file holds: its class names, int64 labels (N,) that number them, and N encoded images.

    given: whether the names are a list of the file's, the values of its text column, or only numbers;
    column: the labels' name; spoken: numbers and what a text column calls them.
    """

    path: Path
    names: tuple[str, ...]
    naming: Literal["list", "text", "numbers"]
    labels: NDArray[np.int64]
    encoded: Any
    column: str
    number_names: tuple[tuple[int, str], ...] = ()

    def image(self, row: int) -> bytes:
        """The image in this row, as stored. Raises ValueError where there is none."""
        stored = self.encoded[row].as_py()
        if stored is None:
            raise ValueError("null")
        return bytes(stored)


class ParquetTable:
    """One file, of which only the end has been read.

    count: rows; size: bytes of all columns once decompressed. Raises InputError.
    """

    def __init__(self, path: Path, image: str | None = None, label: str | None = None) -> None:
        self.path = path
        schema, metadata = _parquet_errors(path, lambda: _read_footer(path))
        self.columns = ParquetColumns(path, schema, image, label)
        groups = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
        self.count, self.size, self._largest_group = metadata.num_rows, sum(groups), max(groups, default=0)

    def unlabelled(self) -> str:
        """Why no row has a label: no such column, only nulls, only −1; "" where any has."""
        if not self.columns.holds_labels():
            return self.columns.missing_label_reason()
        labels = self._column(self.columns.label)
        if len(labels) == labels.null_count:
            return "all labels are null" if len(labels) else ""
        return (
            "all labels are −1"
            if is_integer_type(labels.type) and _largest_label(labels) == UNLABELLED
            else ""
        )

    def splits(self) -> dict[str, tuple[str, ...]]:
        """The columns that can say which split a row is of, and what stands in them."""
        return {name: self._split_values(name) for name in self.columns.split}

    def flags(self, names: Callable[[str], bool]) -> dict[str, frozenset[int]]:
        """The columns with such names that hold nothing but 0 and 1, and which of them."""
        columns = [name for name in self.columns.flags if names(name)]
        values_by_column = {
            name: frozenset(self._column(name).unique().drop_null().to_pylist()) for name in columns
        }
        return {name: values for name, values in values_by_column.items() if values <= {0, 1}}

    def _split_values(self, name: str) -> tuple[str, ...]:
        values = tuple(map(str, self._texts(self._column(name).unique())))
        classes = self.columns.class_names(name)
        is_numbered = classes is not None and is_integer_type(self.columns.column_type(name))
        texts = {str(number): text for number, text in enumerate(classes or ()) if is_numbered}
        return tuple(texts.get(value, value) for value in values)

    def read(self) -> Rows:
        """The labels and the images, still encoded."""
        name = self.columns.label
        column = self._column(name)
        if column.null_count:
            raise InputError(f"{quote(self.path)}: {column.null_count:,} of {len(column):,} labels are null")
        names, naming, labels = self._labels(name, column)
        spoken = self._spoken(labels) if naming == "numbers" else ()
        return Rows(self.path, names, naming, labels, self._encoded(), name, spoken)

    def _spoken(self, labels: NDArray[np.int64]) -> tuple[tuple[int, str], ...]:
        """The labels' numbers and what the text beside them calls them."""
        texts = [self._texts(self._column(name)) for name in self.columns.label_texts[:1]]
        pairs = {pair for column in texts for pair in zip(labels.tolist(), column, strict=True)}
        return tuple(sorted((number, str(text)) for number, text in pairs if text is not None))

    def _labels(self, name: str, column: Any) -> tuple[tuple[str, ...], Any, NDArray[np.int64]]:
        """Class names, how they are given, and the label of each row."""
        if is_integer_type(column.type):
            names = self.columns.class_names(name)
            return names or (), "numbers" if names is None else "list", self._whole(name, column)
        if not is_text_type(column.type):
            raise self.columns.content_error(name, "label")
        texts = self._texts(column)
        names = tuple(sorted(set(texts)))
        class_index = {text: number for number, text in enumerate(names)}
        return names, "text", np.array([class_index[text] for text in texts], np.int64)

    def _whole(self, name: str, column: Any) -> NDArray[np.int64]:
        try:
            return np.asarray(column.cast(import_arrow().int64()).to_numpy(), np.int64)
        except ValueError as error:
            raise InputError(f"{quote(self.path)}: column {name!r}: {error_text(error)}") from None

    def _texts(self, column: Any) -> list[str]:
        texts: list[str] = _parquet_errors(
            self.path, lambda: column.cast(import_arrow().string()).to_pylist()
        )
        return texts

    def _encoded(self) -> Any:
        """The column of images. What is stored once and used in many rows is held once, not in every row."""
        name = self.columns.image
        kind = self.columns.column_type(name)
        if not is_image_type(kind):
            raise self.columns.content_error(name, "image")
        leaf = f"{name}.bytes" if import_arrow().types.is_struct(kind) else name

        def read() -> Any:
            once = [leaf] if self._largest_group < MOST_DICTIONARY else []
            with import_arrow().parquet.ParquetFile(self.path, read_dictionary=once) as file:
                # Group by group: pyarrow cannot read a dictionary within a struct over several of them.
                groups = [
                    file.read_row_group(i, columns=[leaf]).column(0) for i in range(file.num_row_groups)
                ]
            chunks = [chunk for group in groups for chunk in group.chunks]
            if leaf != name:
                chunks = [import_arrow().compute.struct_field(chunk, "bytes") for chunk in chunks]
            return import_arrow().chunked_array(chunks)

        return _parquet_errors(self.path, read)

    def _column(self, name: str) -> Any:
        def read() -> Any:
            with import_arrow().parquet.ParquetFile(self.path) as file:
                return file.read(columns=[name]).column(0)

        return _parquet_errors(self.path, read)


def _read_footer(path: Path) -> tuple[Any, Any]:
    """The schema and the metadata; the file is closed again, since there may be thousands."""
    with path.open("rb") as start:
        if start.read(len(POINTER)) == POINTER:
            raise InputError(f"{quote(path)}: only a pointer to a file; fetch it with: git lfs pull")
    with import_arrow().parquet.ParquetFile(path) as file:
        return file.schema_arrow, file.metadata


def _largest_label(labels: Any) -> int:
    return int(import_arrow().compute.max(labels).as_py())


def _parquet_errors(path: Path, action: Callable[[], Any]) -> Any:
    try:
        return action()
    except KilolayerError:
        raise
    except (OSError, ValueError, MemoryError, KeyError, import_arrow().ArrowException) as error:
        raise InputError(
            f"{quote(path)}: not a parquet file, or a damaged one ({error_text(error)})"
        ) from None
