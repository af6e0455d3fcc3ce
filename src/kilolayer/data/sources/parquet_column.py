"""Reads a column of a parquet file in parts, with every distinct value held once (needs pyarrow)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kilolayer.data.sources.parquet_pages import PageCounts, check_size, count_pages, most_bytes
from kilolayer.errors import InputError
from kilolayer.system.memory_limit import require_memory
from kilolayer.system.message_text import quote

PART = 64_000_000
"""The bytes that are decoded at a time."""
MOST_DICTIONARY = 2**30
"""The bytes of a row group up to which pyarrow keeps a dictionary; its limit is 2 GB."""
MOST_TIMES = 16
"""Where rows repeat the beginnings of others: how many times the bytes allowed are decoded at most."""
ROW_BYTES = 500
"""The bytes that a row takes beside its image: its label, its place, what an inspection says of it."""
NULL = -1


@dataclass(frozen=True)
class StoredValues:
    """A column of byte strings: the distinct values, and for each row the index of its value (or `NULL`)."""

    values: list[bytes]
    index: NDArray[np.int64]

    @property
    def nbytes(self) -> int:
        """The bytes of the distinct values, and of the index."""
        return sum(map(len, self.values)) + self.index.nbytes

    @property
    def null_count(self) -> int:
        return int((self.index == NULL).sum())

    def __len__(self) -> int:
        return len(self.index)

    def value_texts(self) -> list[str]:
        """The distinct values as text. Raises `UnicodeDecodeError`."""
        return [value.decode() for value in self.values]

    def texts(self) -> list[str | None]:
        """The text of each row; equal texts are one object. Raises `UnicodeDecodeError`."""
        texts = self.value_texts()
        return [None if at == NULL else texts[at] for at in self.index.tolist()]


class ColumnReader:
    """Reads one leaf column. Its pages have been counted, so that it fits into memory.

    leaf: the path of the column, as `image.bytes`. Raises `InputError` where its pages are damaged, or become
    more than the file's size or the memory allows.
    """

    def __init__(self, arrow: Any, path: Path, metadata: Any, leaf: str) -> None:
        self._arrow, self._path, self._metadata, self._leaf = arrow, path, metadata, leaf
        self._groups = [i for i in range(metadata.num_row_groups) if metadata.row_group(i).num_rows]
        self._pages = count_pages(path, leaf, [self._chunk(i) for i in self._groups])
        self._most = most_bytes(path)
        size = sum(pages.size for pages in self._pages) + ROW_BYTES * metadata.num_rows
        require_memory(size, f"{quote(path)}: the values of column {leaf!r}", "split the file")

    def _chunk(self, group: int) -> tuple[int, int, int]:
        """The first byte of a group's pages, the number of their bytes, and of their values."""
        described = self._metadata.row_group(group)
        columns = (described.column(i) for i in range(described.num_columns))
        column = next((column for column in columns if column.path_in_schema == self._leaf), None)
        if column is None or column.num_values != described.num_rows:
            raise InputError(f"{quote(self._path)}: column {self._leaf!r} is not a column of single values")
        start = column.data_page_offset
        if column.has_dictionary_page and 0 < (column.dictionary_page_offset or 0) < start:
            start = column.dictionary_page_offset
        return start, column.total_compressed_size, column.num_values

    def arrays(self) -> Iterator[Any]:
        """The column in parts, as stored."""
        for group, pages in zip(self._groups, self._pages, strict=True):
            yield from self._parts(group, pages, once=False)

    def distinct(self) -> StoredValues:
        """The column of byte strings or texts, with each distinct value held once."""
        collected = _Collected()
        for group, pages in zip(self._groups, self._pages, strict=True):
            once = not pages.is_delta and pages.size < MOST_DICTIONARY
            for part in self._parts(group, pages, once=once):
                collected.add(self._arrow, part)
                check_size(self._path, self._leaf, collected.held)
                check_size(self._path, self._leaf, collected.decoded // MOST_TIMES)
        return StoredValues(collected.values, np.concatenate([np.empty(0, np.int64), *collected.index]))

    def _parts(self, group: int, pages: PageCounts, *, once: bool) -> Iterator[Any]:
        rows = self._metadata.row_group(group).num_rows
        # With `once` the pages become no more than their size; otherwise each value as large as a page.
        count = rows * PART // max(PART, pages.size) if once else PART // max(1, pages.largest)
        options = {"metadata": self._metadata, "pre_buffer": False}
        if once:
            options["read_dictionary"] = [self._leaf]
        with self._arrow.parquet.ParquetFile(self._path, **options) as file:
            batches = file.iter_batches(
                max(1, min(count, 65_536)), row_groups=[group], columns=[self._leaf], use_threads=False
            )
            for batch in batches:
                column = batch.column(0)
                if self._arrow.types.is_struct(column.type):
                    column = self._arrow.compute.struct_field(column, self._leaf.rpartition(".")[2])
                yield column


class _Collected:
    """Distinct values, and the index of each row's value."""

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.index: list[NDArray[np.int64]] = []
        self.held = self.decoded = 0
        self._numbers: dict[bytes, int] = {}

    def add(self, arrow: Any, part: Any) -> None:
        """Adds the rows of one array, which may be a dictionary."""
        indices = np.arange(len(part))
        stored = part
        if arrow.types.is_dictionary(part.type):
            stored, filled = part.dictionary, part.indices.fill_null(NULL)
            indices = np.asarray(filled, np.int64)
        wanted = np.unique(indices[indices != NULL])
        numbers = np.full(len(stored) + 1, NULL, np.int64)  # the last is that of NULL
        for at in wanted.tolist():
            numbers[at] = self._number(stored[at].as_buffer())
        self.index.append(numbers[indices])

    def _number(self, value: Any) -> int:
        if value is None:
            return NULL
        raw: bytes = value.to_pybytes()
        self.decoded += len(raw)
        key = raw if len(raw) <= 32 else blake2b(raw, digest_size=32).digest()
        number = self._numbers.setdefault(key, len(self.values))
        if number == len(self.values):
            self.values.append(raw)
            self.held += len(raw)
        return number
