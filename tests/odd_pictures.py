"""Pictures of every kind whose right look is known: bytes, pixels as a viewer shows them, what is said."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, TiffImagePlugin

Pixels = NDArray[np.uint8]
SIDE = 16
SCENE: Pixels = np.random.default_rng(7).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
GREY: Pixels = np.random.default_rng(8).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
DEEP = np.random.default_rng(9).integers(0, 65536, (SIDE, SIDE), dtype=np.uint16)
ALPHA: Pixels = np.random.default_rng(10).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)

# What EXIF says each orientation is, from the stored picture to the shown one
SHOWN: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.swapaxes(a[::-1, ::-1], 0, 1),
    8: lambda a: np.rot90(a, 1),
}


@dataclass(frozen=True)
class Case:
    """`tolerance`: of 255, where the format or a colour transform rounds."""

    raw: bytes
    shown: Pixels
    looks: frozenset[str] = frozenset()
    tolerance: int = 0


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(rows: bytes, depth: int, colour: int, *before: bytes, after: bytes = b"", side: int = SIDE) -> bytes:
    """A PNG of these unfiltered rows; further chunks before or after the pixels."""
    length = len(rows) // side
    filtered = b"".join(b"\0" + rows[i * length : (i + 1) * length] for i in range(side))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(filtered))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(before) + pixels + after + chunk(b"IEND", b"")


def tiff(values: NDArray[Any], photometric: int, order: str = "<", **further: tuple[int, ...]) -> bytes:
    """An uncompressed TIFF of these values. further: tags as t258=(8, 8)."""
    stored = values.astype(values.dtype.newbyteorder(order))
    height, width, *samples = stored.shape
    count = samples[0] if samples else 1
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    tags: dict[int, tuple[int, ...]] = {
        256: (width,), 257: (height,), 258: (8 * values.itemsize,) * count, 259: (1,), 262: (photometric,),
        273: (8,), 277: (count,), 278: (height,), 279: (stored.nbytes,), 339: (kind,) * count,
    }  # fmt: skip
    tags |= {int(name[1:]): value for name, value in further.items()}
    at = 8 + stored.nbytes
    behind = at + 2 + 12 * len(tags) + 4
    entries, extra = b"", b""
    for tag, numbers in sorted(tags.items()):
        data = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(numbers) > 1:
            data, extra = struct.pack(f"{order}I", behind + len(extra)), extra + data
        entries += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + data
    mark = b"II*\0" if order == "<" else b"MM\0*"
    directory = struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}I", 0)
    return mark + struct.pack(f"{order}I", at) + stored.tobytes() + directory + extra


def rounded(values: NDArray[Any]) -> Pixels:
    return np.floor(values + 0.5).astype(np.uint8)


def white_where(clear: NDArray[np.bool_], pixels: Pixels) -> Pixels:
    return np.where(clear, 255, pixels).astype(np.uint8)


def over_white(colour: Pixels, alpha: Pixels) -> Pixels:
    share = alpha.astype(float) / 255
    share = share[..., None] if colour.ndim == 3 else share
    return rounded(colour * share + 255 * (1 - share))


def rgb(pixels: Pixels = SCENE) -> Image.Image:
    return Image.fromarray(pixels)


def grey(pixels: Pixels = GREY) -> Image.Image:
    return Image.fromarray(pixels)


def with_alpha(colour: Image.Image, alpha: Pixels = ALPHA) -> Image.Image:
    image = colour.copy()
    image.putalpha(Image.fromarray(alpha))
    return image


D50 = (0.9642, 1.0, 0.8249)


def profile(space: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile (version 2) of an input device."""
    table, data, at = b"", b"", 132 + 12 * len(tags)
    for name, tag in tags.items():
        table += struct.pack(">4sII", name, at + len(data), len(tag))
        data += tag.ljust(-(-len(tag) // 4) * 4, b"\0")
    body = struct.pack(">I", len(tags)) + table + data
    head = struct.pack(">I4sI4s4s4s", 128 + len(body), b"none", 0x02400000, b"scnr", space, pcs) + bytes(12)
    return (head + b"acsp" + bytes(28) + fixed(*D50)).ljust(128, b"\0") + body


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def point(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + fixed(*values)


def colour_profile(gamma: float, order: bytes = b"rgb") -> bytes:
    """sRGB's primaries with a pure power in place of its curve, for channels in this order."""
    primaries = (0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141)
    tags = {b"wtpt": point(*D50)}
    tags |= {bytes([name]) + b"XYZ": point(*xyz) for name, xyz in zip(order, primaries, strict=True)}
    return profile(b"RGB ", b"XYZ ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve(gamma)))


def grey_profile(gamma: float) -> bytes:
    return profile(b"GRAY", b"XYZ ", {b"wtpt": point(*D50), b"kTRC": curve(gamma)})


def press_profile() -> bytes:
    """CMYK in which black ink gives black, and the other inks give nothing."""
    straight = bytes(range(256))
    corners = b"".join(bytes((0 if i & 1 else 255, 128, 128)) for i in range(16))
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    return profile(
        b"CMYK", b"Lab ", {b"wtpt": point(*D50), b"A2B0": table + 4 * straight + corners + 3 * straight}
    )


def bits_of(values: NDArray[Any], count: int) -> NDArray[np.uint8]:
    """The lowest bits of each value, the highest first."""
    return (values[..., None] >> np.arange(count)[::-1] & 1).astype(np.uint8)


TWO_BITS = np.packbits(bits_of(GREY >> 6, 2).reshape(SIDE, -1), axis=1).tobytes()


def by_gamma(pixels: Pixels, gamma: float) -> Pixels:
    """What sRGB shows of such pixels."""
    light = (pixels / 255) ** gamma
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(255 * encoded).astype(np.uint8)


def turned() -> Iterator[tuple[str, Case]]:
    stored = SCENE
    for o, turn in SHOWN.items():
        right, looks = turn(stored), frozenset({"turned"} if o > 1 else ())
        late = chunk(b"eXIf", exif(o).removeprefix(b"Exif\0\0"))
        for name, raw in {
            "png": saved(rgb(stored), "PNG", exif=exif(o)),
            "png, exif behind the pixels": png(stored.tobytes(), 8, 2, after=late),
            "webp": saved(rgb(stored), "WEBP", lossless=True, exif=exif(o)),
            "tiff": saved(rgb(stored), "TIFF", tiffinfo={274: o}),
            "tiff lzw": saved(rgb(stored), "TIFF", tiffinfo={274: o}, compression="tiff_lzw"),
            "tiff, big-endian": tiff(stored, 2, ">", t274=(o,)),
        }.items():
            yield f"{name}, orientation {o}", Case(raw, right, looks)
        jpeg = saved(rgb(stored), "JPEG", quality=95, exif=exif(o))
        decoded = np.asarray(Image.open(io.BytesIO(jpeg)))
        yield f"jpeg, orientation {o}", Case(jpeg, turn(decoded), looks)


def deep() -> Iterator[tuple[str, Case]]:
    looks = frozenset({"deep"})
    eight = rounded(DEEP / 257)
    colour = np.stack([DEEP, DEEP[::-1], DEEP.T], -1)
    high = (colour >> 8).astype(np.uint8)  # as libpng does it: at most 1 less than rounding gives
    shares = (DEEP / 65535).astype(np.float32)
    twelve = (DEEP >> 4).astype(np.uint16)
    lzw = saved(Image.fromarray(DEEP), "TIFF", compression="tiff_lzw")
    packed = np.packbits(bits_of(twelve, 12).reshape(SIDE, -1), axis=1)
    for name, raw, right in (
        ("png 16-bit grey", png(DEEP.astype(">u2").tobytes(), 16, 0), eight),
        ("png 16-bit rgb", png(colour.astype(">u2").tobytes(), 16, 2), high),
        ("tiff 16-bit grey", tiff(DEEP, 1), eight),
        ("tiff 16-bit grey, big-endian", tiff(DEEP, 1, ">"), eight),
        ("tiff 16-bit grey, lzw", lzw, eight),
        ("tiff 16-bit grey, white is 0", tiff(DEEP, 0), 255 - eight),
        ("tiff 12-bit grey", tiff(packed, 1, t256=(SIDE,), t258=(12,)), rounded(twelve / 4095 * 255)),
        ("tiff 16-bit rgb", tiff(colour, 2), high),
        ("tiff float", tiff(shares, 1), rounded(shares * 255)),
        ("tiff float, big-endian", tiff(shares, 1, ">"), rounded(shares * 255)),
        ("tiff float, white is 0", tiff(shares, 0), 255 - rounded(shares * 255)),
        ("pgm 16-bit", b"P5 16 16 65535\n" + DEEP.astype(">u2").tobytes(), eight),
        ("pfm", b"Pf\n16 16\n-1.0\n" + shares[::-1].tobytes(), rounded(shares * 255)),
    ):
        yield name, Case(raw, right, looks)
    raw = b"P5 16 16 4095\n" + twelve.astype(">u2").tobytes()
    yield "pgm 12-bit", Case(raw, rounded(twelve / 4095 * 255), looks, 1)
    raw = b"P6 16 16 65535\n" + colour.astype(">u2").tobytes()
    yield "ppm 16-bit", Case(raw, rounded(colour / 257), looks, 1)


def faint() -> Iterator[tuple[str, Case]]:
    looks = frozenset({"deep", "faint"})
    twelve = DEEP >> 4
    yield "png 12 bits in 16", Case(png(twelve.astype(">u2").tobytes(), 16, 0), rounded(twelve / 257), looks)
    yield "tiff 12 bits in 16", Case(tiff(twelve, 1), rounded(twelve / 257), looks)


def shallow() -> Iterator[tuple[str, Case]]:
    black_or_white = np.where(GREY > 127, 255, 0).astype(np.uint8)
    image = Image.fromarray(black_or_white).convert("1")
    yield "png 1-bit", Case(saved(image, "PNG"), black_or_white)
    yield "tiff 1-bit fax", Case(saved(image, "TIFF", compression="group4"), black_or_white)
    yield "bmp 1-bit", Case(saved(image, "BMP"), black_or_white)
    yield "pbm", Case(saved(image, "PPM"), black_or_white)
    yield "png 2-bit grey", Case(png(TWO_BITS, 2, 0), (GREY >> 6) * 85)
    yield "tiff 8-bit grey, white is 0", Case(tiff(GREY, 0), 255 - GREY)


def transparent() -> Iterator[tuple[str, Case]]:
    looks, both = frozenset({"transparent"}), frozenset({"transparent", "deep"})
    colour, light = over_white(SCENE, ALPHA), over_white(GREY, ALPHA)
    wide = np.concatenate([SCENE, ALPHA[..., None]], -1).astype(np.uint16) * 257
    pair = np.stack([GREY, ALPHA], -1).astype(np.uint16) * 257
    share = ALPHA[..., None].astype(float) / 255
    premultiplied = np.concatenate([rounded(SCENE * share), ALPHA[..., None]], -1)
    grey_premultiplied = np.stack([rounded(GREY * share[..., 0]), ALPHA], -1)
    webp = saved(with_alpha(rgb()), "WEBP", lossless=True, exact=True)
    yield "png rgba", Case(saved(with_alpha(rgb()), "PNG"), colour, looks, 1)
    yield "tiff rgba", Case(saved(with_alpha(rgb()), "TIFF"), colour, looks, 1)
    yield "webp rgba", Case(webp, colour, looks, 1)
    yield "png la", Case(saved(with_alpha(grey()), "PNG"), light, looks, 1)
    yield "tiff la", Case(saved(with_alpha(grey()), "TIFF"), light, looks, 1)
    yield "png 16-bit rgba", Case(png(wide.astype(">u2").tobytes(), 16, 6), colour, both, 1)
    yield "tiff 16-bit rgba", Case(tiff(wide, 2, t338=(2,)), colour, both, 1)
    yield "png 16-bit la", Case(png(pair.astype(">u2").tobytes(), 16, 4), light, both, 1)
    yield "tiff premultiplied rgba", Case(tiff(premultiplied, 2, t338=(1,)), colour, looks, 2)
    if (b"II", 1, (1,), 1, (8, 8), (1,)) in TiffImagePlugin.OPEN_INFO:  # older Pillow reads none
        yield "tiff premultiplied la", Case(tiff(grey_premultiplied, 1, t338=(1,)), light, looks, 2)
    yield from _keys(looks)
    yield from _palettes(looks)


def _keys(looks: frozenset[str]) -> Iterator[tuple[str, Case]]:
    """One grey or colour that is transparent."""

    def key(*values: int) -> bytes:
        return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))

    at = GREY[3, 3], tuple(map(int, SCENE[2, 5])), int(DEEP[1, 1])
    clear = (at[1] == SCENE).all(-1, keepdims=True)
    raw = png(GREY.tobytes(), 8, 0, key(int(at[0])))
    yield "png with a transparent grey", Case(raw, white_where(at[0] == GREY, GREY), looks)
    raw = png(SCENE.tobytes(), 8, 2, key(*at[1]))
    yield "png with a transparent colour", Case(raw, white_where(clear, SCENE), looks)
    raw = png(DEEP.astype(">u2").tobytes(), 16, 0, key(at[2]))
    right = white_where(at[2] == DEEP, rounded(DEEP / 257))
    yield "png 16-bit with a transparent grey", Case(raw, right, looks | {"deep"})
    raw = png(TWO_BITS, 2, 0, key(1))
    yield "png 2-bit with a transparent grey", Case(raw, white_where(GREY >> 6 == 1, (GREY >> 6) * 85), looks)
    four = np.packbits(bits_of(GREY >> 4, 4).reshape(SIDE, -1), axis=1).tobytes()
    right = white_where(GREY >> 4 == 5, (GREY >> 4) * 17)
    yield "png 4-bit with a transparent grey", Case(png(four, 4, 0, key(5)), right, looks)
    raw = saved(grey(), "GIF", transparency=int(at[0]), optimize=False)
    yield "gif with a transparent grey", Case(raw, white_where(at[0] == GREY, GREY), looks)
    raw = png(np.packbits(GREY > 127, axis=1).tobytes(), 1, 0, key(0))
    yield "png 1-bit with transparent black", Case(raw, np.full_like(GREY, 255), looks)


def _palettes(looks: frozenset[str]) -> Iterator[tuple[str, Case]]:
    palette = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
    alphas = np.random.default_rng(2).integers(0, 256, 256, dtype=np.uint8)
    image, right = Image.fromarray(GREY), palette[GREY]
    image.putpalette(palette.tobytes())
    yield "png palette", Case(saved(image, "PNG"), right)
    yield "bmp palette", Case(saved(image, "BMP"), right)
    yield "tiff palette", Case(saved(image, "TIFF"), right)
    yield "gif", Case(saved(image, "GIF", optimize=False), right)
    raw = saved(image, "PNG", transparency=alphas.tobytes())
    yield "png palette, alpha each", Case(raw, over_white(right, alphas[GREY]), looks, 1)
    index = int(GREY[4, 4])
    clear = (index == GREY)[..., None]
    for format in ("PNG", "GIF"):
        raw = saved(image, format, transparency=index, optimize=False)
        yield f"{format.lower()} palette, one transparent", Case(raw, white_where(clear, right), looks)
    colours = tuple(int(value) * 257 for value in palette.T.reshape(-1))
    raw = tiff(np.stack([GREY, ALPHA], -1), 3, t338=(2,), t320=colours)
    yield "tiff palette with alpha", Case(raw, over_white(right, ALPHA), looks, 1)


def opaque() -> Iterator[tuple[str, Case]]:
    """Transparency of which nothing is seen is not said."""
    full = np.full_like(ALPHA, 255)
    yield "png rgba, opaque", Case(saved(with_alpha(rgb(), full), "PNG"), SCENE)
    yield "png la, opaque", Case(saved(with_alpha(grey(), full), "PNG"), GREY)
    yield "bmp", Case(saved(rgb(), "BMP"), SCENE)
    yield "bmp grey", Case(saved(grey(), "BMP"), GREY)
    yield "webp", Case(saved(rgb(), "WEBP", lossless=True), SCENE)
    yield "ppm", Case(saved(rgb(), "PPM"), SCENE)
    yield "pgm", Case(saved(grey(), "PPM"), GREY)


def several() -> Iterator[tuple[str, Case]]:
    looks = frozenset({"several"})
    second = rgb(SCENE[::-1])
    for format in ("PNG", "WEBP", "TIFF"):
        options = {"WEBP": {"lossless": True}}.get(format, {})
        raw = saved(rgb(), format, save_all=True, append_images=[second], **options)
        yield f"{format.lower()} of two", Case(raw, SCENE, looks)
    image = Image.fromarray(GREY).convert("L")
    image.putpalette(bytes(range(256)) * 3)
    raw = saved(image, "GIF", save_all=True, append_images=[second.quantize()], optimize=False)
    yield "gif of two", Case(raw, np.asarray(image.convert("RGB")), looks)
    for whole in (False, True):
        further = [with_alpha(rgb(SCENE[::-1]))]
        raw = saved(with_alpha(rgb()), "PNG", save_all=True, append_images=further, default_image=whole)
        name = f"png of two, transparent{', its first apart' * whole}"
        yield name, Case(raw, over_white(SCENE, ALPHA), looks | {"transparent"}, 1)
    mpo = saved(rgb(), "MPO", save_all=True, append_images=[second], quality=95)
    yield "mpo", Case(mpo, np.asarray(Image.open(io.BytesIO(saved(rgb(), "JPEG", quality=95)))))


def coloured() -> Iterator[tuple[str, Case]]:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    linear, said = colour_profile(1.0), frozenset({"profile"})
    right, damage = by_gamma(SCENE, 1.0), b"no profile" * 20
    options: dict[str, dict[str, Any]] = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}
    for format, further in options.items():
        name = format.lower()
        yield f"{name} srgb", Case(saved(rgb(), format, icc_profile=srgb, **further), SCENE)
        yield f"{name} linear", Case(saved(rgb(), format, icc_profile=linear, **further), right, said, 2)
        raw = saved(rgb(), format, icc_profile=damage, **further)
        yield f"{name} damaged profile", Case(raw, SCENE, frozenset({"misfit"}))
    raw = saved(rgb(), "PNG", icc_profile=colour_profile(1.0, b"grb"))
    yield "png, red and green exchanged by its profile", Case(raw, right[..., [1, 0, 2]], said, 2)
    jpeg = saved(rgb(), "JPEG", quality=95, icc_profile=linear)
    yield "jpeg linear", Case(jpeg, by_gamma(np.asarray(Image.open(io.BytesIO(jpeg))), 1.0), said, 2)
    for format in ("PNG", "TIFF"):
        raw = saved(grey(), format, icc_profile=grey_profile(1.0))
        yield f"{format.lower()} grey linear", Case(raw, by_gamma(GREY, 1.0), said, 2)
        raw = saved(grey(), format, icc_profile=linear)
        yield f"{format.lower()} grey, a colour profile", Case(raw, GREY, frozenset({"misfit"}))
    raw = saved(with_alpha(rgb()), "PNG", icc_profile=linear)
    yield "png rgba linear", Case(raw, over_white(right, ALPHA), said | {"transparent"}, 2)
    raw = png(
        DEEP.astype(">u2").tobytes(), 16, 0, chunk(b"iCCP", b"x\0\0" + zlib.compress(grey_profile(1.0)))
    )
    yield "png 16-bit grey linear", Case(raw, by_gamma(rounded(DEEP / 257), 1.0), said | {"deep"}, 2)
    for gamma, further in ((1.0, b""), (0.55, b""), (1.0, chunk(b"sRGB", b"\0")), (0.45455, b"")):
        raw = png(SCENE.tobytes(), 8, 2, chunk(b"gAMA", struct.pack(">I", round(gamma * 100_000))), further)
        plain = bool(further) or gamma < 0.5
        right = SCENE if plain else by_gamma(SCENE, 1 / gamma)
        yield (
            f"png gamma {gamma}{' srgb' * bool(further)}",
            Case(raw, right, said if not plain else frozenset(), 1),
        )
    yield from _inks()


def _inks() -> Iterator[tuple[str, Case]]:
    said, cmyk = frozenset({"cmyk"}), rgb().convert("CMYK")
    yield "tiff cmyk", Case(saved(cmyk, "TIFF"), SCENE, said, 1)
    deeper = np.asarray(cmyk).astype(np.uint16) * 257
    yield "tiff 16-bit cmyk", Case(tiff(deeper, 5), SCENE, said | {"deep"}, 1)
    yield "jpeg cmyk", Case(saved(cmyk, "JPEG", quality=100, subsampling=0), SCENE, said, 6)
    ink = np.zeros((SIDE, SIDE, 4), np.uint8) + np.array([255, 200, 90, 0], np.uint8)
    ink[: SIDE // 2, :, 3] = 255
    right = np.full_like(SCENE, 255)
    right[: SIDE // 2] = 0
    image = Image.fromarray(ink, "CMYK")
    yield "tiff cmyk, profile", Case(saved(image, "TIFF", icc_profile=press_profile()), right, said, 1)
    raw = saved(image, "JPEG", quality=100, subsampling=0, icc_profile=press_profile())
    yield "jpeg cmyk, profile", Case(raw, right, said, 6)
    ycc = saved(rgb(), "TIFF", compression="jpeg", quality=100)
    yield "tiff ycbcr", Case(ycc, np.asarray(Image.open(io.BytesIO(ycc)).convert("RGB")))
    red = np.zeros_like(SCENE) + np.array([200, 30, 60], np.uint8)
    yield "tiff lab", Case(saved(rgb(red).convert("LAB"), "TIFF"), red, said, 3)


CASES: dict[str, Case] = {
    name: case
    for kind in (turned, deep, faint, shallow, transparent, opaque, several, coloured)
    for name, case in kind()
}
