"""S5: a folder with anything wrong in it ends training before its first step, and what is wrong is named."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hostile import peak, reset_peak, resident, status, tree
from PIL import Image

from kilolayer.data import Data, load
from kilolayer.data.pictures import decoding

CASES, ODD = 450, 50
ROOM = 700_000_000
FORMATS = {"PNG": "png", "JPEG": "jpg", "BMP": "bmp", "GIF": "gif", "WEBP": "webp", "TIFF": "tif"}
Fault = Callable[[Path, random.Random], list[str]]
"""Does something to a folder of images, and returns the names that must be said."""


@cache
def image(seed: int, format: str = "PNG", side: int = 16) -> bytes:
    buffer = io.BytesIO()
    values = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(values).save(buffer, format, **({"quality": 95} if format in ("JPEG", "WEBP") else {}))
    return buffer.getvalue()


def sound(root: Path, seed: int) -> Path:
    for number, name in enumerate(("train/ant", "train/bee", "test/ant", "test/bee")):
        (root / name).mkdir(parents=True)
        for i in range(4):
            (root / name / f"{i}.png").write_bytes(image(100 * seed + 10 * number + i))
    return root


def somewhere(root: Path, rng: random.Random) -> Path:
    return root / rng.choice(("train/ant", "train/bee", "test/ant", "test/bee"))


def bad_files(content: Callable[[random.Random], bytes]) -> Fault:
    def fault(root: Path, rng: random.Random) -> list[str]:
        names = [f"bad{i}.{rng.choice(('png', 'jpg', 'tif'))}" for i in range(rng.choice((1, 1, 2, 5, 14)))]
        for name in names:
            (somewhere(root, rng) / name).write_bytes(content(rng))
        return names

    return fault


def truncated(rng: random.Random) -> bytes:
    format = rng.choice(list(FORMATS))
    # A GIF's or a TIFF's last bytes say nothing of its pixels.
    raw = image(rng.randrange(20), format, 64)
    return raw[: rng.randrange(8, int(0.85 * len(raw)))]


def png(width: int, height: int, rows: bytes) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@cache
def rows(width: int, height: int) -> bytes:
    return zlib.compress(bytes((width // 8 + 1) * height), 9)


def bomb(rng: random.Random) -> bytes:
    side = rng.choice((8000, 9000, 12_000, 30_000))
    return png(side, side, rows(side, side) if side < 12_000 else b"")


def damaged_png(rng: random.Random) -> bytes:
    """Whole at its end; only its checksums tell."""
    raw = bytearray(image(rng.randrange(20)))
    raw[rng.randrange(60, len(raw) - 30)] ^= 1 << rng.randrange(8)
    return bytes(raw)


def nonsense(rng: random.Random) -> bytes:
    start = rng.choice((b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"II*\0", b"%!PS\n", b"<svg>"))
    return start + rng.randbytes(rng.randrange(1, 300))


def no_files(root: Path, rng: random.Random) -> list[str]:
    path = somewhere(root, rng) / f"odd{rng.randrange(100)}"
    match rng.randrange(6):
        case 0:
            path.symlink_to(path)
        case 1:
            path.symlink_to(root)
        case 2:
            path.symlink_to("/nowhere")
        case 3:
            path.mkdir()
        case 4:
            os.mkfifo(path)
        case _:
            path.symlink_to("/dev/zero")
    return [path.name]


def empty_class(root: Path, rng: random.Random) -> list[str]:
    name = f"empty{rng.randrange(100)}"
    (root / rng.choice(("train", "test")) / name).mkdir()
    return [name]


def one_sided_class(root: Path, rng: random.Random) -> list[str]:
    name = f"lone{rng.randrange(100)}"
    folder = root / rng.choice(("train", "test")) / name
    folder.mkdir()
    (folder / "1.png").write_bytes(image(99))
    return [name]


def unnamed_class(root: Path, rng: random.Random) -> list[str]:
    name = rng.choice(("a\nb", "\x1b[2J", os.fsdecode(b"\xff\xfe"), "a\x00b".replace("\0", "\x7f")))
    for part in ("train", "test"):
        (root / part / "ant").rename(root / part / name)
    return ["class names are unprintable"]


def lost_class(root: Path, rng: random.Random) -> list[str]:
    name = f"lost{rng.randrange(100)}"
    (root / rng.choice(("train", "test")) / name).symlink_to(root / "nowhere")
    return [name]


FAULTS: tuple[Fault, ...] = (
    bad_files(truncated), bad_files(truncated), bad_files(bomb), bad_files(damaged_png), bad_files(nonsense),
    bad_files(lambda rng: b""), no_files, empty_class, one_sided_class, unnamed_class, lost_class,
)  # fmt: skip


def wrong(number: int, root: Path) -> list[str]:
    """Makes a folder with one fault, or now and then several; what must be said where it is one."""
    rng = random.Random(number)
    sound(root, number % 20)
    first = FAULTS[number % len(FAULTS)](root, rng)
    if number % 9 != 0:
        return first
    for fault in rng.sample(FAULTS[:7], 2):
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            fault(root, rng)
    return []


def holds(number: int, root: Path) -> bool:
    data, out = root / "photos", root / "run"
    said = wrong(number, data)
    before = tree(data).keys()
    reset_peak()
    base = resident()
    words = ("train", "--data", str(data), "--model", "preact_resnet8_cifar", "--out", str(out))
    code, _, err = status([*words, "--iterations", "1", "--batch-size", "2", "--no-tensorboard"])
    refused = code == 2 and err.count("\n") == 1 and not out.exists() and tree(data).keys() == before
    named = sum(name in err for name in said) == min(len(said), 10)
    checked = status(["check-data", str(data), "--json"])
    found = checked[0] == 1 and any(one["refused"] for one in json.loads(checked[1])["findings"])
    return refused and named and found and peak() - base < ROOM


def test_folders(
    tmp_path: Path, chosen: Callable[[Sequence[int]], list[int]], count: Callable[..., None]
) -> None:
    cases = chosen(range(CASES))
    failed = [str(number) for number in cases if not holds(number, tmp_path / str(number))]
    count("S5", tried=len(cases), held=len(cases) - len(failed), note=", ".join(failed))


def odd_name(rng: random.Random) -> str:
    letters = (
        " ",
        "\n",
        "\t",
        "\x1b",
        "\u202e",
        "é",
        "🐜",
        "'",
        '"',
        "<b>",
        "&",
        "%s",
        "{}",
        "$(id)",
        "-",
        "\udcff",
    )
    return "".join(rng.choice(letters) for _ in range(rng.randrange(1, 8))) + rng.choice(
        (".png", "", ".txt", ".")
    )


def test_odd_names_of_images_do_no_harm(
    tmp_path: Path, chosen: Callable[[Sequence[int]], list[int]], count: Callable[..., None]
) -> None:
    cases, held = chosen(range(ODD)), 0
    for number in cases:
        root, rng = sound(tmp_path / str(number), number % 20), random.Random(number)
        names = {odd_name(rng) for _ in range(3)}
        for i, name in enumerate(names):
            (root / "train/ant" / name).write_bytes(image(1000 + i))
        code, out, err = status(["check-data", str(root)])
        held += len(load(Data(str(root))).train) == 8 + len(names) and code in (0, 1) and not err
        held -= re.search(r"[\x00-\x09\x0b-\x1f\udc80-\udcff]", out) is not None
    count("S5", tried=len(cases), held=held, note="odd names")


@pytest.mark.parametrize("fault", ["truncated images let through", "no cap on pixels", "the test set unread"])
def test_the_harness_sees_seeded_faults(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "no cap on pixels":
        monkeypatch.setattr(decoding, "MOST_PIXELS", 10**12)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        numbers = range(2, 60, len(FAULTS))
    elif fault == "truncated images let through":
        monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
        numbers = range(0, 300, len(FAULTS))
    else:
        from kilolayer.data.sources import picture_source

        monkeypatch.setattr(picture_source, "inspect_pictures", picture_source.read_headers)
        numbers = range(3, 300, len(FAULTS))
    assert not all(holds(number, tmp_path / str(number)) for number in numbers if number % 9)
