"""CIFAR-10 with twenty images to a file, in both of the author's forms, to be tampered with."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable

import numpy as np

BINARY = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
PYTHON = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
Member = tuple[tarfile.TarInfo, bytes]


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (20, 3072), dtype=np.uint8)


def binary() -> dict[str, bytes]:
    labels = (np.arange(20, dtype=np.uint8) % 10)[:, None]
    files = {name: np.hstack([labels, pixels(i)]).tobytes() for i, name in enumerate(BINARY)}
    return files | {"batches.meta.txt": "\n".join(CLASSES).encode()}


def python() -> dict[str, bytes]:
    """As Python 2 pickled them: strings are bytes, and the array is NumPy's of then."""
    named = b"(" + b"".join(b"U" + bytes([len(name)]) + name.encode() for name in CLASSES) + b"e"
    meta = b"\x80\x02}(U\x0blabel_names]" + named + b"u."
    return {name: _batch(i) for i, name in enumerate(PYTHON)} | {"batches.meta": meta}


def _batch(seed: int) -> bytes:
    raw = pixels(seed).tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x14M\x00\x0c\x86"
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    )
    labels = b"".join(b"K" + bytes([n % 10]) for n in range(20))
    stored = b"T" + len(raw).to_bytes(4, "little") + raw
    return b"\x80\x02}(U\x04data" + array + stored + b"tbU\x06labels](" + labels + b"eu."


def member(name: str, content: bytes = b"", **fields: object) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def archive(members: Iterable[Member], mode: str = "w:gz") -> bytes:
    file = io.BytesIO()
    level = {"compresslevel": 1} if mode == "w:gz" else {}
    with tarfile.open(fileobj=file, mode=mode, format=tarfile.PAX_FORMAT, **level) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return file.getvalue()
