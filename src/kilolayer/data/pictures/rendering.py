"""How a stored picture becomes pixels: one rule for training, evaluation, prediction and check-data.

The pixels are those that a viewer shows: turned by the orientation tag, colours converted to sRGB by the
    profile, transparency over white, more than 8 bits scaled by the range of their type, the first of several
    frames. Where a type
does not say which value is white, we do not guess: the picture is refused.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kilolayer.data.pictures.color_profiles import UnusableProfile, to_srgb

TRAITS = {
    "turned": "turned by its orientation (EXIF)",
    "deep": "of more than 8 bits a value: scaled to 8 bits",
    "faint": "of more than 8 bits, and darker than a sixteenth of white: nearly black, as a viewer shows it",
    "transparent": "transparent: shown over white",
    "several": "animated or of several pages: the first is taken",
    "profile": "in other colours than sRGB by its profile or gamma: converted to sRGB",
    "cmyk": "CMYK or Lab: converted to sRGB",
    "cropped": "more than twice as long as wide: the centre square leaves out more than half of it",
    "line": "1 pixel wide or high",
    "grey": "grey among colour pictures: read as RGB",
    "misfit": "with a colour profile that is damaged or for other channels: the profile is not used",
}
"""The traits of a picture, in words that follow "is"."""
UNCHANGED = ("line", "grey", "misfit")
"""The traits that change no pixels by themselves."""

ORIENTATION_TAG = 0x0112
ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# TIFF's tags
REDUCED, BITS, PHOTOMETRIC, SAMPLES, DNG_VERSION = 254, 258, 262, 339, 50706
WHITE_IS_ZERO, SIGNED = 0, 2
SIXTEEN_BITS = ("I", "I;16", "I;16L", "I;16B", "I;16N")
ONE_CHANNEL = ("1", "L", "LA", "La", "F", *SIXTEEN_BITS)


AS_STORED = ("as stored: without orientation, colour profiles, transparency or depth",)

Bytes = NDArray[np.uint8]


class UnusablePicture(ValueError):
    """A picture that cannot be used: the reason, and its kind."""


@dataclass
class TraitCounts:
    """The number of pictures, and the number with each trait."""

    pictures: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, trait_sets: Iterable[frozenset[str]]) -> None:
        for looks in trait_sets:
            self.pictures += 1
            self.counts.update(looks)

    def sentences(self) -> tuple[str, ...]:
        """The traits that change pixels, as `3 of 800 pictures are transparent: shown over white`."""
        return tuple(
            trait_sentence(name, f"{self.counts[name]:,} of {self.pictures:,} pictures", self.counts[name])
            for name in TRAITS
            if self.counts[name] and name not in UNCHANGED
        )


def trait_sentence(name: str, subject: str, count: int) -> str:
    """A sentence that says of `count` pictures that they have a trait."""
    return f"{subject} is {TRAITS[name]}" if count == 1 else f"{subject} are {_plural(TRAITS[name])}"


def _plural(words: str) -> str:
    return words.replace("by its ", "by their ").replace("of it", "of them")


def is_grey(image: Image.Image) -> bool:
    """Whether a picture has one channel besides transparency. A palette of greys counts as colour."""
    return image.mode in ONE_CHANNEL or (image.format == "PNG" and _raw_mode(image).startswith("LA"))


def viewer_pixels(
    image: Image.Image, mode: str, side: int | None = None
) -> tuple[Image.Image, frozenset[str]]:
    """An opened, unread picture in `mode` ("L" or "RGB") as a viewer shows it, and its traits.

    side: the side of the square that it is for; a JPEG is decoded at 1/2, 1/4 or 1/8 where that is large
        enough.
    Raises `UnusablePicture`.
    """
    check_displayable(image)
    base, looks = _color_mode(image.mode), _header_traits(image)
    try:
        convert = to_srgb(image, base)
    except UnusableProfile:
        convert = None
        looks.add("misfit")
    if side is not None:
        image.draft(None if convert else mode, (side, side))
    _scale_transparent_grey(image)
    uncovered = _frame_alpha(image)
    image.load()
    if "deep" in looks and _is_faint(image):
        looks.add("faint")
    colour, alpha = _split_alpha(_to_eight_bits(image))
    alpha = alpha or uncovered
    if convert is not None:
        colour = convert(colour)
        looks.add("cmyk" if base in ("CMYK", "LAB") else "profile")
    if alpha is not None:
        colour = _blend_over_white(colour, alpha)
        looks.add("transparent")
    turn = _orientation(image)
    if turn is not None:
        colour = colour.transpose(turn)
        looks.add("turned")
    return colour if colour.mode == mode else colour.convert(mode), frozenset(looks)


def check_displayable(image: Image.Image) -> None:
    """Raises `UnusablePicture` where the value of white is unknown, or the file holds only a preview."""
    tags = getattr(image, "tag_v2", {})
    if DNG_VERSION in tags or any(value & 1 for value in _tag_integers(tags.get(REDUCED))):
        raise UnusablePicture(
            "a camera's raw file, whose first page is only a preview; convert it to JPEG or PNG"
        )
    if SIGNED in _tag_integers(tags.get(SAMPLES)):
        raise UnusablePicture(
            "signed integers, and the file does not say which value is white; save it with 8 or 16 bits"
        )
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # PNG and PPM hold 16 bits in this mode
        raise UnusablePicture(
            "32-bit integers, and the file does not say which value is white; save it with 8 or 16 bits"
        )
    if _raw_mode(image).startswith("RGB;16") and "transparency" in image.info:
        raise UnusablePicture("16 bits a value and a transparent colour; save it with an alpha channel")


def is_read_error(error: Exception) -> bool:
    """Whether the system refused to read a file that exists: that says nothing about the picture.

    Pillow's own errors have no number, those of the system have one.
    """
    return isinstance(error, OSError) and error.errno not in (None, errno.ENOENT)


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """The orientation by EXIF or XMP, as in Pillow's `exif_transpose`; None where absent or damaged."""
    try:
        return ORIENTATIONS.get(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception as error:  # Pillow raises almost any exception on damaged EXIF; the pixels are intact
        if is_read_error(error):
            raise
        return None


def _header_traits(image: Image.Image) -> set[str]:
    shorter, longer = sorted(image.size)
    looks = {"deep": _is_deep(image), "several": _has_several_frames(image), "line": shorter == 1 < longer}
    looks |= {"cmyk": image.mode in ("CMYK", "LAB"), "cropped": 2 * shorter < longer}
    # Pillow itself turns a TIFF when reading it.
    looks["turned"] = getattr(image, "tag_v2", {}).get(ORIENTATION_TAG, 1) in ORIENTATIONS
    return {name for name, holds in looks.items() if holds}


def _is_deep(image: Image.Image) -> bool:
    if image.mode in (*SIXTEEN_BITS, "F"):
        return True
    if image.format == "TIFF":
        return max(_tag_integers(image.tag_v2.get(BITS)), default=8) > 8  # type: ignore[attr-defined]
    if image.format == "PPM":
        return any(isinstance(value, int) and value > 255 for value in _decoder_arguments(image))
    return image.format == "PNG" and ";16" in _raw_mode(image)


def _has_several_frames(image: Image.Image) -> bool:
    if image.format == "MPO":  # a phone's JPEG, followed by a depth map or a brighter copy
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception as error:  # damage behind the first frame, the only frame that we use
        if is_read_error(error):
            raise
        return False


def _decoder_arguments(image: Image.Image) -> tuple[object, ...]:
    """The arguments of Pillow's decoder for an unread picture; the raw mode comes first."""
    arguments = image.tile[0][3] if getattr(image, "tile", None) else ""  # type: ignore[attr-defined]
    return arguments if isinstance(arguments, tuple) else (arguments,)


def _raw_mode(image: Image.Image) -> str:
    return str(_decoder_arguments(image)[0]) if _decoder_arguments(image) else ""


def _tag_integers(value: object) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,) if isinstance(value, int) else ()


def _color_mode(mode: str) -> str:
    """The mode of the colours behind an image mode, without palette and transparency."""
    if mode in ("CMYK", "LAB"):
        return mode
    return "L" if mode in ONE_CHANNEL else "RGB"


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """The picture with 8 bits a value. White is the largest value of its type: 65,535, 4,095, or 1."""
    if image.mode not in (*SIXTEEN_BITS, "F"):
        return image
    values = np.asarray(image)
    pixels = _from_floats(values) if image.mode == "F" else _eight_bit_table(_bits_per_value(image))[values]
    # Pillow respects this tag only up to 8 bits.
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:
        pixels = 255 - pixels
    grey = Image.fromarray(pixels)
    if "transparency" not in image.info:
        return grey
    opaque = np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)
    return Image.merge("LA", (grey, Image.fromarray(opaque)))


def _is_faint(image: Image.Image) -> bool:
    """Whether all values are far below white, as when 12 bits are stored in a file of 16."""
    if image.mode not in SIXTEEN_BITS:
        return False
    return bool(0 < np.asarray(image).max() < 2 ** (_bits_per_value(image) - 4))


def _bits_per_value(image: Image.Image) -> int:
    return max(_tag_integers(getattr(image, "tag_v2", {}).get(BITS)), default=16)


@cache
def _eight_bit_table(bits: int) -> Bytes:
    """The 8-bit value of each 16-bit value, rounded: v / 257 where all 16 bits are used."""
    values = np.arange(2**16) * 255 / (2**bits - 1)
    scaled: Bytes = (values.clip(0, 255) + 0.5).astype(np.uint8)
    return scaled


def _from_floats(values: NDArray[np.float32]) -> Bytes:
    least, most = float(values.min()), float(values.max())  # NaN where any value is NaN
    if not (least >= 0 and most <= 1):
        raise UnusablePicture(
            f"floating-point values from {least:.4g} to {most:.4g}, and the file does not say which is "
            "white; scale all pictures by one factor to 0…1, or save them with 8 or 16 bits"
        )
    return (values * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def _scale_transparent_grey(image: Image.Image) -> None:
    """Pillow scales greys of 2 and 4 bits to 8 bits, but not the transparent grey. This scales it too."""
    steps = {"L;2": 85, "L;4": 17}.get(_raw_mode(image))
    if steps and image.format == "PNG" and isinstance(image.info.get("transparency"), int):
        image.info["transparency"] *= steps


def _frame_alpha(image: Image.Image) -> Image.Image | None:
    """The opacity of each pixel where a GIF's first frame is smaller than the picture."""
    box = image.tile[0][1] if image.format == "GIF" else None  # type: ignore[attr-defined]
    if box in (None, (0, 0, *image.size)) or "transparency" in image.info:
        return None
    alpha = Image.new("L", image.size)
    alpha.paste(255, box)
    return alpha


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours without palette and transparency, and the opacity of each pixel (None: all opaque)."""
    base = _color_mode(image.mode)
    alpha = None
    if image.has_transparency_data:
        image = image.convert("LA" if base == "L" else "RGBA")
        alpha = image.getchannel("A")
        if alpha.getextrema()[0] == 255:
            alpha = None
        image = image.getchannel("L") if base == "L" else image
    return image if image.mode == base else image.convert(base), alpha


def _blend_over_white(colour: Image.Image, alpha: Image.Image) -> Image.Image:
    mixed = Image.new(colour.mode, colour.size, "white")
    mixed.paste(colour, mask=alpha)
    return mixed
