"""Recognises a file by its first bytes where Pillow cannot open it, so that the error says what to do.

The name of a file is no guide: phones and web sites store HEIC, AVIF or a page of HTML as photo.jpg.
"""

from __future__ import annotations

SIGNATURE_BYTES = 1024  # enough bytes to recognise every format below
CONVERT = "convert it to JPEG or PNG"
CONVERT_DEEP = "convert it to 8- or 16-bit PNG"
FETCH_AGAIN = "get it again"

SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 picture", CONVERT),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 picture", CONVERT),
    (0, b"\xff\x0a", "a JPEG XL picture", CONVERT),
    (0, b"\x00\x00\x00\x0cJXL ", "a JPEG XL picture", CONVERT),
    (0, b"II\xbc", "a JPEG XR picture", CONVERT),
    (0, b"\xff\xd8\xff", "a JPEG picture with a damaged header", "get it again or delete it"),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG picture with a damaged header", "get it again or delete it"),
    (0, b"GIF8", "a GIF picture with a damaged header", "get it again or delete it"),
    (0, b"8BPS", "a Photoshop file", CONVERT),
    (0, b"gimp xcf", "a GIMP file", CONVERT),
    (0, b"%PDF", "a PDF document", "convert its pages to PNG"),
    (0, b"%!PS", "a PostScript file", "convert its pages to PNG"),
    (0, b"\xc5\xd0\xd3\xc6", "a PostScript file", "convert its pages to PNG"),
    (0, b"FUJIFILMCCD-RAW", "a camera's raw file", CONVERT),
    (0, b"IIU\x00", "a camera's raw file", CONVERT),
    (0, b"IIRO", "a camera's raw file", CONVERT),
    (0, b"IIRS", "a camera's raw file", CONVERT),
    (0, b"MMOR", "a camera's raw file", CONVERT),
    (0, b"FOVb", "a camera's raw file", CONVERT),
    (0, b"v/1\x01", "an OpenEXR picture", CONVERT_DEEP),
    (0, b"#?RADIANCE", "a Radiance HDR picture", CONVERT_DEEP),
    (0, b"SIMPLE  =", "a FITS file", CONVERT_DEEP),
    (128, b"DICM", "a DICOM file", CONVERT_DEEP),
    (0, b"\x93NUMPY", "a NumPy array", "store it as 8- or 16-bit PNG"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", "store its pictures as files"),
    (0, b"DDS ", "a DDS texture", CONVERT),
    (0, b"qoif", "a QOI picture", CONVERT),
    (0, b"\x00\x00\x01\x00", "an icon file", CONVERT),
    (0, b"\xd7\xcd\xc6\x9a", "a Windows metafile", CONVERT),
    (0, b"\x00\x05\x16\x07", "a file of macOS metadata (AppleDouble)", "delete it"),
    (0, b"version https://git-lfs", "a Git LFS pointer in place of the picture", "run git lfs pull"),
    (0, b"version https://hawser", "a Git LFS pointer in place of the picture", "run git lfs pull"),
    (0, b"PK\x03\x04", "a ZIP archive", "unpack it"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it"),
    (0, b"Rar!", "a RAR archive", "unpack it"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    (0, b"\x1aE\xdf\xa3", "a video", "store its frames as pictures"),
)
"""Offset, bytes at that offset, kind of file, advice."""

BRANDS = {
    b"avif": "an AVIF picture",
    b"avis": "an AVIF picture",
    b"crx ": "a camera's raw file",
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm"), "a HEIC picture"),
    **dict.fromkeys((b"mif1", b"msf1", b"heif"), "a HEIF picture"),
}
"""The kind of file by the brand behind "ftyp", in ISO's container for pictures and videos."""

TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")


def is_canon_raw(head: bytes) -> bool:
    """Whether this is a CR2 file, which Pillow opens as a TIFF of its preview."""
    return head[:4] in TIFF and head[8:10] == b"CR"


def is_picture(head: bytes) -> bool:
    """Whether a file with these first bytes is a picture, including formats that must be converted first."""
    bmp = head[:2] == b"BM" and head[6:10] == bytes(4)
    netpbm = head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace() and head[3:4].isdigit()
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    usual = head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", *TIFF))
    return bmp or netpbm or webp or usual or _match_signature(head)[1] in (CONVERT, CONVERT_DEEP)


def describe_signature(head: bytes) -> str:
    """What a file with these first bytes is, and what to do with it; "not an image" where that is unknown."""
    kind, advice = _match_signature(head)
    return f"{kind}; {advice}" if kind else "not an image"


def _match_signature(head: bytes) -> tuple[str, str]:
    if head[4:8] == b"ftyp":
        return _match_brand(head)
    if head[:4] == b"RIFF":
        return ("a video", "store its frames as pictures") if head[8:11] == b"AVI" else ("", "")
    if head[:4] in TIFF:
        if is_canon_raw(head):
            return "a camera's raw file", CONVERT
        return "a TIFF picture of a rare kind, or a damaged one", CONVERT_DEEP
    for offset, mark, kind, advice in SIGNATURES:
        if head.startswith(mark, offset):
            return kind, advice
    return _match_text(head)


def _match_brand(head: bytes) -> tuple[str, str]:
    # The main brand of a file can be general (mif1). The list of compatible brands then says more.
    size = int.from_bytes(head[:4], "big")
    brands = [head[8:12], *(head[i : i + 4] for i in range(16, min(size, len(head)), 4))]
    kinds = [BRANDS[brand] for brand in brands if brand in BRANDS]
    if not kinds:
        return "a video", "store its frames as pictures"
    return next((kind for kind in kinds if kind != BRANDS[b"mif1"]), kinds[0]), CONVERT


def _match_text(head: bytes) -> tuple[str, str]:
    words = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if words.startswith((b"<svg", b"<?xml", b"<!doctype svg")) and b"<svg" in words:
        return "an SVG drawing", "draw it into a PNG"
    if words.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "a web page in place of the picture", FETCH_AGAIN
    if words.startswith(b"<?xml") and b"<html" in words:
        return "a web page in place of the picture", FETCH_AGAIN
    if words.startswith(b"<?xml"):
        return "an XML document in place of the picture", FETCH_AGAIN
    if words.startswith(b'{"'):
        return "a JSON document in place of the picture", FETCH_AGAIN
    return "", ""
