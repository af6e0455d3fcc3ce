"""A cache of inspection results in the user's cache folder: a second inspection decodes nothing.

A key names the bytes of a picture: a file by its path, size and time of last change; other bytes by their
    hash. You may delete the cache at any time. Where it cannot be read or written, every picture is inspected
    again.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cache
from hashlib import blake2b
from pathlib import Path

import PIL

from kilolayer.system import folders

logger = logging.getLogger(__name__)

TABLE = "CREATE TABLE IF NOT EXISTS seen (key BLOB PRIMARY KEY, said TEXT) WITHOUT ROWID"
MOST_RESULT = 4096
# Another release of Pillow may decode differently. The number changes with the format of the results.
VERSION = f"4 {PIL.__version__}".encode()


def cache_path() -> Path:
    """The path of images.sqlite. Raises `OSError` where no cache can be written."""
    return folders.writable_cache_folder() / "images.sqlite"


@cache
def _warn(text: str) -> None:
    logger.warning(text)


def cache_key(raw: Path | bytes, appearance: str) -> bytes | None:
    """The key of these bytes, read with this `appearance`; None where the file cannot be looked up."""
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
    """The cached result for each key; None where there is none."""
    try:
        with _open_cache() as connection:
            rows = (
                connection.execute("SELECT said FROM seen WHERE key = ?", (key,)).fetchone() for key in keys
            )
            return [row[0] if row and _is_result(row[0]) else None for row in rows]
    except (sqlite3.Error, OSError):
        return [None] * len(keys)


def store(results: Mapping[bytes, str]) -> None:
    """Stores results. Does nothing where the cache cannot be written."""
    try:
        with _open_cache() as connection, connection:
            connection.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?)", results.items())
    except (sqlite3.Error, OSError):
        pass


def _is_result(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MOST_RESULT


def _check_schema(connection: sqlite3.Connection) -> None:
    """Raises `DatabaseError` for anything but our table: a view or a trigger could run for ever."""
    entries = connection.execute("SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
    if entries.fetchmany(2) != [("table", "seen")]:
        raise sqlite3.DatabaseError("another schema")


@contextmanager
def _open_cache() -> Iterator[sqlite3.Connection]:
    try:
        path = Path(os.path.realpath(cache_path()))
        for ending in ("", "-journal", "-wal", "-shm"):  # SQLite takes changes from these
            folders.require_trusted(path.with_name(path.name + ending))
    except folders.DistrustedError as error:
        _warn(f"what is seen in pictures is not remembered: {folders.reason(error)}")
        raise
    try:
        with closing(sqlite3.connect(path, timeout=10)) as connection:
            connection.execute(TABLE)
            _check_schema(connection)
            yield connection
    except sqlite3.OperationalError:  # the database is busy or read-only
        raise
    except sqlite3.DatabaseError:
        path.unlink(missing_ok=True)  # damaged: delete it, so that the next access starts a new one
        raise
