"""One parquet file with a column of encoded images and a column of labels (pyarrow, an optional extra)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kilolayer.data.wording import brief, listed, quoted, shortened
from kilolayer.errors import InputError

IMAGE = ("img", "image")
LABEL = ("label", "labels", "fine_label")


@dataclass(frozen=True)
class Rows:
    """What one file holds: class names (empty where it has none), int64 labels (N,), and N encoded images."""

    path: Path
    names: tuple[str, ...]
    labels: NDArray[np.int64]
    encoded: Any

    def image(self, row: int) -> bytes:
        """The image in this row, as stored. Raises ValueError where there is none."""
        stored = self.encoded[row].as_py()
        if stored is None:
            raise ValueError("null")
        return bytes(stored)


class Table:
    """Its columns are found when it is made; labels and encoded images are read by `read`.

    image, label: the columns' names; size: bytes of all columns once decompressed. Raises InputError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _trying(path, lambda: arrow().parquet.ParquetFile(path))
        self._schema = self._file.schema_arrow
        images = [field.name for field in self._schema if _holds_bytes(field.type)]
        labels = [field.name for field in self._schema if arrow().types.is_integer(field.type)]
        self.image = self._first(
            [name for name in IMAGE if name in images] or images, "struct of image bytes", IMAGE
        )
        self.label = self._first([name for name in LABEL if name in labels], "whole-number column", LABEL)
        metadata = self._file.metadata
        self.size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))

    def read(self) -> Rows:
        """The labels and the images, still encoded."""
        labels = self._read(self.label)
        if labels.null_count or not len(labels):
            raise InputError(f"{quoted(self.path)}: {labels.null_count:,} of {len(labels):,} labels are null")
        encoded = _trying(self.path, lambda: arrow().compute.struct_field(self._read(self.image), "bytes"))
        return Rows(self.path, self.names(), np.asarray(labels.to_numpy(), np.int64), encoded)

    def names(self) -> tuple[str, ...]:
        """The class names that Hugging Face's metadata give; empty where they give none."""
        try:
            stored = json.loads((self._schema.metadata or {})[b"huggingface"])
            return tuple(str(name) for name in stored["info"]["features"][self.label]["names"])
        except (KeyError, TypeError, ValueError, RecursionError):
            return ()

    def _first(self, found: list[str], what: str, names: tuple[str, ...]) -> str:
        if found:
            return found[0]
        has = shortened(listed([f"{field.name} ({field.type})" for field in self._schema]), 300)
        raise InputError(
            f"{quoted(self.path)}: has no {what} named {', '.join(names)}; its columns are {has}"
        )

    def _read(self, column: str) -> Any:
        return _trying(self.path, lambda: self._file.read(columns=[column]).column(column))


def _holds_bytes(kind: Any) -> bool:
    types = arrow().types
    if not types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    inner = kind.field("bytes").type
    return bool(types.is_binary(inner) or types.is_large_binary(inner))


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
    except (OSError, ValueError, MemoryError, NotImplementedError, KeyError) as error:  # all of pyarrow's own
        raise InputError(f"{quoted(path)}: not a parquet file, or a damaged one ({brief(error)})") from None
