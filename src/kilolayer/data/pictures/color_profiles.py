"""Converts the colours of a picture to sRGB, from its ICC profile or its gamma."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

MOST_BYTES = 4_000_000  # profiles of printing presses have up to 3 million
GAMMA_TOLERANCE = 0.05  # the tolerance within which programs take a gamma for sRGB's
ROUNDING = 1  # of 255; two profiles of sRGB differ by at most this


class UnusableProfile(ValueError):
    """A profile that is damaged, or is for other channels than the picture's."""


Conversion = Callable[[Image.Image], Image.Image]


def to_srgb(image: Image.Image, base: str) -> Conversion | None:
    """The conversion of `image` to sRGB; None where its channels are sRGB already.

    base: the mode of the channels, "L", "RGB", "CMYK" or "LAB". Raises `UnusableProfile`.
    """
    profile = image.info.get("icc_profile")
    if base == "LAB":
        return _from_lab().apply
    if not profile:
        return _from_gamma(image)
    if not isinstance(profile, bytes) or len(profile) > MOST_BYTES:
        raise UnusableProfile
    transform = _transform(profile, base)
    return transform.apply if transform else None


def _from_gamma(image: Image.Image) -> Conversion | None:
    """The conversion for a PNG's `gAMA`; None without one, or where it is nearly sRGB's 1/2.2."""
    gamma = image.info.get("gamma")
    if not gamma or "srgb" in image.info or abs(2.2 * gamma - 1) < GAMMA_TOLERANCE:
        return None
    light = np.linspace(0, 1, 256) ** (1 / gamma)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    table = np.round(255 * encoded).astype(int).tolist()
    return lambda colour: colour.point(table * len(colour.getbands()))


@lru_cache(16)
def _transform(profile: bytes, base: str) -> ImageCms.ImageCmsTransform | None:
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        # Otherwise a curve of grey becomes 33 straight pieces, too few in the dark.
        flags = ImageCms.Flags.NOOPTIMIZE if base == "L" else ImageCms.Flags.NONE
        transform = ImageCms.buildTransform(source, srgb, base, "RGB", flags=flags)
        return None if _is_srgb(transform, base) else transform
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        raise UnusableProfile from error


@lru_cache(1)
def _from_lab() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(
        ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
    )


def _is_srgb(transform: ImageCms.ImageCmsTransform, base: str) -> bool:
    """Whether the transform leaves every colour of a grid unchanged."""
    if base == "CMYK":
        return False
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(*[levels] * 3), -1).reshape(27, 27, 3)
    probe = Image.fromarray(grid) if base == "RGB" else Image.linear_gradient("L")
    before = np.asarray(probe.convert("RGB")).astype(int)
    return bool(abs(np.asarray(transform.apply(probe)).astype(int) - before).max() <= ROUNDING)
