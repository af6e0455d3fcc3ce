"""Downloads the archive of a data set: only on request, checked before use, complete or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

from filelock import FileLock

from kilolayer.data.registry import Archive
from kilolayer.data.sources.archive import read_members
from kilolayer.errors import InputError, KilolayerError
from kilolayer.system.message_text import error_text, quote
from kilolayer.system.progress_line import track

MOST_BYTES = 400_000_000
CHUNK = 1 << 20


def download_archive(
    archive: Archive, folder: Path, names: tuple[str, ...], required: dict[str, int]
) -> Path:
    """Downloads an archive, unpacks it into `folder`, and returns the folder of its files.

    names: the files to unpack. required: the files that must exist, with the bytes of one record
    (`archive.read_members`). Processes that start together wait for each other and download once.

    Raises `InputError` where the download fails, or where the checksum differs from the author's.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{archive.folder}.lock"):
            target = folder / archive.folder
            if not target.is_dir():
                _fetch(archive, target, names, required)
            return target
    except KilolayerError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        raise InputError(
            f"download: {archive.name} did not arrive in {quote(folder)} ({error_text(error)}); try "
            f"again, or name a mirror in ${archive.mirror}"
        ) from None


def _fetch(archive: Archive, target: Path, names: tuple[str, ...], required: dict[str, int]) -> None:
    site = os.environ.get(archive.mirror, archive.site)
    with tempfile.TemporaryDirectory(prefix=".arriving-", dir=target.parent) as temporary:
        file, unpacked = Path(temporary) / archive.name, Path(temporary) / archive.folder
        if urlsplit(site).scheme not in ("http", "https"):
            raise InputError(f"{archive.mirror}: {site!r} is not an http or https address")
        _save(site.rstrip("/") + "/" + archive.name, file)
        _check(file, archive.md5)
        _unpack(file, unpacked, names, required)
        os.rename(unpacked, target)


def _save(url: str, archive: Path) -> None:
    free = shutil.disk_usage(archive.parent).free
    if free < MOST_BYTES:
        raise InputError(
            f"download: {quote(archive.parent.parent)} has {free:,} bytes free of {MOST_BYTES:,} needed"
        )
    with urlopen(url, timeout=60) as response, archive.open("xb") as file:  # noqa: S310 - the scheme is checked above
        size = int(response.headers.get("Content-Length") or 0) or None
        for chunk in track(_chunks(response, url), size, archive.name):
            file.write(chunk)


def _chunks(response: HTTPResponse, url: str) -> Iterator[tuple[int, bytes]]:
    total = 0
    while chunk := response.read(CHUNK):
        total += len(chunk)
        if total > MOST_BYTES:
            raise InputError(f"download: {url} is larger than {MOST_BYTES:,} bytes, so it is another file")
        yield len(chunk), chunk


def _check(file: Path, md5: str) -> None:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if digest != md5:
        raise InputError(
            f"download: {file.name} arrived damaged (MD5 {digest}, not {md5}); nothing was kept, try again"
        )


def _unpack(archive: Path, folder: Path, names: tuple[str, ...], required: dict[str, int]) -> None:
    """Writes the files that we know, under the names that we know; nothing else reaches the disk."""
    folder.mkdir()
    for name, raw in read_members(archive, names, required).items():
        with (folder / name).open("xb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
