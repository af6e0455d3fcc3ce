"""What was found in images before, in the user's cache folder, so that a second look takes no decoding.

A key names an image's bytes: a file by path, size and time of its last change, bytes by their hash. The cache
may be deleted at any time; where it cannot be read or written, all is looked at again.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from hashlib import blake2b
from pathlib import Path

import PIL

from kilolayer.system import folders

TABLE = "CREATE TABLE IF NOT EXISTS seen (key BLOB PRIMARY KEY, said TEXT) WITHOUT ROWID"
# Another Pillow can see otherwise; the number changes when what is remembered does.
VERSION = f"4 {PIL.__version__}".encode()


def cache_path() -> Path:
    """images.sqlite in the cache. Raises `OSError` where no cache can be written."""
    return folders.writable_cache_folder() / "images.sqlite"


def cache_key(raw: Path | bytes, appearance: str) -> bytes | None:
    """What these bytes, read with this `appearance`, go by; None where the file cannot be looked up."""
    version = VERSION + b" " + appearance.encode()
    if isinstance(raw, bytes):
        return blake2b(version + raw, digest_size=16).digest()
    try:
        state = raw.stat()
    except OSError:
        return None
    name = f"{os.path.abspath(raw)}\0{state.st_size}\0{state.st_mtime_ns}"
    return blake2b(version + os.fsencode(name), digest_size=16, person=b"file").digest()


def lookup(keys: Sequence[bytes | None]) -> list[str | None]:
    """What was kept under each key; None where nothing was."""
    try:
        with _open_cache() as connection:
            rows = (
                connection.execute("SELECT said FROM seen WHERE key = ?", (key,)).fetchone() for key in keys
            )
            return [row[0] if row and isinstance(row[0], str) else None for row in rows]
    except (sqlite3.Error, OSError):
        return [None] * len(keys)


def store(results: Mapping[bytes, str]) -> None:
    """Keeps what was found, as far as that is possible."""
    try:
        with _open_cache() as connection, connection:
            connection.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?)", results.items())
    except (sqlite3.Error, OSError):
        pass


@contextmanager
def _open_cache() -> Iterator[sqlite3.Connection]:
    path = cache_path()
    try:
        with closing(sqlite3.connect(path, timeout=10)) as connection:
            connection.execute(TABLE)
            yield connection
    except sqlite3.OperationalError:  # busy, or not to be written
        raise
    except sqlite3.DatabaseError:
        path.unlink(missing_ok=True)  # damaged: the next one begins anew
        raise
