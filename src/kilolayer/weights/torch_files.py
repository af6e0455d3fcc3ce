"""Files that `torch.save` wrote, opened only after their pickles have been scanned.

Since PyTorch 1.6 a file is a zip archive of one pickle and one member for each storage. Before, it was five
pickles, followed by the bytes of the storages.
"""

from __future__ import annotations

import warnings
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from kilolayer.errors import InputError, KilolayerError
from kilolayer.system.message_text import error_text, quote
from kilolayer.weights import pickle_scanner

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
END_MARK, END64_MARK = b"PK\x05\x06", b"PK\x06\x06"
END_BYTES = 2**16 + 200
"""The end of a zip archive with the longest comment."""
SMALL_DIRECTORY = 1_000_000
LEGACY_PICKLES = 5  # magic number, protocol, the system, the object, the keys of its storages


def load_zip(path: Path) -> Any:
    """The content of the archive; its storages are mapped from the file. Raises `InputError`."""
    _check(path)
    # torch takes a file of this name for safetensors, whatever it holds.
    return load_tensors(path, mmap=path.suffix != ".safetensors")


def load_tensors(path: Path, *, mmap: bool) -> Any:
    """`torch.load`, for tensors and plain values only. Any failure is a fault of the file."""
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # warnings of formats that torch no longer writes
            return torch.load(path if mmap else file, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # bad bytes raise almost any exception
        raise InputError(f"{quote(path)}: damaged, or not a file of tensors ({error_text(error)})") from None


def _check(path: Path) -> None:
    """Raises `InputError` unless nothing is compressed or code, and the sizes add up to the file's."""
    size = path.stat().st_size
    _check_directory(path, size)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_members(path, members, size)
            (data,) = (member for member in members if _member_name(member) == "data.pkl")
            pickle_scanner.scan_pickle(BytesIO(archive.read(data)), path, size)
    except KilolayerError:
        raise
    except Exception as error:  # zipfile raises more than its documentation says
        raise InputError(f"{quote(path)}: damaged ({error_text(error)})") from None


def _check_directory(path: Path, size: int) -> None:
    """Raises `InputError` where the list of members is most of the file: each becomes a Python object."""
    with path.open("rb") as file:
        file.seek(max(0, size - END_BYTES))
        tail = file.read()
    at = tail.rfind(END_MARK)
    directory = int.from_bytes(tail[at + 12 : at + 16], "little")
    if directory == 2**32 - 1:  # the size stands in an end of 64 bits in front
        at = tail.rfind(END64_MARK)
        directory = int.from_bytes(tail[at + 40 : at + 48], "little")
    most = SMALL_DIRECTORY + size // 2
    if at >= 0 and directory > most:
        raise InputError(
            f"{quote(path)}: lists members in {directory:,} bytes of a file of {size:,}; allowed: {most:,}"
        )


def _check_members(path: Path, members: list[zipfile.ZipInfo], size: int) -> None:
    names = [_member_name(member) for member in members]
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise InputError(f"{quote(path)}: is TorchScript, which is code; {pickle_scanner.ADVICE}")
    if names.count("data.pkl") != 1:
        raise InputError(f"{quote(path)}: is a zip archive, but not one of torch.save (it has no data.pkl)")
    if any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members):
        raise InputError(f"{quote(path)}: has compressed parts, which torch.save never writes")
    declared = sum(member.file_size for member in members)
    if declared > size:
        raise InputError(f"{quote(path)}: declares {declared:,} bytes in a file of {size:,}")


def _member_name(member: zipfile.ZipInfo) -> str:
    """The name without the folder that all members lie in."""
    return member.filename.partition("/")[2]


def load_legacy(path: Path) -> Any:
    """The content of the file. Raises `InputError`."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            for _ in range(LEGACY_PICKLES):
                pickle_scanner.scan_pickle(file, path, size, legacy=True)
    except OSError as error:
        raise InputError(f"{quote(path)}: cannot be read ({error.strerror})") from None
    return load_tensors(path, mmap=False)
