"""Which columns of a parquet file hold images and labels: by their names, by their types, or as chosen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kilolayer.errors import InputError
from kilolayer.system.message_text import listing, quote, truncate

IMAGE_NAMES = (
    ("image", "img"),
    ("jpg", "jpeg", "png", "webp"),
    ("picture", "photo", "pixels", "image_bytes"),
)
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
"""Columns that can say which split a row is of."""
LABEL_TEXT_NAMES = (
    "label_name", "label_text", "label_str", "labels_name", "class_name", "classname",
    "category_name", "target_name",
)  # fmt: skip
"""Columns that name the class whose number another column holds."""


class ParquetColumns:
    """The columns of one file. image, label: those that were chosen by name; None: found by their names."""

    def __init__(self, path: Path, schema: Any, image: str | None, label: str | None) -> None:
        self._path, self._schema = path, schema
        self._image, self._label = image, label

    @property
    def image(self) -> str:
        """The column of images. Raises `InputError` where it is not plain, as `label`."""
        return self._single_column(self._image, self._image_tiers(), IMAGE_NAMES, "image")

    @property
    def label(self) -> str:
        """The column of labels."""
        return self._single_column(self._label, self._label_tiers(), LABEL_NAMES, "label")

    @property
    def split(self) -> list[str]:
        """The columns that can say which split a row is of."""
        return [
            field.name
            for field in self._schema
            if field.name.casefold() in SPLIT_NAMES
            and field.name != self._label
            and (is_text_type(field.type) or is_integer_type(field.type) or is_boolean_type(field.type))
        ]

    @property
    def flags(self) -> list[str]:
        """The columns of truth values, or of whole numbers that can stand for them."""
        return [
            field.name
            for field in self._schema
            if field.name != self._label and (is_boolean_type(field.type) or is_integer_type(field.type))
        ]

    @property
    def label_texts(self) -> list[str]:
        """The columns of text that can say in words what the labels say in numbers."""
        texts = {field.name.casefold(): field.name for field in self._schema if is_text_type(field.type)}
        return [texts[name] for name in LABEL_TEXT_NAMES if name in texts]

    def holds_images(self) -> bool:
        """Whether there is a column that may hold encoded images."""
        return any(self._image_tiers())

    def holds_labels(self) -> bool:
        """Whether there is a column that may hold the labels."""
        return any(self._label_tiers())

    def missing_label_reason(self) -> str:
        """Why there is no column of labels; "" where there is one of such a name, whatever it holds."""
        usual = [name for tier in LABEL_NAMES for name in tier]
        if not set(self._schema.names).isdisjoint([self._label] if self._label else usual):
            return ""
        which = f"column {self._label!r}" if self._label else "label column with a usual name"
        return f"no {which}; choose one with --label-column NAME; its columns are {self._column_list()}"

    def column_type(self, name: str) -> Any:
        """The type of a column."""
        return self._schema.field(name).type

    def class_names(self, name: str) -> tuple[str, ...] | None:
        """The class names of a Hugging Face `ClassLabel`; None where the column has none."""
        return _feature_names(self._features().get(name))

    def content_error(self, name: str, content: str) -> InputError:
        """The error that says what a column holds instead of images or labels."""
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
        """The column that was asked for, or the only one in the first tier with any."""
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
        """What Hugging Face's metadata say of the columns."""
        try:
            features = json.loads((self._schema.metadata or {})[b"huggingface"])["info"]["features"]
        except (KeyError, TypeError, ValueError, RecursionError):
            return {}
        return features if isinstance(features, dict) else {}


def _tiers(rows: Sequence[Sequence[str]], fitting: list[str], rest: list[str]) -> list[list[str]]:
    """The fitting columns with each row's names, then those that fit without such a name."""
    return [*([name for name in fitting if name in names] for names in rows), rest]


def _feature_names(feature: object) -> tuple[str, ...] | None:
    """The class names of a Hugging Face `ClassLabel`; None where it gives none."""
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
    """pyarrow. Raises `InputError` where it is missing."""
    try:
        import pyarrow.compute
        import pyarrow.parquet
        import pyarrow.types
    except ImportError:
        raise InputError("reading parquet needs pyarrow: pip install 'kilolayer[parquet]'") from None
    return pyarrow
