"""From the colours that a picture's ICC profile describes to sRGB, which screens and other pictures take."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

MOST_BYTES = 4_000_000  # those of printing presses have up to 3 million
ROUNDING = 1  # of 255: two profiles of sRGB differ by no more


class Misfit(ValueError):
    """A profile that is damaged, or one for other channels than the picture's."""


def to_srgb(image: Image.Image, base: str) -> ImageCms.ImageCmsTransform | None:
    """What takes the channels of `image`, `base` ("L", "RGB", "CMYK", "LAB"), to sRGB; None: they are sRGB.

    Raises `Misfit`.
    """
    profile = image.info.get("icc_profile")
    if base == "LAB":
        return _from_lab()
    if not profile:
        return None
    if not isinstance(profile, bytes) or len(profile) > MOST_BYTES:
        raise Misfit
    return _transform(profile, base)


@lru_cache(16)
def _transform(profile: bytes, base: str) -> ImageCms.ImageCmsTransform | None:
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        # Otherwise a curve of grey becomes 33 straight pieces, too few for the dark ones.
        flags = ImageCms.Flags.NOOPTIMIZE if base == "L" else ImageCms.Flags.NONE
        transform = ImageCms.buildTransform(source, srgb, base, "RGB", flags=flags)
        return None if _changes_nothing(transform, base) else transform
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        raise Misfit from error


@lru_cache(1)
def _from_lab() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(
        ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
    )


def _changes_nothing(transform: ImageCms.ImageCmsTransform, base: str) -> bool:
    """Whether every colour of a grid stays what it is."""
    if base == "CMYK":
        return False
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(*[levels] * 3), -1).reshape(27, 27, 3)
    probe = Image.fromarray(grid) if base == "RGB" else Image.linear_gradient("L")
    before = np.asarray(probe.convert("RGB")).astype(int)
    return bool(abs(np.asarray(transform.apply(probe)).astype(int) - before).max() <= ROUNDING)
