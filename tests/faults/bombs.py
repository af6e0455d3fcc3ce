"""Small files that become large: each of `BOMBS` writes one into a folder and gives the command line."""

from __future__ import annotations

import gzip
import io
import json
import os
import sqlite3
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gadgets
import numpy as np
from PIL import Image

Words = list[str]
BOMBS: dict[str, Callable[[Path], Words]] = {}
TRAIN = ["--model", "preact_resnet8_cifar", "--iterations", "2", "--threads", "1", "--no-tensorboard"]


def bomb(function: Callable[[Path], Words]) -> Callable[[Path], Words]:
    BOMBS[function.__name__] = function
    return function


def png(side: int = 8, seed: int = 0) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


# Thrift's compact protocol, as far as a footer and the headers of pages need it


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


class Long(int):
    """A whole number of 64 bits."""


class Listed(bytes):
    """A list that is written already."""


def listed(element: bytes, count: int) -> Listed:
    return Listed(b"\xfc" + varint(count) + element * count)


def thrift(value: Any) -> bytes:
    match value:
        case dict():
            out, last = b"", 0
            for number in sorted(value):
                out += bytes([(number - last) << 4 | kind_of(value[number])]) + thrift(value[number])
                last = number
            return out + b"\0"
        case int():
            return varint(value << 1 if value >= 0 else (-value << 1) - 1)
        case Listed():
            return value
        case str():
            return varint(len(value)) + value.encode()
        case list():
            kind = kind_of(value[0]) if value else 12
            return bytes([0xF0 | kind]) + varint(len(value)) + b"".join(map(thrift, value))
    raise TypeError(value)


def kind_of(value: Any) -> int:
    kinds = ((dict, 12), (Long, 6), (int, 5), (str, 8), (list, 9), (Listed, 9))
    return next(number for kind, number in kinds if isinstance(value, kind))


def page(values: int, size: int, stored: bytes, encoding: int = 0) -> bytes:
    return thrift({1: 0, 2: size, 3: len(stored), 5: {1: values, 2: encoding, 3: 3, 4: 3}}) + stored


def footer(
    *, columns: Any = (), groups: Any = (), rows: int = 0, notes: Any = None, names: Any = None
) -> bytes:
    names = names or [{4: "schema", 5: len(columns)}, *columns]
    fields = {1: 2, 2: names, 3: Long(rows), 4: groups if groups else Listed(b"\x0c")}
    raw = thrift(fields if notes is None else fields | {5: notes})
    return raw + struct.pack("<I", len(raw)) + b"PAR1"


ZSTD = 6
PLAIN, DELTA_BINARY, DELTA_LENGTH, DELTA_BYTES = 0, 5, 6, 7


def table_of_pages(
    path: Path,
    images: bytes,
    rows: int,
    *,
    claimed: int | None = None,
    labels: bytes | None = None,
    groups: int = 1,
) -> Words:
    """A file with a column of images and one of labels, whose pages are given."""
    if labels is None:
        raw = (np.arange(rows) % 2).astype("<i8").tobytes()
        labels = page(rows, len(raw), raw)
    claimed = claimed or rows

    def column(name: str, kind: int, start: int, pages: bytes, codec: int) -> dict[int, Any]:
        size = Long(len(pages))
        details = {
            1: kind,
            2: [0, 8],
            3: [name],
            4: codec,
            5: Long(claimed),
            6: size,
            7: size,
            9: Long(start),
        }
        return {2: Long(start), 3: details}

    chunks = [column("image", 6, 4, images, ZSTD), column("label", 2, 4 + len(images), labels, 0)]
    group = {1: chunks, 2: Long(len(images) + len(labels)), 3: Long(claimed)}
    columns = [{1: 6, 3: 0, 4: "image"}, {1: 2, 3: 0, 4: "label"}]
    end = footer(columns=columns, groups=[group] * groups, rows=claimed * groups)
    path.write_bytes(b"PAR1" + images + labels + end)
    return ["check-data", str(path)]


def parquet(folder: Path, columns: dict[str, Any], **options: Any) -> Words:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "train-0.parquet"
    pq.write_table(pa.table(columns), path, **({"compression": "zstd"} | options))
    return ["check-data", str(path)]


def compressed(raw: bytes) -> bytes:
    import pyarrow as pa

    return bytes(pa.compress(raw, codec="zstd", asbytes=True))


def repeated(values: list[Any], rows: int) -> Any:
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(
        pa.array([i % len(values) for i in range(rows)], pa.int32()), values
    )


def few_pngs(rows: int) -> Any:
    import pyarrow as pa

    return pa.array([png(8, i % 50) for i in range(rows)], pa.binary())


def binary(values: list[bytes]) -> Any:
    import pyarrow as pa

    return pa.array(values, pa.binary())


@bomb
def one_megabyte_in_20000_rows(folder: Path) -> Words:
    import pyarrow as pa

    images = repeated(pa.array([bytes(10**6)]), 20_000).cast(pa.dictionary(pa.int32(), pa.binary()))
    structs = pa.StructArray.from_arrays([images, pa.nulls(20_000, pa.string())], ["bytes", "path"])
    return parquet(folder, {"image": structs, "label": [0, 1] * 10_000})


@bomb
def empty_rows(folder: Path) -> Words:
    import pyarrow as pa

    rows = 20_000_000
    return parquet(folder, {"image": pa.nulls(rows, pa.binary()), "label": np.zeros(rows, np.int64)})


@bomb
def rows_of_2_62(folder: Path) -> Words:
    raw = compressed(struct.pack("<I3s", 3, b"abc") * 10)
    return table_of_pages(folder / "a.parquet", page(10, 70, raw), 10, claimed=2**62)


@bomb
def a_footer_of_other_rows(folder: Path) -> Words:
    raw = compressed(struct.pack("<I3s", 3, b"abc") * 10)
    return table_of_pages(folder / "a.parquet", page(10, 70, raw), 10, claimed=50)


def texts(folder: Path, **columns: Any) -> Words:
    long = repeated(["a" * 10**6, "b" * 10**6], 20_000)
    named = {name: long if value is None else value for name, value in columns.items()}
    return parquet(folder, {"image": few_pngs(20_000), **named}, store_schema=False)


@bomb
def labels_of_a_megabyte(folder: Path) -> Words:
    return texts(folder, label=None)


@bomb
def label_names_of_a_megabyte(folder: Path) -> Words:
    return texts(folder, label=[0, 1] * 10_000, label_name=None)


@bomb
def splits_of_a_megabyte(folder: Path) -> Words:
    return texts(folder, label=[0, 1] * 10_000, split=None)


@bomb
def zeros_in_zstd(folder: Path) -> Words:
    return parquet(folder, {"image": binary([bytes(10**8)] * 10), "label": [0, 1] * 5}, use_dictionary=False)


@bomb
def zeros_in_brotli(folder: Path) -> Words:
    columns = {"image": binary([bytes(10**8)] * 10), "label": [0, 1] * 5}
    return parquet(folder, columns, use_dictionary=False, compression="brotli")


@bomb
def shared_beginnings(folder: Path) -> Words:
    columns = {"image": binary([bytes(10**6)] * 3000), "label": [0, 1] * 1500}
    encoding = {"image": "DELTA_BYTE_ARRAY", "label": "PLAIN"}
    return parquet(folder, columns, use_dictionary=False, column_encoding=encoding)


@bomb
def shared_beginnings_that_differ(folder: Path) -> Words:
    columns = {"image": binary([bytes(10**6) + str(i).encode() for i in range(3000)]), "label": [0, 1] * 1500}
    encoding = {"image": "DELTA_BYTE_ARRAY", "label": "PLAIN"}
    return parquet(folder, columns, use_dictionary=False, column_encoding=encoding)


@bomb
def a_page_that_claims_2_gb(folder: Path) -> Words:
    return table_of_pages(folder / "a.parquet", page(10, 2**31 - 1, compressed(bytes(100))), 10)


@bomb
def a_page_of_2_billion_values(folder: Path) -> Words:
    raw = compressed(struct.pack("<I3s", 3, b"abc") * 10)
    return table_of_pages(folder / "a.parquet", page(2**31 - 1, 70, raw), 10)


@bomb
def one_page_in_20000_groups(folder: Path) -> Words:
    raw = struct.pack("<I", 10**6) + bytes(10**6)
    return table_of_pages(folder / "a.parquet", page(1, len(raw), compressed(raw)), 1, groups=20_000)


def delta_header() -> bytes:
    return varint(128) + varint(4) + varint(2**31 - 1) + b"\0"


@bomb
def deltas_of_2_billion_beginnings(folder: Path) -> Words:
    raw = delta_header() * 2
    return table_of_pages(folder / "a.parquet", page(10, len(raw), compressed(raw), DELTA_BYTES), 10)


@bomb
def deltas_of_2_billion_lengths(folder: Path) -> Words:
    raw = delta_header()
    return table_of_pages(folder / "a.parquet", page(10, len(raw), compressed(raw), DELTA_LENGTH), 10)


@bomb
def deltas_of_2_billion_labels(folder: Path) -> Words:
    raw, labels = compressed(struct.pack("<I3s", 3, b"abc") * 10), delta_header()
    return table_of_pages(
        folder / "a.parquet", page(10, 70, raw), 10, labels=page(10, len(labels), labels, DELTA_BINARY)
    )


def only_footer(folder: Path, raw: bytes) -> Words:
    (folder / "a.parquet").write_bytes(b"PAR1" + raw)
    return ["train", "--data", str(folder / "a.parquet"), *TRAIN, "--out", str(folder / "run")]


@bomb
def a_footer_of_15_million_notes(folder: Path) -> Words:
    return only_footer(folder, footer(notes=listed(b"\x18\0\0", 15_000_000)))


@bomb
def a_footer_of_400_000_columns(folder: Path) -> Words:
    return only_footer(folder, footer(groups=[{1: listed(b"\x26\0\0", 400_000), 2: Long(0), 3: Long(0)}]))


@bomb
def a_footer_of_100_megabytes(folder: Path) -> Words:
    return only_footer(folder, footer(notes=[{1: "k" * 10**8}]))


@bomb
def a_schema_100_000_deep(folder: Path) -> Words:
    return only_footer(folder, footer(names=[*[{4: "s", 5: 1}] * 100_000, {1: 6, 3: 0, 4: "image"}]))


@bomb
def an_encrypted_file(folder: Path) -> Words:
    path = folder / "a.parquet"
    path.write_bytes(b"PARE" + bytes(100) + struct.pack("<I", 50) + b"PARE")
    return ["train", "--data", str(path), *TRAIN, "--out", str(folder / "run")]


@bomb
def a_large_picture_in_2000_rows(folder: Path) -> Words:
    import pyarrow as pa

    file = io.BytesIO()
    Image.new("L", (7000, 7000)).save(file, "PNG")
    images = repeated(pa.array([file.getvalue()]), 2000).cast(pa.dictionary(pa.int32(), pa.binary()))
    return parquet(folder, {"image": images, "label": [0, 1] * 1000})


# Weights


def described(network: str, classes: list[str], **tensors: Any) -> bytes:
    """A weights file of ours with this description."""
    import torch
    from safetensors.torch import save

    text = f'{{"network": {network}, "classes": {json.dumps(classes)}, "sha256": ""}}'
    inputs = {"input.mean": torch.zeros(3, 1, 1), "input.scale": torch.ones(1, 1, 1)}
    return save(inputs | tensors, {"kilolayer": text})


def network_text(**changes: Any) -> str:
    from kilolayer.networks import describe
    from kilolayer.values import to_json

    fields = json.loads(to_json(describe("preact_resnet8_cifar", num_classes=2)))
    return json.dumps(fields | changes)


def stage(units: int, width: int) -> dict[str, int]:
    return {"units": units, "width": width, "stride": 1}


WEIGHT_COMMANDS: tuple[tuple[str, Words], ...] = (
    ("evaluate", ["FILE", "--data", "digits"]),
    ("train", ["--init", "FILE", "--data", "digits", "--out", "RUN", *TRAIN[2:]]),
    ("predict", ["FILE", "digit.png"]), ("analyse", ["gradient", "FILE"]), ("show", ["FILE"]),
    ("audit", ["FILE"]),
)  # fmt: skip


def weights(name: str, raw: Callable[[], bytes]) -> None:
    """The file before each command that opens weights."""
    for command, options in WEIGHT_COMMANDS:

        def write(folder: Path, command: str = command, options: Words = options) -> Words:
            path = folder / "w.safetensors"
            path.write_bytes(raw())
            (folder / "digit.png").write_bytes(png())
            names = {"FILE": str(path), "digit.png": str(folder / "digit.png"), "RUN": str(folder / "run")}
            return [command, *(names.get(word, word) for word in options)]

        BOMBS[f"{name}: {command}"] = write


weights("90,000 units", lambda: described(network_text(stages=[stage(90_000, 16)]), ["a", "b"]))
weights("a width of a billion", lambda: described(network_text(stages=[stage(1, 10**9)]), ["a", "b"]))


@bomb
def units_without_end(folder: Path) -> Words:
    (folder / "w.safetensors").write_bytes(described(network_text(stages=[stage(10**18, 16)]), ["a", "b"]))
    return ["evaluate", str(folder / "w.safetensors"), "--data", "digits"]


@bomb
def a_million_tensors(folder: Path) -> Words:
    entries = ",".join(f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(10**6))
    raw = f"{{{entries}}}".encode()
    (folder / "w.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw)
    return ["evaluate", str(folder / "w.safetensors"), *TRAIN[:2], "--data", "digits"]


def pickled(body: bytes) -> Callable[[Path], Words]:
    def write(folder: Path) -> Words:
        (folder / "w.pt").write_bytes(gadgets.zipped(b"\x80\x02" + body + b"."))
        return ["evaluate", str(folder / "w.pt"), *TRAIN[:2], "--data", "digits"]

    return write


BOMBS["a pickle of 20 million lists"] = pickled(b"(" + b"]" * 20_000_000 + b"l")
BOMBS["a pickle of 20 million tuples"] = pickled(b"]" + b"\x85" * 20_000_000)
BOMBS["a pickle of 10 million memos"] = pickled(
    b"]" + b"".join(b"r" + struct.pack("<I", i) for i in range(5_000_000))
)


@bomb
def a_million_members(folder: Path) -> Words:
    path = folder / "w.pt"
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<H", 1) + bytes(16) + b"a"
    count = 2_000_000
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 65535, 65535, len(entry) * count, 4, 0)
    path.write_bytes(b"PK\x03\x04" + entry * count + end)
    return ["evaluate", str(path), *TRAIN[:2], "--data", "digits"]


# Archives and files of CIFAR


def cifar(folder: Path, members: list[tuple[tarfile.TarInfo, int]]) -> Words:
    """An archive whose members hold zeros."""
    path = folder / "cifar-10-binary.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for member, size in members:
            member.size = size
            file.write(member.tobuf(tarfile.GNU_FORMAT))
            for start in range(0, size, 2**20):
                file.write(bytes(min(2**20, size - start)))
            file.write(bytes(-size % 512))
        file.write(bytes(1024))
    return ["check-data", str(path)]


def member(name: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    return info


@bomb
def a_name_of_240_megabytes(folder: Path) -> Words:
    return cifar(folder, [(member("a", tarfile.GNUTYPE_LONGNAME), 240_000_000), (member("b"), 0)])


@bomb
def attributes_of_240_megabytes(folder: Path) -> Words:
    return cifar(folder, [(member("a", tarfile.XHDTYPE), 240_000_000), (member("b"), 0)])


@bomb
def a_batch_of_a_gigabyte(folder: Path) -> Words:
    return cifar(folder, [(member("cifar-10-batches-bin/data_batch_1.bin"), 1_000_000_000)])


@bomb
def members_without_end(folder: Path) -> Words:
    return cifar(folder, [(member("a"), 0)] * 100_000)


@bomb
def a_cifar_pickle_of_40_million_numbers(folder: Path) -> Words:
    inside = folder / "cifar-10-batches-py"
    inside.mkdir()
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        body = b"J\x00\x10\x00\x00" * 40_000_000 if name == "data_batch_1" else b""
        (inside / name).write_bytes(b"\x80\x02}U\x06labels](" + body + b"e.")
    return ["check-data", str(folder)]


# Pictures


def pictures(folder: Path, name: str, raw: bytes) -> Words:
    for group in ("cat", "dog"):
        (folder / "data" / group).mkdir(parents=True)
        for i in range(4):
            (folder / "data" / group / f"{i}.png").write_bytes(png(8, i + 10 * (group == "cat")))
    (folder / "data" / "cat" / name).write_bytes(raw)
    return ["check-data", str(folder / "data")]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_with(*chunks: bytes, size: tuple[int, int] = (8, 8)) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes((size[0] + 1) * size[1])))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


ZEROS = zlib.compress(bytes(500_000_000), 9)
PICTURES: dict[str, Callable[[], tuple[str, bytes]]] = {
    "a PNG's profile of 500 MB": lambda: ("a.png", png_with(chunk(b"iCCP", b"p\0\0" + ZEROS))),
    "a PNG's text of 500 MB": lambda: ("a.png", png_with(chunk(b"zTXt", b"k\0\0" + ZEROS))),
    "a PNG's long text of 500 MB": lambda: ("a.png", png_with(chunk(b"iTXt", b"k\0\1\0\0\0" + ZEROS))),
    "a PNG of a million texts": lambda: ("a.png", png_with(chunk(b"tEXt", b"k\0v") * 10**6)),
    "a PNG of a million profiles": lambda: (
        "a.png",
        png_with(chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0") * 10**6),
    ),
    "an animated PNG of 2^31 frames": lambda: (
        "a.png",
        png_with(chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
    ),
    "a PNG of 10^9 pixels": lambda: ("a.png", png_with(size=(2**31 - 1, 1)[::-1])[:200]),
    "a GIF of 300,000 frames": lambda: ("a.gif", gif(300_000)),
    "a GIF of 65535 pixels a side": lambda: ("a.gif", gif(1, 65535)),
    "a TIFF whose directories are a circle": lambda: ("a.tif", tiff(circle=True)),
    "a TIFF of 200,000 directories": lambda: ("a.tif", tiff(directories=200_000)),
    "a TIFF of 2^31 strips": lambda: ("a.tif", tiff(strips=2**31 - 1)),
    "a TIFF of a tag of 4 GB": lambda: ("a.tif", tiff(tag=2**32 - 1)),
    "a JPEG of a thousand scans": lambda: ("a.jpg", scans(1000)),
    "a PPM of a million digits": lambda: ("a.ppm", b"P6 " + b"9" * 10**6 + b" 1 255 "),
    "a PPM of 10^18 pixels": lambda: ("a.ppm", b"P6 1000000000 1000000000 255 "),
    "a BMP of 2^31 pixels": lambda: ("a.bmp", bmp(2**31 - 1, 1)),
    "a WebP of 16383 pixels a side": lambda: ("a.webp", webp()),
    "a JPEG with EXIF of many tags": lambda: ("a.jpg", exif_jpeg()),
}


def gif(frames: int, side: int = 8) -> bytes:
    screen = struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(6)
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, min(side, 8), min(side, 8), 0) + b"\x02\x02\x44\x01\x00"
    return b"GIF89a" + screen + frame * frames + b"\x3b"


def tiff(*, circle: bool = False, directories: int = 1, strips: int = 1, tag: int = 0) -> bytes:
    tags = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, strips, 8), (277, 3, 1, 1), (278, 4, 1, 8), (279, 4, strips, 64)]
    tags += [(700, 1, tag, 8)] * bool(tag)
    body = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *each) for each in tags)
    size, start = len(body) + 4, 8 + 64
    parts = [b"II*\0" + struct.pack("<I", start) + bytes(64)]
    for i in range(directories):
        following = start if circle else start + (i + 1) * size if i + 1 < directories else 0
        parts.append(body + struct.pack("<I", following))
    return b"".join(parts)


def scans(count: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (7000, 7000)).save(file, "JPEG", progressive=True)
    raw = file.getvalue()
    at = raw.rindex(b"\xff\xda")
    return raw[:at] + raw[at:-2] * count + raw[-2:]


def bmp(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


def webp() -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "WEBP", lossless=True)
    raw = bytearray(file.getvalue())
    at = raw.index(b"VP8L") + 9
    raw[at : at + 4] = struct.pack("<I", 0x3FFF | 0x3FFF << 14)
    return bytes(raw)


def exif_jpeg() -> bytes:
    file = io.BytesIO()
    tags = b"MM\0*\0\0\0\x08" + struct.pack(">H", 5000)
    tags += b"".join(struct.pack(">HHII", 0x9000, 2, 2**31, 0) for _ in range(5000))
    Image.new("L", (8, 8)).save(file, "JPEG", exif=b"Exif\0\0" + tags[:60_000])
    return file.getvalue()


def picture(make: Callable[[], tuple[str, bytes]]) -> Callable[[Path], Words]:
    return lambda folder: pictures(folder, *make())


BOMBS |= {name: picture(make) for name, make in PICTURES.items()}


# Lists beside pictures, and the cache


def beside(folder: Path, name: str, write: Callable[[Path], object]) -> Words:
    words = pictures(folder, "z.png", png(8, 99))
    write(folder / "data" / name)
    return words


def sparse(path: Path) -> None:
    """Eight gigabytes of zeros that take no room on the disk."""
    with path.open("wb") as file:
        file.write(b"---\nfile,label\n")
        file.truncate(8 * 10**9)


LISTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a table whose line never ends": ("labels.csv", sparse),
    "a card without end": ("README.md", sparse),
    "a list of JSON without end": ("metadata.jsonl", sparse),
    "annotations without end": ("val_annotations.txt", sparse),
    "a card of blank lines": ("README.md", lambda path: path.write_text("---\n" + "\n" * 10**6 + "x\n---\n")),
    "a card of dashes": ("README.md", lambda path: path.write_text("---\n" + "- " * 400_000 + "x\n---\n")),
    "a table of 30 million cells": (
        "labels.csv",
        lambda path: path.write_text(("ab," * 100_000 + "\n") * 300),
    ),
    "a table of a number": (
        "labels.csv",
        lambda path: path.write_text("file,label\na.png," + "9" * 900_000 + "\n"),
    ),
    "JSON nested deeply": ("metadata.jsonl", lambda path: path.write_text("[" * 900_000 + "\n")),
    "JSON of a million digits": ("metadata.jsonl", lambda path: path.write_text("9" * 900_000 + "\n")),
}


def listed_beside(name: str, write: Callable[[Path], object]) -> Callable[[Path], Words]:
    return lambda folder: beside(folder, name, write)


BOMBS |= {title: listed_beside(*case) for title, case in LISTS.items()}


def cached(*statements: str) -> Callable[[Path], Words]:
    """A planted cache of inspections."""

    def write(folder: Path) -> Words:
        words = pictures(folder, "z.png", png(8, 99))
        cache = Path(os.environ["XDG_CACHE_HOME"]) / "kilolayer"
        cache.mkdir(parents=True, exist_ok=True)
        (cache / "images.sqlite").unlink(missing_ok=True)
        with sqlite3.connect(cache / "images.sqlite") as connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()
        return words

    return write


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS key, i AS said FROM n"
BOMBS["a cache that is an endless view"] = cached(f"CREATE VIEW seen AS {ENDLESS}")


# The command line and configuration

WORDS = (
    "show preact_resnet1000000000_cifar", f"show resnet{'9' * 5000}_cifar",
    "show wide_resnet28_1000000000_cifar",
    "show resnext29_1000000000x64d_cifar",
    "train --model preact_resnet600002_cifar", "train --model wide_resnet28_100000_cifar --subset 64",
    "train --image-size 1000000000", "train --batch-size 1000000000",
    f"train --iterations {10**18}", f"train --epochs {10**18}", f"train --snapshots {10**18}",
    f"train --seed {10**30}", f"train --subset {10**18}", f"train --validation {10**18}",
    f"train --threads {10**9}",
    f"train --iterations {'9' * 10_000}", f"analyse initialisation preact_resnet8_cifar --seeds {10**9}",
    f"analyse gradient preact_resnet8_cifar --batch-size {10**12}",
    "analyse gradient wide_resnet28_100000_cifar",
    "analyse gradient preact_resnet8_cifar --image-size 1000000", f"reproduce p2-table-1 --seeds {10**9}",
    f"reproduce p2-table-1 --scale smoke --seeds {'9' * 5000}", f"reproduce p2-table-1 --workers {10**9}",
    f"reproduce p2-table-1 --depths 110={10**9}", f"reproduce p2-table-1 --cores {10**9}",
    f"reproduce p2-table-1 --register --looks {','.join(map(str, range(1, 9_000)))}",
    f"reproduce p2-table-1 --image-size {10**9}", f"bench preact_resnet8_cifar --image-size {10**9}",
    f"bench wide_resnet28_100000_cifar --batch-size {10**4}",
    f"bench preact_resnet8_cifar --batch-size {10**12}",
)  # fmt: skip


def typed(words: str) -> Callable[[Path], Words]:
    def write(folder: Path) -> Words:
        command, *rest = words.split()
        if command == "reproduce":
            rest += ["--out", str(folder / "sweep")]
        if command == "train":
            rest += ["--out", str(folder / "run"), "--no-tensorboard", "--data", "digits"]
        return [command, *rest]

    return write


BOMBS |= {words[:70]: typed(words) for words in WORDS}


def configured(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], Words]:
    """A run's folder with another config.json, resumed."""

    def write(folder: Path) -> Words:
        from kilolayer.values import to_json
        from tiny_runs import tiny

        fields = json.loads(to_json(tiny()))
        change(fields)
        (folder / "run").mkdir()
        (folder / "run" / "config.json").write_text(json.dumps(fields))
        (folder / "run" / "environment.json").write_text("[]")
        return ["train", "--resume", str(folder / "run"), "--no-tensorboard"]

    return write


CONFIGURATIONS: dict[str, Callable[[dict[str, Any]], object]] = {
    "90,000 units": lambda run: run["network"].update(stages=[stage(90_000, 10**5)]),
    "a billion units": lambda run: run["network"].update(stages=[stage(10**9, 8)]),
    "50,000 stages": lambda run: run["network"].update(stages=[stage(1, 8)] * 50_000),
    "a width of a billion": lambda run: run["network"].update(stages=[stage(1, 10**9)]),
    "a billion classes": lambda run: run["network"].update(num_classes=10**9),
    "a billion channels": lambda run: run["network"].update(in_chans=10**9),
    "a side of a billion": lambda run: run["network"].update(image_size=10**9),
    "a kernel of a billion": lambda run: run["network"]["stem"].update(kernel=10**9 - 1),
    "10^18 iterations": lambda run: run["recipe"].update(iterations=10**18),
    "300,000 drops": lambda run: run["recipe"]["rate"].update(drops=[[3, 0.1]] * 300_000),
    "300,000 resizes": lambda run: run["recipe"]["progressive_resize"].update(
        changes=[[i / 10**6, 0.9] for i in range(1, 300_000)]
    ),
    "a billion pixels": lambda run: run["data"].update(image_size=10**9),
    "a billion to hold out": lambda run: run["data"].update(validation=10**18),
}
BOMBS |= {f"config.json: {title}": configured(change) for title, change in CONFIGURATIONS.items()}
