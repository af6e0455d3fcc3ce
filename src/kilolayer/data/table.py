"""One parquet file with a column of encoded images and a column of labels (pyarrow, an optional extra)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kilolayer.data.wording import brief, listed, quoted, shortened
from kilolayer.errors import InputError

IMAGE = (("image", "img"), ("jpg", "jpeg", "png", "webp"), ("picture", "photo", "pixels", "image_bytes"))
LABEL = (("label", "labels"), ("fine_label",), ("class", "target", "category", "cls", "class_label"))
"""Names of columns, the more usual first; two of one row in one file are ambiguous."""
FITTING = {"image": "encoded bytes (JPEG, PNG …), or structs of them", "label": "whole numbers or text"}
SPLIT = ("split", "splits", "subset", "partition", "phase", "set")
"""Columns that can say which split a row is of."""
POINTER = b"version https://git-lfs"
"""How a file begins that Git LFS has not fetched."""
MOST_DICTIONARY = 2**30
"""Bytes of a row group up to which its images are read as a dictionary; pyarrow's ends at 2 GB."""
UNLABELLED = -1


@dataclass(frozen=True)
class Rows:
    """What one file holds: its class names, int64 labels (N,) that number them, and N encoded images.

    given: whether the names are a list of the file's, the values of its text column, or only numbers;
    column: the labels' name.
    """

    path: Path
    names: tuple[str, ...]
    given: Literal["list", "text", "numbers"]
    labels: NDArray[np.int64]
    encoded: Any
    column: str

    def image(self, row: int) -> bytes:
        """The image in this row, as stored. Raises ValueError where there is none."""
        stored = self.encoded[row].as_py()
        if stored is None:
            raise ValueError("null")
        return bytes(stored)


class Table:
    """One file, of which only the end has been read.

    count: rows; size: bytes of all columns once decompressed. Raises InputError.
    """

    def __init__(self, path: Path, image: str | None = None, label: str | None = None) -> None:
        self.path = path
        self._schema, self._metadata = _trying(path, lambda: _end(path))
        self._wanted = (image, label)
        metadata = self._metadata
        self.count = metadata.num_rows
        self.size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))

    def holds_images(self) -> bool:
        """Whether there is a column that may hold encoded images."""
        return any(_holds_bytes(field.type) for field in self._schema)

    def unlabelled(self) -> str:
        """Why no row has a label: no such column, only nulls, only −1; "" where any has."""
        fitting = any(self._label_columns())
        if not fitting and not self._has_label_name():
            which = f"column {self._wanted[1]!r}" if self._wanted[1] else "label column with a usual name"
            return f"no {which}; choose one with --label-column NAME; its columns are {self._columns()}"
        if not fitting:
            return ""  # a column with such a name that holds no labels: `read` says so
        labels = self._column(self.label)
        if len(labels) == labels.null_count:
            return "all labels are null" if len(labels) else ""
        return "all labels are −1" if _is_whole(labels.type) and _most(labels) == UNLABELLED else ""

    def splits(self) -> dict[str, tuple[str, ...]]:
        """The columns that can say which split a row is of, and what stands in them."""
        names = [
            field.name for field in self._schema if field.name.casefold() in SPLIT and _is_text(field.type)
        ]
        return {name: tuple(map(str, self._column(name).unique().to_pylist())) for name in names}

    def read(self) -> Rows:
        """The labels and the images, still encoded."""
        labels = self._column(self.label)
        if labels.null_count:
            raise InputError(f"{quoted(self.path)}: {labels.null_count:,} of {len(labels):,} labels are null")
        names, given, numbers = self._labels(labels)
        return Rows(self.path, names, given, numbers, self._encoded(), self.label)

    @property
    def image(self) -> str:
        """The name of the column of images."""
        fitting = [field.name for field in self._schema if _holds_bytes(field.type)]
        return self._only(self._wanted[0], _tiers(IMAGE, fitting, fitting), IMAGE, "image")

    @property
    def label(self) -> str:
        """The name of the column of labels."""
        return self._only(self._wanted[1], self._label_columns(), LABEL, "label")

    def _label_columns(self) -> list[list[str]]:
        """The columns that could be the labels, the likelier first."""
        fitting = [field.name for field in self._schema if _is_label(field.type)]
        if self._wanted[1] is not None:
            return [[name for name in fitting if name == self._wanted[1]]]
        features = self._features()
        return _tiers(LABEL, fitting, [name for name in fitting if _names_of(features.get(name)) is not None])

    def _has_label_name(self) -> bool:
        usual = [name for tier in LABEL for name in tier]
        return not set(self._schema.names).isdisjoint(usual if self._wanted[1] is None else [self._wanted[1]])

    def _only(
        self, wanted: str | None, tiers: list[list[str]], names: Sequence[Sequence[str]], what: str
    ) -> str:
        """The column that was asked for, or the only one in the first row with any."""
        advice = f"choose one with --{what}-column NAME; its columns are {self._columns()}"
        if wanted is not None and wanted not in self._schema.names:
            raise InputError(f"{quoted(self.path)}: has no column {wanted!r}; {advice}")
        best = [wanted] if wanted is not None else next((tier for tier in tiers if tier), [])
        if len(best) == 1:
            return best[0]
        usual = [name for tier in names for name in tier]
        unfit = [name for name in usual if name in self._schema.names]
        if unfit and not best:
            raise self._unfit(unfit[0], what)
        several = f"several columns could hold the {what}s: {', '.join(best)}"
        none = f"has no {what} column with a usual name ({', '.join(usual)})"
        raise InputError(f"{quoted(self.path)}: {several if best else none}; {advice}")

    def _unfit(self, name: str, what: str) -> InputError:
        kind = shortened(str(self._schema.field(name).type), 80)
        return InputError(
            f"{quoted(self.path)}: column {name!r} holds {kind}; {what}s are {FITTING[what]}; "
            f"choose another with --{what}-column NAME; its columns are {self._columns()}"
        )

    def _columns(self) -> str:
        return shortened(listed([f"{field.name} ({field.type})" for field in self._schema]), 300)

    def _features(self) -> dict[str, Any]:
        """What Hugging Face's metadata say of the columns."""
        try:
            features = json.loads((self._schema.metadata or {})[b"huggingface"])["info"]["features"]
        except (KeyError, TypeError, ValueError, RecursionError):
            return {}
        return features if isinstance(features, dict) else {}

    def _labels(self, column: Any) -> tuple[tuple[str, ...], Any, NDArray[np.int64]]:
        """Class names, how they are given, and the label of each row."""
        if _is_whole(column.type):
            labels = self._whole(column)
            names = _names_of(self._features().get(self.label))
            if names is None:
                return (), "numbers", labels
            return names, "list", labels
        if not _is_text(column.type):
            raise self._unfit(self.label, "label")
        text = column.cast(arrow().string()).to_pylist()
        names = tuple(sorted(set(text)))
        place = {name: number for number, name in enumerate(names)}
        return names, "text", np.array([place[each] for each in text], np.int64)

    def _whole(self, column: Any) -> NDArray[np.int64]:
        try:
            return np.asarray(column.cast(arrow().int64()).to_numpy(), np.int64)
        except ValueError as error:
            raise InputError(f"{quoted(self.path)}: column {self.label!r}: {brief(error)}") from None

    def _encoded(self) -> Any:
        """The column of images. What is stored once and used in many rows is held once, not in every row."""
        name = self.image
        kind = self._schema.field(name).type
        if not _holds_bytes(kind):
            raise self._unfit(name, "image")
        leaf = f"{name}.bytes" if arrow().types.is_struct(kind) else name

        def read() -> Any:
            once = [leaf] if self._largest_group() < MOST_DICTIONARY else []
            with arrow().parquet.ParquetFile(self.path, read_dictionary=once) as file:
                # Group by group: pyarrow cannot read a dictionary within a struct over several of them.
                groups = [
                    file.read_row_group(i, columns=[leaf]).column(0) for i in range(file.num_row_groups)
                ]
            chunks = [chunk for group in groups for chunk in group.chunks]
            if leaf != name:
                chunks = [arrow().compute.struct_field(chunk, "bytes") for chunk in chunks]
            return arrow().chunked_array(chunks)

        return _trying(self.path, read)

    def _largest_group(self) -> int:
        metadata = self._metadata
        return max((metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)), default=0)

    def _column(self, name: str) -> Any:
        def read() -> Any:
            with arrow().parquet.ParquetFile(self.path) as file:
                return file.read(columns=[name]).column(0)

        return _trying(self.path, read)


def _end(path: Path) -> tuple[Any, Any]:
    """The schema and the metadata; the file is closed again, since there may be thousands."""
    with path.open("rb") as start:
        if start.read(len(POINTER)) == POINTER:
            raise InputError(f"{quoted(path)}: only a pointer to a file; fetch it with: git lfs pull")
    with arrow().parquet.ParquetFile(path) as file:
        return file.schema_arrow, file.metadata


def _tiers(rows: Sequence[Sequence[str]], fitting: list[str], rest: list[str]) -> list[list[str]]:
    """The fitting columns with each row's names, then those that fit without such a name."""
    return [*([name for name in fitting if name in names] for names in rows), rest]


def _names_of(feature: object) -> tuple[str, ...] | None:
    """The class names of a Hugging Face `ClassLabel`; None where it gives none."""
    names = feature.get("names") if isinstance(feature, dict) else None
    if isinstance(names, dict):  # as in a dataset card: {"0": "cat", "1": "dog"}
        names = [names.get(str(number)) for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, (str, int)) for name in names):
        return None
    return tuple(map(str, names))


def _most(labels: Any) -> int:
    return int(arrow().compute.max(labels).as_py())


def _value_type(kind: Any) -> Any:
    return kind.value_type if arrow().types.is_dictionary(kind) else kind


def _is_whole(kind: Any) -> bool:
    return bool(arrow().types.is_integer(kind))


def _is_text(kind: Any) -> bool:
    types, inner = arrow().types, _value_type(kind)
    return bool(types.is_string(inner) or types.is_large_string(inner) or types.is_string_view(inner))


def _is_label(kind: Any) -> bool:
    return _is_whole(kind) or _is_text(kind) or bool(arrow().types.is_null(kind))


def _holds_bytes(kind: Any) -> bool:
    types = arrow().types
    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type)
    return _is_bytes(kind)


def _is_bytes(kind: Any) -> bool:
    types, inner = arrow().types, _value_type(kind)
    return bool(types.is_binary(inner) or types.is_large_binary(inner) or types.is_binary_view(inner))


def arrow() -> Any:
    """pyarrow. Raises `InputError` where it is missing."""
    try:
        import pyarrow.compute
        import pyarrow.parquet
        import pyarrow.types
    except ImportError:
        raise InputError("reading parquet needs pyarrow: pip install 'kilolayer[parquet]'") from None
    return pyarrow


def _trying(path: Path, action: Callable[[], Any]) -> Any:
    try:
        return action()
    except InputError:
        raise
    except (OSError, ValueError, MemoryError, KeyError, arrow().ArrowException) as error:
        raise InputError(f"{quoted(path)}: not a parquet file, or a damaged one ({brief(error)})") from None
