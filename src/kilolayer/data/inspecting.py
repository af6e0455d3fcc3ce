"""Looking at pictures before they are needed: headers only, or every pixel decoded once and forgotten."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from kilolayer.data import remembered
from kilolayer.data.pictures import FORMATS, Header, Pictures, Unreadable, each


@dataclass(frozen=True)
class Seen:
    """A readable picture. `digest`: of its pixels, "" where only the header was read."""

    header: Header
    digest: str = ""


Found = Seen | Unreadable


def glance(pictures: Pictures, what: str) -> list[Found]:
    """Headers, and the mark that ends a file: quick, and blind to damage between them."""
    return each(pictures, lambda image, i: Seen(Header.of(image)), what)


def inspect(pictures: Pictures, what: str) -> list[Found]:
    """Every picture decoded whole, or remembered from when it was."""
    keys = [_key(pictures, i) for i in range(len(pictures))]
    found = [_from_text(text) if text else None for text in remembered.find(keys)]
    unknown = [i for i, one in enumerate(found) if one is None]
    if unknown:
        rest = pictures.take(np.array(unknown, np.int64))
        new = dict(zip(unknown, each(rest, lambda image, i: _whole(image, rest.raw(i)), what), strict=True))
        remembered.keep({key: _text(one) for i, one in new.items() if (key := keys[i]) is not None})
        found = [one or new[i] for i, one in enumerate(found)]
    return [one for one in found if one is not None]


def digest(pixels: bytes, shape: tuple[int, ...]) -> str:
    """The name of these pixels: equal for equal pictures, however they are stored."""
    return blake2b(repr(shape).encode() + pixels, digest_size=16).hexdigest()


def _key(pictures: Pictures, i: int) -> bytes | None:
    try:
        return remembered.key(pictures.raw(i))
    except Exception:  # a table's damaged cell; why is said where it is read
        return None


def _whole(image: Image.Image, raw: Path | bytes) -> Seen:
    header = Header.of(image)
    plain = image.convert("L" if header.grey else "RGB")
    if image.format == "PNG":
        # Decoding passes over checksums; a picture that was decoded cannot be verified any more.
        with Image.open(BytesIO(raw) if isinstance(raw, bytes) else raw, formats=FORMATS) as again:
            again.verify()
    return Seen(header, digest(plain.tobytes(), (*plain.size, len(plain.getbands()))))


def _text(found: Found) -> str:
    if isinstance(found, Unreadable):
        return json.dumps([found.reason, found.kind])
    header = found.header
    return json.dumps([header.format, *header.size, header.grey, found.digest])


def _from_text(text: str) -> Found | None:
    try:
        values = json.loads(text)
        if len(values) == 2:
            return Unreadable(*values)
        format, width, height, grey, name = values
        return Seen(Header(str(format), (int(width), int(height)), bool(grey)), str(name))
    except (ValueError, TypeError):
        return None
