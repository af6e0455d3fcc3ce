"""Looking at pictures before they are needed: headers only, or every pixel decoded once and forgotten."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from io import BytesIO

import numpy as np
from PIL import Image

from kilolayer.data import remembered
from kilolayer.data.pictures import FORMATS, Header, Pictures, Unreadable, each, render


@dataclass(frozen=True)
class Seen:
    """A readable picture. `digest`, of its pixels, and `looks` are empty where only the header was read."""

    header: Header
    digest: str = ""
    looks: frozenset[str] = frozenset()


Found = Seen | Unreadable


def glance(pictures: Pictures, what: str) -> list[Found]:
    """Headers, and the mark that ends a file: quick, and blind to damage between them."""
    return each(pictures, lambda image, i: Seen(Header.of(image, pictures.appearance)), what)


def inspect(pictures: Pictures, what: str) -> list[Found]:
    """Every picture decoded whole, or remembered from when it was."""
    keys = [_key(pictures, i) for i in range(len(pictures))]
    found = [_from_text(text) if text else None for text in remembered.find(keys)]
    unknown = [i for i, one in enumerate(found) if one is None]
    if unknown:
        rest = pictures.take(np.array(unknown, np.int64))
        look = partial(_whole, rest)
        new = dict(zip(unknown, each(rest, look, what), strict=True))
        remembered.keep({key: _text(one) for i, one in new.items() if (key := keys[i]) is not None})
        found = [one or new[i] for i, one in enumerate(found)]
    return [one for one in found if one is not None]


def digest(pixels: bytes, shape: tuple[int, ...]) -> str:
    """The name of these pixels: equal for equal pictures, however they are stored."""
    return blake2b(repr(shape).encode() + pixels, digest_size=16).hexdigest()


def _key(pictures: Pictures, i: int) -> bytes | None:
    try:
        return remembered.key(pictures.raw(i), pictures.appearance)
    except Exception:  # a table's damaged cell; why is said where it is read
        return None


def _whole(pictures: Pictures, image: Image.Image, i: int) -> Seen:
    header = Header.of(image, pictures.appearance)
    plain, looks = render(image, "L" if header.grey else "RGB", pictures.appearance)
    if image.format == "PNG":
        # Decoding passes over checksums; a picture that was decoded cannot be verified any more.
        raw = pictures.raw(i)
        with Image.open(BytesIO(raw) if isinstance(raw, bytes) else raw, formats=FORMATS) as again:
            again.verify()
    return Seen(header, digest(plain.tobytes(), (*plain.size, len(plain.getbands()))), looks)


def _text(found: Found) -> str:
    if isinstance(found, Unreadable):
        return json.dumps([found.reason, found.kind])
    header = found.header
    return json.dumps([header.format, *header.size, header.grey, found.digest, sorted(found.looks)])


def _from_text(text: str) -> Found | None:
    try:
        values = json.loads(text)
        if len(values) == 2:
            return Unreadable(*values)
        format, width, height, grey, name, looks = values
        header = Header(str(format), (int(width), int(height)), bool(grey))
        return Seen(header, str(name), frozenset(map(str, looks)))
    except (ValueError, TypeError):
        return None
