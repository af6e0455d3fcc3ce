"""Small data sets as people and hubs lay them out: folders of pictures, and parquet files."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HELD_OUT = 255
"""The first pixel of a picture that must never be trained on; of others it is less."""
_SEEDS = count()


def picture(mark: int = 0) -> bytes:
    """A PNG of 8×8 pixels unlike any other, its first pixel `mark`."""
    pixels = np.random.default_rng(next(_SEEDS)).integers(1, 255, (8, 8, 3), dtype=np.uint8)
    pixels[0, 0] = mark
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def folders(root: Path, *places: str, images: int = 4, mark: int = 0) -> Path:
    """So many pictures in each of these folders."""
    for place in places:
        (root / place).mkdir(parents=True, exist_ok=True)
        for i in range(images):
            (root / place / f"{i}.png").write_bytes(picture(mark))
    return root


def table(
    path: Path,
    values: Sequence[Any],
    *,
    names: Any = None,
    mark: int = 0,
    marks: Sequence[int] | None = None,
    kind: Any = None,
    image: str = "image",
    label: str = "label",
    raw: bool = False,
    **more: Any,
) -> Path:
    """A parquet file with these values for labels; names: those of Hugging Face's ClassLabel."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    encoded = [picture(mark if marks is None else marks[i]) for i in range(len(values))]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    structs = pa.array([{"bytes": one, "path": None} for one in encoded], struct)
    columns = {
        image: pa.array(encoded, pa.binary()) if raw else structs,
        label: pa.array(values, kind),
        **more,
    }
    made = pa.table({name: column for name, column in columns.items() if name})
    if names is not None:
        features = {label: {"_type": "ClassLabel", "names": names}}
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(made, path)
    return path
