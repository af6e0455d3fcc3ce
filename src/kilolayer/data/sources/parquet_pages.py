"""Counts what a parquet file declares, before pyarrow reads it (no pyarrow here).

A parquet file is columns, cut into groups of rows, cut into pages, with a footer that lists the columns. A
page is decompressed as a whole, to the size in its own header, and the footer may state any other size. So
the headers of the pages are read first: they are small, in Thrift's compact protocol, and state the size and
the number of values of each page.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from kilolayer.errors import InputError
from kilolayer.system.message_text import error_text, quote

MARK, ENCRYPTED_MARK = b"PAR1", b"PARE"
MOST_FOOTER = 64_000_000
SMALL_FOOTER = 1_000_000
"""A footer of this size is read as it is: its structures take 200 times its bytes at most."""
MOST_STRUCTURES = 500_000
MOST_HEADER = 16_000_000  # a header may hold the least and the largest picture of its page
MAX_DEPTH = 64
EXPANSION = 100
"""How many times the bytes of its file a column may become. Encoded pictures hardly compress again."""
SMALL = 64_000_000
"""The bytes that any column may become."""
SMALL_ROWS = 100_000
"""The rows that any file may have. Others have at most one row per byte."""
ADVICE = "if the data are genuine, write the file again, with each picture once, as PNG or JPEG"

DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2 = 0, 2, 3
DETAILS = {DATA_PAGE: 5, DICTIONARY_PAGE: 7, DATA_PAGE_V2: 8}
"""The fields of a header that hold the details of each kind of page."""
PLAIN_OR_DICTIONARY = (0, 2, 8)
"""The encodings that pyarrow reads as a dictionary. In others (DELTA_BYTE_ARRAY) a value may repeat the
beginning of the one before it: a byte becomes megabytes."""


@dataclass(frozen=True)
class PageCounts:
    """The pages of one column in one group of rows.

    size: their bytes after decompression. largest: those of the largest page. is_delta: whether values are
        stored by their differences, so that they may become more than `size`.
    """

    size: int = 0
    largest: int = 0
    is_delta: bool = False


def most_bytes(path: Path) -> int:
    """The bytes that a column of this file may become."""
    return SMALL + EXPANSION * path.stat().st_size


def check_rows(path: Path, rows: int) -> None:
    """Raises `InputError` where the footer declares more rows than a file of this size can mean."""
    size = path.stat().st_size
    if rows > SMALL_ROWS + size:
        raise InputError(
            f"{quote(path)}: declares {rows:,} rows in {size:,} bytes; allowed: {SMALL_ROWS + size:,} rows "
            f"({SMALL_ROWS:,}, and one more per byte); {ADVICE}"
        )


def check_size(path: Path, column: str, size: int) -> None:
    """Raises `InputError` where a column becomes larger than a file of this size can mean."""
    if size > most_bytes(path):
        raise InputError(
            f"{quote(path)}: column {column!r} becomes {size:,} bytes or more from a file of "
            f"{path.stat().st_size:,}; allowed: {most_bytes(path):,} ({SMALL:,}, and {EXPANSION} times the "
            f"file); {ADVICE}"
        )


def check_footer(path: Path) -> None:
    """Raises `InputError` where the footer is encrypted, or would fill the memory once it is read."""
    with path.open("rb") as file:
        end = file.seek(0, 2)
        file.seek(max(0, end - 8))
        tail = file.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] == ENCRYPTED_MARK:
            raise InputError(f"{quote(path)}: is encrypted; write it again without encryption")
        if tail[4:] != MARK or length > end - 8 or length <= SMALL_FOOTER:
            return  # pyarrow says what is wrong
        if length > MOST_FOOTER:
            raise InputError(
                f"{quote(path)}: its footer has {length:,} bytes; allowed: {MOST_FOOTER:,}; "
                "write it again with larger groups of rows, or split it into several files"
            )
        file.seek(end - 8 - length)
        footer = CompactReader(file.read(length))
    try:
        footer.structure()
    except TooManyStructures:
        raise InputError(
            f"{quote(path)}: its footer lists more than {MOST_STRUCTURES:,} columns and groups of rows; "
            "write it again with larger groups of rows, or split it into several files"
        ) from None
    except (EOFError, ValueError) as error:
        raise InputError(f"{quote(path)}: its footer is damaged ({error_text(error)})") from None


def count_pages(path: Path, column: str, chunks: list[tuple[int, int, int]]) -> list[PageCounts]:
    """What the pages of a column become, for each group of rows.

    chunks: for each group, the first byte of its pages, the number of their bytes, and of their values.
    Raises `InputError` where the pages are damaged, or become more than the file's size allows.
    """
    counts, total = [], 0
    try:
        with path.open("rb") as file:
            for chunk in chunks:
                pages = PageCounts()
                for kind, size, encoding in _pages(file, *chunk):
                    total += size
                    check_size(path, column, total)
                    is_delta = kind in (DATA_PAGE, DATA_PAGE_V2) and encoding not in PLAIN_OR_DICTIONARY
                    pages = PageCounts(
                        pages.size + size, max(pages.largest, size), pages.is_delta or is_delta
                    )
                counts.append(pages)
    except (EOFError, ValueError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{quote(path)}: column {column!r} has damaged or encrypted pages ({error_text(error)})"
        ) from None
    return counts


def _pages(file: BinaryIO, start: int, length: int, values: int) -> Iterator[tuple[int, int, int]]:
    """The kind, the decompressed size and the encoding of each page, until all values are there."""
    end = file.seek(0, 2)
    if start < 4 or length < 0 or start + length > end:
        raise ValueError(f"bytes {start:,} to {start + length:,} of {end:,}")
    position, end = start, start + length
    while values > 0 and position < end:
        header, size = _page_header(file, position, end)
        kind, decoded, stored = (header.get(number, -1) for number in (1, 2, 3))
        if min(kind, decoded, stored) < 0:
            raise ValueError("a header without sizes")
        details = header.get(DETAILS.get(kind, 0), {})
        count, encoding = details.get(1, 0), details.get(4 if kind == DATA_PAGE_V2 else 2, 0)
        if count < 0 or (kind != DICTIONARY_PAGE and count > values):
            raise ValueError(f"a page of {count:,} values, where {values:,} are left")
        yield kind, decoded, encoding
        position += size + stored
        values -= count if kind in (DATA_PAGE, DATA_PAGE_V2) else 0
    if values > 0:
        raise ValueError(f"{values:,} values fewer than the footer states")


def _page_header(file: BinaryIO, position: int, end: int) -> tuple[dict[int, Any], int]:
    """The fields of the header at this position, by their numbers, and its bytes."""
    size = 256
    while True:
        file.seek(position)
        reader = CompactReader(file.read(min(size, end - position)))
        try:
            return reader.structure(), reader.at
        except EOFError:
            if size >= min(MOST_HEADER, end - position):
                raise
            size *= 8


class TooManyStructures(ValueError):
    """More than `MOST_STRUCTURES` structures in one text of Thrift."""


class CompactReader:
    """Reads structures in Thrift's compact protocol. Numbers and structures are kept, all others passed over.

    Raises `EOFError` at the end of the bytes, `ValueError` for what is not of this protocol.
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.structures = data, 0, 0

    def structure(self, depth: int = 0) -> dict[int, Any]:
        """The fields by number."""
        self.structures += 1
        if self.structures > MOST_STRUCTURES:
            raise TooManyStructures(f"more than {MOST_STRUCTURES:,} structures")
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) != 0:
            number = number + (head >> 4) if head >> 4 else self._integer()
            kind = head & 15
            value = None if kind in (1, 2) else self._value(kind, depth)  # truth values are in the head
            if value is not None:
                fields[number] = value
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        match kind:
            case 1 | 2 | 3:  # in a list a truth value has a byte
                self._skip(1)
            case 4 | 5 | 6:
                return self._integer()
            case 7:
                self._skip(8)
            case 8:
                self._skip(self._varint())
            case 9 | 10:
                head = self._byte()
                count = head >> 4 if head >> 4 != 15 else self._varint()
                self._values(head & 15, count, depth)
            case 11:
                count = self._varint()
                kinds = self._byte() if count else 0
                for _ in range(count):
                    self._value(kinds >> 4, depth)
                    self._value(kinds & 15, depth)
            case 12:
                return self.structure(depth + 1)
            case 13:
                self._skip(16)
            case _:
                raise ValueError(f"no kind of field has the number {kind}")
        return None

    def _values(self, kind: int, count: int, depth: int) -> None:
        if kind in (1, 2, 3):
            self._skip(count)
            return
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        for _ in range(count):
            self._value(kind, depth + 1)

    def _skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self.data):
            raise EOFError("it ends too early")

    def _byte(self) -> int:
        self._skip(1)
        return self.data[self.at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
