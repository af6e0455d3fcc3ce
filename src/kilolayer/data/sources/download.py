"""Fetching CIFAR from its author's site: only when asked, checked before it is used, complete or absent."""

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

from kilolayer.data.sources.archive import read_members
from kilolayer.data.sources.cifar import CIFAR_FORMATS, CifarFormat
from kilolayer.errors import InputError, KilolayerError
from kilolayer.system.message_text import error_text, quote
from kilolayer.system.progress_line import track

SITE = "https://www.cs.toronto.edu/~kriz/"
MIRROR = "KILOLAYER_CIFAR_URL"
"""The environment variable that names another folder with the same archives."""
# the checks the author publishes; a hostile file could do no harm without them (bundle, cifar_python)
MD5 = {
    "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
    "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
}
MOST_BYTES = 400_000_000
CHUNK = 1 << 20


def download_archive(source: str, folder: Path, site: str | None = None) -> Path:
    """Fetches the binary version of cifar10 or cifar100 into `folder` and unpacks it; returns where it lies.

    Processes that start together wait for one another and fetch once. Raises InputError.
    """
    layout = next(layout for layout in CIFAR_FORMATS if layout.source == source)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{layout.folder}.lock"):
            target = folder / layout.folder
            return target if target.is_dir() else _fetch(layout, target, site or os.environ.get(MIRROR, SITE))
    except KilolayerError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        raise InputError(
            f"download: {layout.archive} did not arrive in {quote(folder)} ({error_text(error)}); try "
            f"again, or name a mirror in ${MIRROR}"
        ) from None


def _fetch(layout: CifarFormat, target: Path, site: str) -> Path:
    with tempfile.TemporaryDirectory(prefix=".arriving-", dir=target.parent) as name:
        arriving = Path(name)
        archive = arriving / layout.archive
        _save(site.rstrip("/") + "/" + layout.archive, archive)
        _check(archive)
        _unpack(layout, archive, arriving / layout.folder)
        os.rename(arriving / layout.folder, target)
    return target


def _save(url: str, archive: Path) -> None:
    if urlsplit(url).scheme not in ("http", "https"):
        raise InputError(f"{MIRROR}: {url!r} is not an http or https address")
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
            raise InputError(f"download: {url} is larger than {MOST_BYTES:,} bytes, so it is not CIFAR")
        yield len(chunk), chunk


def _check(archive: Path) -> None:
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if digest != MD5[archive.name]:
        raise InputError(
            f"download: {archive.name} arrived damaged (MD5 {digest}, not {MD5[archive.name]}); "
            "nothing was kept, try again"
        )


def _unpack(layout: CifarFormat, archive: Path, folder: Path) -> None:
    """Writes the files we know, under the names we know: nothing else of the archive reaches the disk."""
    folder.mkdir()
    for name, raw in read_members(archive, (*layout.required, layout.meta), layout.required).items():
        with (folder / name).open("xb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
