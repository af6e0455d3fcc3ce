"""Named files from a folder or a tar archive. An archive is read in memory and never extracted.

Nothing in an archive (`../`, absolute names, links, devices) can therefore reach the disk.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Self, cast

from kilolayer.errors import InputError, KilolayerError
from kilolayer.system.message_text import error_text, quote

MOST_BYTES = 2**28  # CIFAR unpacked is 185 MB
MOST_MEMBERS = 1000
MOST_NAME_BYTES = 100_000
"""The bytes of a header of names and attributes, which tarfile reads as a whole and parses."""
HEADERS = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.GNUTYPE_SPARSE,
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
)  # fmt: skip
CHUNK = 1 << 20
ENDINGS = (".tar.gz", ".tgz", ".tar")


def is_archive(path: Path) -> bool:
    return path.name.endswith(ENDINGS)


def read_members(path: Path, names: tuple[str, ...], required: dict[str, int]) -> dict[str, bytes]:
    """The bytes of the named files that exist.

    required: files that must exist, with the bytes of one record; their size must be a multiple of it.
    Raises `InputError` where a required file is missing or has another size, or where the archive is damaged.
    """
    contents, sizes = _from_folder(path, names) if path.is_dir() else _from_archive(path, names)
    missing = [name for name in required if name not in sizes]
    if missing:
        raise InputError(f"{quote(path)}: lacks {', '.join(missing)}; delete it and get the data again")
    for name, unit in required.items():
        if sizes[name] == 0 or sizes[name] % unit:
            raise InputError(
                f"{quote(path)}, {name}: {sizes[name]:,} bytes are not a whole number of {unit:,}-byte "
                "images; it is damaged"
            )
    return {name: contents[name] for name in names if name in contents}


def member_names(archive: Path) -> set[str]:
    """The file names of the regular files in an archive, without folders."""
    return set(_from_archive(archive, ())[1])


def _from_folder(folder: Path, names: tuple[str, ...]) -> tuple[dict[str, bytes], dict[str, int]]:
    try:
        paths = {path.name: path for path in folder.iterdir() if path.is_file()}
        return {name: _read_capped(paths[name]) for name in names if name in paths}, {
            name: path.stat().st_size for name, path in paths.items()
        }
    except OSError as error:
        raise InputError(f"{quote(folder)}: cannot be read ({error_text(error)})") from None


def _read_capped(path: Path) -> bytes:
    if path.stat().st_size > MOST_BYTES:
        raise InputError(f"{quote(path)}: larger than {MOST_BYTES:,} bytes, so it is not a CIFAR file")
    return path.read_bytes()


def _from_archive(archive: Path, names: tuple[str, ...]) -> tuple[dict[str, bytes], dict[str, int]]:
    try:
        with archive.open("rb") as file, _open_gzip(file) as plain:
            stream = _CappedStream(plain, archive)
            with tarfile.open(fileobj=cast(BinaryIO, stream), mode="r|", tarinfo=_CappedHeader) as tar:
                members = _read_tar(tar, names, archive)
            while stream.read(CHUNK):  # gzip compares the checksum only at the end
                pass
            return members
    except KilolayerError:
        raise
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, MemoryError) as error:
        raise InputError(
            f"{quote(archive)}: not a tar archive, or a damaged one ({error_text(error)})"
        ) from None


def _read_tar(
    tar: tarfile.TarFile, names: tuple[str, ...], archive: Path
) -> tuple[dict[str, bytes], dict[str, int]]:
    contents: dict[str, bytes] = {}
    sizes: dict[str, int] = {}
    for number, member in enumerate(tar):
        if number >= MOST_MEMBERS:
            raise InputError(f"{quote(archive)}: more than {MOST_MEMBERS:,} files, so it is not CIFAR")
        name = PurePosixPath(member.name).name
        if member.isreg():
            sizes[name] = member.size
        if member.isreg() and name in names and (content := tar.extractfile(member)):
            contents[name] = content.read()
    return contents, sizes


class _CappedHeader(tarfile.TarInfo):
    """The header of a member, which raises where a header of names is too large."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.type in HEADERS and member.size > MOST_NAME_BYTES:
            raise ValueError(f"a name or attributes of {member.size:,} bytes")
        return member


def _open_gzip(file: BinaryIO) -> gzip.GzipFile | BinaryIO:
    zipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return gzip.GzipFile(fileobj=file) if zipped else file


class _CappedStream:
    """A stream for tarfile that raises after MOST_BYTES, so that no archive fills the memory."""

    def __init__(self, stream: gzip.GzipFile | BinaryIO, archive: Path) -> None:
        self.stream, self.archive, self.remaining = stream, archive, MOST_BYTES

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.remaining -= len(data)
        if self.remaining < 0:
            raise InputError(f"{quote(self.archive)}: more than {MOST_BYTES:,} bytes, so it is not CIFAR")
        return data
