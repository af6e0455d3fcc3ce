"""One parquet file with a column of encoded images and a column of labels (needs pyarrow, an optional extra).

The columns are found by their names, by their types, or as the description chooses them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kilolayer.data.sources.parquet_column import NULL, ColumnReader, StoredValues
from kilolayer.data.sources.parquet_pages import check_footer, check_rows
from kilolayer.errors import InputError, KilolayerError
from kilolayer.system.json_text import parse_json
from kilolayer.system.message_text import error_text, listing, quote, truncate

POINTER = b"version https://git-lfs"
"""The first bytes of a file that Git LFS has not fetched."""
UNLABELLED = -1


@dataclass(frozen=True)
class Rows:
    """The content of one file: its class names, labels int64 (N,) that index them, and N encoded images.

    naming: whether the names are a list in the file, the values of its text column, or only numbers.
    column: the name of the label column. number_names: the numbers, with the names in a text column.
    """

    path: Path
    names: tuple[str, ...]
    naming: Literal["list", "text", "numbers"]
    labels: NDArray[np.int64]
    encoded: StoredValues
    column: str
    number_names: tuple[tuple[int, str], ...] = ()

    def image(self, row: int) -> bytes:
        """The encoded image in this row. Raises `ValueError` where there is none."""
        at = int(self.encoded.index[row])
        if at == NULL:
            raise ValueError("null")
        return self.encoded.values[at]


class ParquetTable:
    """One file, of which only the footer has been read.

    count: the number of rows. size: the bytes of all columns after decompression. Raises `InputError`.
    """

    def __init__(self, path: Path, image: str | None = None, label: str | None = None) -> None:
        self.path = path
        schema, self._metadata = _parquet_errors(path, lambda: _read_footer(path))
        self.columns = ParquetColumns(path, schema, image, label)
        groups = [self._metadata.row_group(i) for i in range(self._metadata.num_row_groups)]
        rows = [group.num_rows for group in groups]
        self.count, self.size = sum(rows), sum(max(0, group.total_byte_size) for group in groups)
        if min(rows, default=0) < 0 or self.count != self._metadata.num_rows:
            raise InputError(f"{quote(path)}: damaged: its groups of rows are not the rows of the file")
        check_rows(path, self.count)

    def no_label_reason(self) -> str:
        """Why no row has a label: no column, only nulls, only −1. "" where any row has one."""
        if not self.columns.holds_labels():
            return self.columns.missing_label_reason()
        name = self.columns.label
        is_text = is_text_type(self.columns.column_type(name))
        try:
            labels = self._distinct(name) if is_text else self._column(name)
        except InputError:  # whoever reads the labels says what is wrong with them
            return ""
        if len(labels) == labels.null_count:
            return "all labels are null" if len(labels) else ""
        return "all labels are −1" if not is_text and _largest_label(labels) == UNLABELLED else ""

    def splits(self) -> dict[str, tuple[str, ...]]:
        """The columns that may assign rows to splits, with their values."""
        return {name: self._split_values(name) for name in self.columns.split}

    def flags(self, names: Callable[[str], bool]) -> dict[str, frozenset[int]]:
        """The columns with accepted names that hold only 0 and 1, with their values."""
        columns = [name for name in self.columns.flags if names(name)]
        values_by_column = {
            name: frozenset(self._column(name).unique().drop_null().to_pylist()) for name in columns
        }
        return {name: values for name, values in values_by_column.items() if values <= {0, 1}}

    def _split_values(self, name: str) -> tuple[str, ...]:
        values = tuple(map(str, dict.fromkeys(self._texts(name))))
        classes = self.columns.class_names(name)
        is_numbered = classes is not None and is_integer_type(self.columns.column_type(name))
        texts = {str(number): text for number, text in enumerate(classes or ()) if is_numbered}
        return tuple(texts.get(value, value) for value in values)

    def read(self) -> Rows:
        """The labels, and the images still encoded."""
        name = self.columns.label
        names, naming, labels = self._labels(name)
        spoken = self._number_names(labels) if naming == "numbers" else ()
        return Rows(self.path, names, naming, labels, self._read_images(), name, spoken)

    def _number_names(self, labels: NDArray[np.int64]) -> tuple[tuple[int, str], ...]:
        """The numbers of the labels, with the names in the text column beside them."""
        texts = [self._texts(name) for name in self.columns.label_texts[:1]]
        pairs = {pair for column in texts for pair in zip(labels.tolist(), column, strict=True)}
        return tuple(sorted((number, str(text)) for number, text in pairs if text is not None))

    def _labels(self, name: str) -> tuple[tuple[str, ...], Any, NDArray[np.int64]]:
        """The class names, how they are given, and the label of each row."""
        if is_integer_type(self.columns.column_type(name)):
            column, names = self._column(name), self.columns.class_names(name)
            self._refuse_nulls(column)
            return names or (), "numbers" if names is None else "list", self._whole(name, column)
        if not is_text_type(self.columns.column_type(name)):
            raise self.columns.content_error(name, "label")
        stored = self._distinct(name)
        self._refuse_nulls(stored)
        texts = _parquet_errors(self.path, stored.value_texts)
        names = tuple(sorted(texts))
        class_index = {text: number for number, text in enumerate(names)}
        numbers = np.array([class_index[text] for text in texts], np.int64)
        return names, "text", numbers[stored.index]

    def _refuse_nulls(self, labels: Any) -> None:
        if labels.null_count:
            raise InputError(f"{quote(self.path)}: {labels.null_count:,} of {len(labels):,} labels are null")

    def _whole(self, name: str, column: Any) -> NDArray[np.int64]:
        try:
            return np.asarray(column.cast(import_arrow().int64()).to_numpy(), np.int64)
        except ValueError as error:
            raise InputError(f"{quote(self.path)}: column {name!r}: {error_text(error)}") from None

    def _texts(self, name: str) -> list[str | None]:
        """The column as text, row by row."""
        if not is_text_type(self.columns.column_type(name)):
            column = self._column(name)
            texts: list[str | None] = column.cast(import_arrow().string()).to_pylist()
            return texts
        return _parquet_errors(self.path, self._distinct(name).texts)  # type: ignore[no-any-return]

    def _read_images(self) -> StoredValues:
        """The column of images. An image that many rows share is held once."""
        name = self.columns.image
        kind = self.columns.column_type(name)
        if not is_image_type(kind):
            raise self.columns.content_error(name, "image")
        return self._distinct(f"{name}.bytes" if import_arrow().types.is_struct(kind) else name)

    def _distinct(self, leaf: str) -> StoredValues:
        values: StoredValues = _parquet_errors(self.path, lambda: self._reader(leaf).distinct())
        return values

    def _column(self, name: str) -> Any:
        def read() -> Any:
            return import_arrow().chunked_array(self._reader(name).arrays(), self.columns.column_type(name))

        return _parquet_errors(self.path, read)

    def _reader(self, leaf: str) -> ColumnReader:
        return ColumnReader(import_arrow(), self.path, self._metadata, leaf)


def _read_footer(path: Path) -> tuple[Any, Any]:
    """The schema and the metadata. The file is closed again, since there may be thousands."""
    with path.open("rb") as start:
        if start.read(len(POINTER)) == POINTER:
            raise InputError(f"{quote(path)}: only a pointer to a file; fetch it with: git lfs pull")
    check_footer(path)
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


IMAGE_NAMES = (
    ("image", "img"),
    ("jpg", "jpeg", "png", "webp"),
    ("picture", "photo", "pixels", "image_bytes"),
)
"""Usual names of columns, the most usual first. Two names of one tier in one file are ambiguous."""
LABEL_NAMES = (("label", "labels"), ("fine_label",), ("class", "target", "category", "cls", "class_label"))
"""Names of columns, the more usual first; two of one row in one file are ambiguous."""
COLUMN_CONTENT = {
    "image": "encoded bytes (JPEG, PNG …), or structs of them",
    "label": "whole numbers or text",
}
SPLIT_NAMES = (
    "split", "splits", "data_split", "split_name", "subset", "partition", "phase", "set",
    "usage", "fold", "dataset",
)  # fmt: skip
"""Columns that may hold the split of each row."""
LABEL_TEXT_NAMES = (
    "label_name", "label_text", "label_str", "labels_name", "class_name", "classname",
    "category_name", "target_name",
)  # fmt: skip
"""Columns that name the class whose number another column holds."""


class ParquetColumns:
    """The columns of one file. image, label: the chosen names; None: found by usual names."""

    def __init__(self, path: Path, schema: Any, image: str | None, label: str | None) -> None:
        self._path, self._schema = path, schema
        self._image, self._label = image, label

    @property
    def image(self) -> str:
        """The column of images. Raises `InputError` where the choice is unclear."""
        return self._single_column(self._image, self._image_tiers(), IMAGE_NAMES, "image")

    @property
    def label(self) -> str:
        """The column of labels. Raises `InputError` where the choice is unclear."""
        return self._single_column(self._label, self._label_tiers(), LABEL_NAMES, "label")

    @property
    def split(self) -> list[str]:
        """The columns that may hold the split of each row."""
        return [
            field.name
            for field in self._schema
            if field.name.casefold() in SPLIT_NAMES
            and field.name != self._label
            and (is_text_type(field.type) or is_integer_type(field.type) or is_boolean_type(field.type))
        ]

    @property
    def flags(self) -> list[str]:
        """The columns of booleans, or of integers that may stand for them."""
        return [
            field.name
            for field in self._schema
            if field.name != self._label and (is_boolean_type(field.type) or is_integer_type(field.type))
        ]

    @property
    def label_texts(self) -> list[str]:
        """The text columns that may name the numbers of the labels."""
        texts = {field.name.casefold(): field.name for field in self._schema if is_text_type(field.type)}
        return [texts[name] for name in LABEL_TEXT_NAMES if name in texts]

    def holds_images(self) -> bool:
        """Whether any column may hold encoded images."""
        return any(self._image_tiers())

    def holds_labels(self) -> bool:
        """Whether any column may hold labels."""
        return any(self._label_tiers())

    def missing_label_reason(self) -> str:
        """Why there is no column of labels; "" where a column has a usual name, whatever it holds."""
        usual = [name for tier in LABEL_NAMES for name in tier]
        if not set(self._schema.names).isdisjoint([self._label] if self._label else usual):
            return ""
        wanted_column = f"column {self._label!r}" if self._label else "label column with a usual name"
        return (
            f"no {wanted_column}; choose one with --label-column NAME; its columns are {self._column_list()}"
        )

    def column_type(self, name: str) -> Any:
        """The type of a column."""
        return self._schema.field(name).type

    def class_names(self, name: str) -> tuple[str, ...] | None:
        """The class names of a Hugging Face `ClassLabel`; None where the column has none."""
        return _feature_names(self._features().get(name))

    def content_error(self, name: str, content: str) -> InputError:
        """The error for a column that does not hold images or labels."""
        kind = truncate(str(self.column_type(name)), 80)
        return InputError(
            f"{quote(self._path)}: column {name!r} holds {kind}; {content}s are {COLUMN_CONTENT[content]}; "
            f"choose another with --{content}-column NAME; its columns are {self._column_list()}"
        )

    def _image_tiers(self) -> list[list[str]]:
        fitting = [field.name for field in self._schema if is_image_type(field.type)]
        return _tiers(IMAGE_NAMES, fitting, fitting)

    def _label_tiers(self) -> list[list[str]]:
        fitting = [field.name for field in self._schema if _is_label_type(field.type)]
        if self._label is not None:
            return [[name for name in fitting if name == self._label]]
        return _tiers(LABEL_NAMES, fitting, [name for name in fitting if self.class_names(name) is not None])

    def _single_column(
        self, chosen: str | None, tiers: list[list[str]], names: Sequence[Sequence[str]], content: str
    ) -> str:
        """The chosen column, or the only column of the first tier that has any."""
        advice = f"choose one with --{content}-column NAME; its columns are {self._column_list()}"
        if chosen is not None and chosen not in self._schema.names:
            raise InputError(f"{quote(self._path)}: has no column {chosen!r}; {advice}")
        best = [chosen] if chosen is not None else next((tier for tier in tiers if tier), [])
        if len(best) == 1:
            return best[0]
        usual = [name for tier in names for name in tier]
        unfit = [name for name in usual if name in self._schema.names]
        if unfit and not best:
            raise self.content_error(unfit[0], content)
        several = f"several columns could hold the {content}s: {', '.join(best)}"
        none = f"has no {content} column with a usual name ({', '.join(usual)})"
        raise InputError(f"{quote(self._path)}: {several if best else none}; {advice}")

    def _column_list(self) -> str:
        return truncate(listing([f"{field.name} ({field.type})" for field in self._schema]), 300)

    def _features(self) -> dict[str, Any]:
        """The features in Hugging Face's metadata."""
        try:
            match parse_json((self._schema.metadata or {}).get(b"huggingface", b"{}")):
                case {"info": {"features": dict(features)}}:
                    return features
        except InputError:
            pass
        return {}


def _tiers(rows: Sequence[Sequence[str]], fitting: list[str], unusual: list[str]) -> list[list[str]]:
    """The fitting columns by tier of names, followed by those that fit without a usual name."""
    return [*([name for name in fitting if name in names] for names in rows), unusual]


def _feature_names(feature: object) -> tuple[str, ...] | None:
    """The class names of a Hugging Face `ClassLabel`; None where it has none."""
    names = feature.get("names") if isinstance(feature, dict) else None
    if isinstance(names, dict):  # as in a dataset card: {"0": "cat", "1": "dog"}
        names = [names.get(str(number)) for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, (str, int)) for name in names):
        return None
    return tuple(map(str, names))


def _value_type(kind: Any) -> Any:
    return kind.value_type if import_arrow().types.is_dictionary(kind) else kind


def is_integer_type(kind: Any) -> bool:
    return bool(import_arrow().types.is_integer(kind))


def is_boolean_type(kind: Any) -> bool:
    return bool(import_arrow().types.is_boolean(kind))


def is_text_type(kind: Any) -> bool:
    types, inner = import_arrow().types, _value_type(kind)
    return bool(types.is_string(inner) or types.is_large_string(inner) or types.is_string_view(inner))


def _is_label_type(kind: Any) -> bool:
    return is_integer_type(kind) or is_text_type(kind) or bool(import_arrow().types.is_null(kind))


def is_image_type(kind: Any) -> bool:
    types = import_arrow().types
    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_bytes_type(kind.field("bytes").type)
    return _is_bytes_type(kind)


def _is_bytes_type(kind: Any) -> bool:
    types, inner = import_arrow().types, _value_type(kind)
    return bool(types.is_binary(inner) or types.is_large_binary(inner) or types.is_binary_view(inner))


def import_arrow() -> Any:
    """pyarrow. Raises `InputError` where it is not installed."""
    try:
        import pyarrow.compute
        import pyarrow.parquet
        import pyarrow.types
    except ImportError:
        raise InputError("reading parquet needs pyarrow: pip install 'kilolayer[parquet]'") from None
    return pyarrow
