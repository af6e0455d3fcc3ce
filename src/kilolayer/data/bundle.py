"""Named files from a folder or a tar archive. Archives are read in memory and never extracted.

So nothing in an archive (`../`, absolute names, links, devices) can reach the disk.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from kilolayer.data.wording import brief, quoted
from kilolayer.errors import InputError

MOST_BYTES = 2**30  # all of CIFAR, unpacked, is 185 MB
MOST_MEMBERS = 1000
CHUNK = 1 << 20
ENDINGS = (".tar.gz", ".tgz", ".tar")


def is_archive(path: Path) -> bool:
    return path.name.endswith(ENDINGS)


def read(place: Path, wanted: tuple[str, ...], required: dict[str, int]) -> dict[str, bytes]:
    """The bytes of those wanted files that exist.

    Raises InputError where a required one does not, or is no multiple of as many bytes as given there.
    """
    found, present = _from_folder(place, wanted) if place.is_dir() else _from_archive(place, wanted)
    missing = [name for name in required if name not in present]
    if missing:
        raise InputError(f"{quoted(place)}: lacks {', '.join(missing)}; delete it and get the data again")
    for name, unit in required.items():
        if present[name] == 0 or present[name] % unit:
            raise InputError(
                f"{quoted(place)}, {name}: {present[name]:,} bytes are not a whole number of {unit:,}-byte "
                "images; it is damaged"
            )
    return {name: found[name] for name in wanted if name in found}


def names_in(archive: Path) -> set[str]:
    """The last parts of the names of the regular files in an archive."""
    return set(_from_archive(archive, ())[1])


def _from_folder(folder: Path, wanted: tuple[str, ...]) -> tuple[dict[str, bytes], dict[str, int]]:
    try:
        present = {path.name: path for path in folder.iterdir() if path.is_file()}
        return {name: _whole(present[name]) for name in wanted if name in present}, {
            name: path.stat().st_size for name, path in present.items()
        }
    except OSError as error:
        raise InputError(f"{quoted(folder)}: cannot be read ({brief(error)})") from None


def _whole(path: Path) -> bytes:
    if path.stat().st_size > MOST_BYTES:
        raise InputError(f"{quoted(path)}: larger than {MOST_BYTES:,} bytes, so it is no CIFAR file")
    return path.read_bytes()


def _from_archive(archive: Path, wanted: tuple[str, ...]) -> tuple[dict[str, bytes], dict[str, int]]:
    try:
        with archive.open("rb") as file, _unzipped(file) as plain:
            stream = _Capped(plain, archive)
            with tarfile.open(fileobj=cast(BinaryIO, stream), mode="r|") as tar:
                taken = _members(tar, wanted, archive)
            while stream.read(CHUNK):  # only at its end does gzip compare the checksum
                pass
            return taken
    except InputError:
        raise
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, MemoryError) as error:
        raise InputError(f"{quoted(archive)}: not a tar archive, or a damaged one ({brief(error)})") from None


def _members(
    tar: tarfile.TarFile, wanted: tuple[str, ...], archive: Path
) -> tuple[dict[str, bytes], dict[str, int]]:
    found: dict[str, bytes] = {}
    present: dict[str, int] = {}
    for number, member in enumerate(tar):
        if number >= MOST_MEMBERS:
            raise InputError(f"{quoted(archive)}: more than {MOST_MEMBERS:,} files, so no CIFAR")
        name = PurePosixPath(member.name).name
        if member.isreg():
            present[name] = member.size
        if member.isreg() and name in wanted and (content := tar.extractfile(member)):
            found[name] = content.read()
    return found, present


def _unzipped(file: BinaryIO) -> gzip.GzipFile | BinaryIO:
    zipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return gzip.GzipFile(fileobj=file) if zipped else file


class _Capped:
    """All that tarfile asks of a stream; an error after MOST_BYTES, so no archive can fill the memory."""

    def __init__(self, stream: gzip.GzipFile | BinaryIO, archive: Path) -> None:
        self.stream, self.archive, self.left = stream, archive, MOST_BYTES

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise InputError(f"{quoted(self.archive)}: more than {MOST_BYTES:,} bytes, so no CIFAR")
        return data
