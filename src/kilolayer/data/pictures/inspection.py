"""Checks pictures before they are used: their headers only, or all their pixels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from io import BytesIO

import numpy as np
from PIL import Image

from kilolayer.data.pictures import inspection_cache
from kilolayer.data.pictures.decoding import (
    FORMATS,
    EncodedPictures,
    Header,
    Unreadable,
    map_pictures,
    pixels_in_mode,
)
from kilolayer.data.pictures.rendering import TRAITS
from kilolayer.errors import InputError
from kilolayer.system.json_text import parse_json


@dataclass(frozen=True)
class InspectedPicture:
    """A readable picture. `digest` and `traits` are empty where only the header was read."""

    header: Header
    digest: str = ""
    traits: frozenset[str] = frozenset()


InspectionResult = InspectedPicture | Unreadable
"""What an inspection finds of one picture."""


def read_headers(pictures: EncodedPictures, title: str) -> list[InspectionResult]:
    """Reads each header, and looks for the mark that ends the file. Damage in between goes unseen."""
    distinct, index = pictures.without_repetitions()
    results = map_pictures(
        distinct, lambda image, i: InspectedPicture(Header.of(image, pictures.appearance)), title
    )
    return [results[at] for at in index.tolist()]


def inspect_pictures(pictures: EncodedPictures, title: str) -> list[InspectionResult]:
    """Decodes each picture completely, or takes the result of an earlier inspection from the cache."""
    distinct, index = pictures.without_repetitions()
    results = _inspect_distinct(distinct, title)
    return [results[at] for at in index.tolist()]


def _inspect_distinct(pictures: EncodedPictures, title: str) -> list[InspectionResult]:
    keys = [_key(pictures, i) for i in range(len(pictures))]
    results = [_from_text(text) if text else None for text in inspection_cache.lookup(keys)]
    unknown = [i for i, result in enumerate(results) if result is None]
    if unknown:
        missing = pictures.take(np.array(unknown, np.int64))
        function = partial(_inspect_picture, missing)
        new = dict(zip(unknown, map_pictures(missing, function, title), strict=True))
        inspection_cache.store(
            {key: _to_text(result) for i, result in new.items() if (key := keys[i]) is not None}
        )
        results = [result or new[i] for i, result in enumerate(results)]
    return [result for result in results if result is not None]


def pixel_digest(pixels: bytes, shape: tuple[int, ...]) -> str:
    """A digest of pixels: equal for equal pictures, however they are stored."""
    return blake2b(repr(shape).encode() + pixels, digest_size=16).hexdigest()


def _key(pictures: EncodedPictures, i: int) -> bytes | None:
    try:
        return inspection_cache.cache_key(pictures.encoded(i), pictures.appearance)
    except Exception:  # a damaged cell of a table; whoever reads it reports the reason
        return None


def _inspect_picture(pictures: EncodedPictures, image: Image.Image, i: int) -> InspectedPicture:
    header = Header.of(image, pictures.appearance)
    pixels, looks = pixels_in_mode(image, "L" if header.grey else "RGB", pictures.appearance)
    if image.format == "PNG":
        # Decoding ignores checksums, and Pillow cannot verify a picture after decoding it. So open it again.
        raw = pictures.encoded(i)
        with Image.open(BytesIO(raw) if isinstance(raw, bytes) else raw, formats=FORMATS) as again:
            again.verify()
    return InspectedPicture(
        header, pixel_digest(pixels.tobytes(), (*pixels.size, len(pixels.getbands()))), looks
    )


def _to_text(result: InspectionResult) -> str:
    if isinstance(result, Unreadable):
        return json.dumps([result.reason, result.kind])
    header = result.header
    return json.dumps([header.format, *header.size, header.grey, result.digest, sorted(result.traits)])


def _from_text(text: str) -> InspectionResult | None:
    try:
        values = parse_json(text)
    except InputError:
        return None
    match values:
        case [str(reason), ("damaged" | "empty" | "too_large") as kind]:
            return Unreadable(reason, kind)
        case [str(format), int(width), int(height), bool(grey), str(digest), list(traits)] if set(
            map(str, traits)
        ) <= set(TRAITS):
            return InspectedPicture(
                Header(format, (width, height), grey), digest, frozenset(map(str, traits))
            )
    return None
