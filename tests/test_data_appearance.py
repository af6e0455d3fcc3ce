"""Pictures look as a viewer shows them wherever they are read; what no type states is refused by name."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from torch import Tensor

from kilolayer.__main__ import main
from kilolayer.data import Data, load
from kilolayer.data.defects import find_defects
from kilolayer.data.labelled_images import load_labelled
from kilolayer.data.pictures.decoding import EncodedPictures, PixelFormat, decode
from kilolayer.data.pictures.inspection import InspectedPicture, inspect_pictures, pixel_digest
from kilolayer.data.pictures.rendering import TRAITS, TraitCounts
from kilolayer.errors import InputError
from kilolayer.training import Experiment
from kilolayer.values import from_json, to_json
from odd_pictures import CASES, GREY, SCENE, SHOWN, SIDE, Case, chunk, exif, png, rgb, saved, tiff

PLACES = ("train/ant", "train/bee", "test/ant", "test/bee")


def pictures(*raw: bytes, appearance: Any = "shown") -> EncodedPictures:
    return EncodedPictures(np.zeros(len(raw), np.int64), raw.__getitem__, "picture {}".format, appearance)


def decoded(
    raw: bytes, side: int = SIDE, grey: bool = False, appearance: Any = "shown"
) -> np.ndarray[Any, Any]:
    images = decode(pictures(raw, appearance=appearance), PixelFormat(side, grey), "")
    return shape(images.pixels[0])


def shape(pixels: Tensor) -> Any:
    """(C, H, W) as NumPy's and Pillow's (H, W, C), grey as (H, W)."""
    return pixels.permute(1, 2, 0).numpy().squeeze(2) if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy()


def folder(root: Path, *raw: bytes) -> Path:
    for place in PLACES:
        (root / place).mkdir(parents=True, exist_ok=True)
        for number, one in enumerate(raw):
            (root / place / f"{number}.jpg").write_bytes(one)  # names lie
    return root


@pytest.mark.parametrize("name", CASES)
def test_a_picture_looks_as_it_is_shown_wherever_it_is_read(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    source = Data(str(folder(tmp_path / "set", case.raw)))
    splits, labelled = load(source), load_labelled(source).images.pixels
    ways = {
        "train": splits.train.pixels[0],
        "test": splits.test.pixels[1],
        "evaluate": labelled[3],
        "predict": decode(pictures(case.raw), PixelFormat(SIDE, case.shown.ndim == 2), "").pixels[0],
    }
    for way, pixels in ways.items():
        seen = shape(pixels)
        assert seen.shape == case.shown.shape, way
        assert abs(seen.astype(int) - case.shown.astype(int)).max() <= case.tolerance, way
        assert (pixels == ways["train"]).all(), way
    (one,) = inspect_pictures(pictures(case.raw), "")
    assert isinstance(one, InspectedPicture)
    whole = np.ascontiguousarray(shape(ways["train"]))
    assert one.digest == pixel_digest(whole.tobytes(), (SIDE, SIDE, 1 if whole.ndim == 2 else 3))
    assert one.traits == case.looks
    assert {look.kind for look in find_defects(source).looks} == case.looks


@pytest.mark.parametrize("name", [n for n in CASES if "orientation" not in n and n != "mpo"])
def test_the_other_channels_show_the_same(name: str) -> None:
    case = CASES[name]
    if case.shown.ndim == 2:
        assert (decoded(case.raw) == decoded(case.raw, grey=True)[..., None]).all()
    else:
        right = np.asarray(Image.fromarray(decoded(case.raw)).convert("L")).astype(int)
        assert abs(decoded(case.raw, grey=True) - right).max() <= 1


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("size", [(24, 16), (400, 301), (16, 1), (1, 9)])
def test_what_is_no_square_is_turned_before_it_is_cut(orientation: int, size: tuple[int, int]) -> None:
    scene = np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8)
    upright = np.ascontiguousarray(SHOWN[orientation](scene))
    turned = saved(rgb(scene), "PNG", exif=exif(orientation))
    assert (decoded(turned) == decoded(saved(rgb(upright), "PNG"))).all()


@pytest.mark.parametrize("orientation", SHOWN)
def test_a_turned_jpeg_is_decoded_at_a_fraction(orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    large = Image.radial_gradient("L").convert("RGB").resize((640, 400))
    large.paste((200, 0, 0), (0, 0, 200, 100))
    raw = saved(large, "JPEG", quality=95, exif=exif(orientation))
    sizes = []
    load_image = Image.Image.transpose
    monkeypatch.setattr(
        Image.Image, "transpose", lambda self, how: sizes.append(self.size) or load_image(self, how)
    )
    seen = decoded(raw, 32).astype(int)
    assert sizes == [(80, 50)] * (orientation > 1)
    monkeypatch.undo()
    whole = ImageOps.fit(ImageOps.exif_transpose(Image.open(io.BytesIO(raw))), (32, 32))
    assert abs(seen - np.asarray(whole).astype(int)).mean() < 4


# Damage in what stands beside the pixels hides no picture.


def damaged(count: int = 60) -> list[bytes]:
    whole, rng = bytearray(exif(6)), np.random.default_rng(0)
    blocks = [bytes(whole[:length]) for length in range(6, len(whole))]
    for _ in range(count):
        block = bytearray(whole)
        for at in rng.integers(6, len(block), 3):
            block[at] = rng.integers(256)
        blocks.append(bytes(block))
    return blocks


def test_damaged_exif_hides_no_picture() -> None:
    for block in damaged():
        for raw in (
            saved(rgb(), "JPEG", exif=block),
            png(SCENE.tobytes(), 8, 2, chunk(b"eXIf", block[6:])),
            saved(rgb(), "WEBP", lossless=True, exif=block),
        ):
            assert decoded(raw).shape == (SIDE, SIDE, 3)
    assert (decoded(tiff(SCENE, 2, t274=(3,), t34665=(10**8,), t34853=(5,))) == SHOWN[3](SCENE)).all()


@pytest.mark.parametrize("end", [b"", b";", bytes(40), b"\x2c" + bytes(9), b"\x21\xf9\x04" + bytes(3)])
def test_damage_behind_the_first_frame_of_a_gif_is_none_of_ours(end: bytes) -> None:
    raw = saved(rgb().quantize(), "GIF")
    assert (decoded(raw[:-1] + end) == decoded(raw)).all()


TURNED_TIFF = {
    "grey": tiff(GREY, 1, t274=(6,)),
    "16-bit grey": tiff(GREY.astype(np.uint16) * 257, 1, t274=(6,)),
    "16-bit grey, big-endian": tiff(GREY.astype(np.uint16) * 257, 1, ">", t274=(6,)),
    "float": tiff((GREY / 255).astype(np.float32), 1, t274=(6,)),
    "grey with alpha": tiff(np.stack([GREY, np.full_like(GREY, 255)], -1), 1, t274=(6,), t338=(2,)),
}


@pytest.mark.parametrize("name", TURNED_TIFF)
def test_a_tiff_of_any_depth_is_turned_once(name: str) -> None:
    assert (decoded(TURNED_TIFF[name], grey=True) == SHOWN[6](GREY)).all()


@pytest.mark.parametrize("value", [0, 9, 255, 65535])
def test_an_orientation_that_means_nothing_is_none(value: int) -> None:
    assert (decoded(saved(rgb(), "PNG", exif=exif(value))) == SCENE).all()


# What no type states is refused by name.

FLOATS = np.linspace(0, 1, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)
WHOLE = np.arange(SIDE * SIDE, dtype=np.int32).reshape(SIDE, SIDE)
REFUSED: dict[str, tuple[bytes, str]] = {
    "floats to 2": (tiff(2 * FLOATS, 1), "floating-point values from 0 to 2"),
    "floats from -1": (tiff(FLOATS - 1, 1), "floating-point values from -1 to 0"),
    "NaN": (tiff(FLOATS * np.float32("nan"), 1), "floating-point values from nan"),
    "32-bit": (tiff(WHOLE.astype(np.uint32), 1), "32-bit integers"),
    "signed 32-bit": (tiff(WHOLE, 1), "signed integers"),
    "signed 16-bit": (tiff(WHOLE.astype(np.int16), 1), "signed integers"),
    "signed 8-bit": (tiff(GREY.view(np.int8), 1), "signed integers"),
    "16-bit colour key": (
        png(np.zeros((SIDE, SIDE, 3), ">u2").tobytes(), 16, 2, chunk(b"tRNS", bytes(6))),
        "a transparent colour",
    ),
    "64-bit floats": (tiff(FLOATS.astype(np.float64), 1), "a TIFF picture of a rare kind"),
    "five channels": (tiff(np.zeros((SIDE, SIDE, 5), np.uint8), 1), "a TIFF picture of a rare kind"),
    "nef": (tiff(SCENE, 2, t254=(1,)), "a camera's raw file"),
    "dng": (tiff(SCENE, 2, t50706=(1, 4, 0, 0)), "a camera's raw file"),
    "cr2": (b"II*\0\x10\0\0\0CR\2\0\0\0\0\0" + bytes(2000), "a camera's raw file"),
    "cr3": (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(99), "a camera's raw file"),
    "raf": (b"FUJIFILMCCD-RAW 0201" + bytes(99), "a camera's raw file"),
    "rw2": (b"IIU\0\x18\0\0\0" + bytes(99), "a camera's raw file"),
    "orf": (b"IIRO\x08\0\0\0" + bytes(99), "a camera's raw file"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "a HEIC picture"),
    "heic behind mif1": (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(99), "a HEIC picture"),
    "heif": (b"\0\0\0\x14ftypmif1\0\0\0\0mif1" + bytes(99), "a HEIF picture"),
    "avif": (b"\0\0\0\x18ftypavif\0\0\0\0avifmif1" + bytes(99), "an AVIF picture"),
    "avif behind mif1": (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif" + bytes(99), "an AVIF picture"),
    "mp4": (b"\0\0\0\x18ftypisom\0\0\2\0isommp41" + bytes(99), "a video"),
    "mkv": (b"\x1aE\xdf\xa3" + bytes(99), "a video"),
    "jp2": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), "a JPEG 2000 picture"),
    "j2k": (b"\xff\x4f\xff\x51" + bytes(99), "a JPEG 2000 picture"),
    "jxl": (b"\xff\x0a" + bytes(99), "a JPEG XL picture"),
    "jxl in a box": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99), "a JPEG XL picture"),
    "psd": (b"8BPS\0\1" + bytes(99), "a Photoshop file"),
    "pdf": (b"%PDF-1.7\n", "a PDF document"),
    "svg": (b'<?xml version="1.0"?>\n<svg xmlns="">', "an SVG drawing"),
    "svg alone": (b"\n<svg>", "an SVG drawing"),
    "html": (b"\xef\xbb\xbf\n<!DOCTYPE html><html>", "a web page"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "an XML document"),
    "json": (b'{"message": "404: Not Found"}', "a JSON document"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "apple double": (b"\0\5\x16\7\0\2\0\0Mac OS X", "AppleDouble"),
    "zip": (b"PK\3\4" + bytes(99), "a ZIP archive"),
    "exr": (b"v/1\1" + bytes(99), "an OpenEXR picture"),
    "dicom": (bytes(128) + b"DICM" + bytes(99), "a DICOM file"),
    "npy": (b"\x93NUMPY\1\0", "a NumPy array"),
    "jpeg of nothing": (b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(99), "a JPEG picture with a damaged header"),
    "bytes": (bytes(range(256)), "not an image"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_shown_is_named(name: str, tmp_path: Path) -> None:
    raw, words = REFUSED[name]
    for use in (lambda: decoded(raw), lambda: load(Data(str(folder(tmp_path, raw))))):
        with pytest.raises(InputError, match=words) as error:
            use()
        assert "\n" not in str(error.value)
    (finding,) = (one for one in find_defects(Data(str(tmp_path))).findings if one.is_refused)
    assert len(finding.places) == len(PLACES)
    assert all(words in place for place in finding.places)


def test_floats_are_never_stretched() -> None:
    dark = (FLOATS / 8).astype(np.float32)
    assert decoded(tiff(dark, 1), grey=True).max() == 32


# Stored pixels are a named choice, and that of older runs.


@pytest.mark.parametrize(
    "name", ["png, orientation 6", "jpeg, orientation 3", "png 16-bit grey", "png rgba", "png linear"]
)
def test_stored_pixels_are_those_of_pillow(name: str, tmp_path: Path) -> None:
    raw = CASES[name].raw
    stored = np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))
    assert (decoded(raw, appearance="stored") == stored).all()
    source = Data(str(folder(tmp_path, raw)), appearance="stored")
    splits = load(source)
    assert (splits.train.pixels == splits.test.pixels).all()
    assert "as stored" in splits.looks[0]
    assert (splits.train.pixels == load_labelled(source).images.pixels[:2]).all()
    assert not find_defects(source).looks


def test_the_appearance_is_recorded_and_older_runs_have_stored_pixels() -> None:
    for appearance in ("shown", "stored"):
        data = Data("photos", appearance=appearance)  # type: ignore[arg-type]
        assert from_json(to_json(data), Data) == data
    written = json.loads(to_json(Data("photos")))
    del written["appearance"]
    assert from_json(json.dumps(written), Data).appearance == "stored"
    for source in ("digits", "cifar10", "cifar100"):  # there is no other appearance, and sweeps go on
        assert from_json(json.dumps(written | {"source": source}), Data) == Data(source)
    with pytest.raises(InputError, match="allowed: 'shown', 'stored'"):
        Data("photos", appearance="pretty")  # type: ignore[arg-type]


def test_an_older_experiment_has_stored_pixels(small_experiment: Experiment) -> None:
    written = json.loads(to_json(small_experiment))
    written["data"] |= {"source": "photos"}
    del written["data"]["appearance"]
    assert from_json(json.dumps(written), Experiment).data.appearance == "stored"


@pytest.fixture
def small_experiment() -> Experiment:
    from kilolayer.networks import describe
    from kilolayer.training import recipe_by_name

    return Experiment(describe("resnet8_cifar"), Data(), recipe_by_name("smoke", 1000))


def test_imagenet_is_read_as_stored_and_nothing_else_is() -> None:
    from kilolayer.papers import tables
    from kilolayer.papers.experiments import cell_experiment

    for table in tables():
        for cell in table.cells:
            if cell.plans and cell.plan:
                data = cell_experiment(cell, data=Data("photos")).data
                assert data.appearance == ("stored" if cell.plan.data == "imagenet" else "shown")


# Findings is said.


def test_what_changes_pixels_is_counted() -> None:
    looks = TraitCounts()
    looks.add([frozenset({"turned", "line"})] * 3 + [frozenset({"transparent"})] + [frozenset()] * 796)
    assert looks.sentences() == (
        "3 of 800 pictures are turned by their orientation (EXIF)",
        "1 of 800 pictures is transparent: shown over white",
    )


@pytest.mark.parametrize(("size", "looks"), [
    ((16, 16), set()), ((20, 10), set()), ((21, 10), {"cropped"}), ((10, 21), {"cropped"}),
    ((1, 1), set()), ((1, 9), {"line", "cropped"}), ((9, 1), {"line", "cropped"}), ((2, 1), {"line"}),
])  # fmt: skip
def test_what_the_centre_square_leaves_out(size: tuple[int, int], looks: set[str]) -> None:
    (one,) = inspect_pictures(pictures(saved(Image.new("RGB", size, "red"), "PNG")), "")
    assert isinstance(one, InspectedPicture)
    assert one.traits == looks
    assert (
        decoded(saved(Image.new("RGB", size, "red"), "PNG")).reshape(-1, 3).tolist()
        == [[255, 0, 0]] * SIDE**2
    )


def test_check_data_counts_and_finds_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = ("png, orientation 6", "png 16-bit rgb", "png rgba", "gif of two", "tiff cmyk", "jpeg linear")
    rng = np.random.default_rng(0)
    for i, place in enumerate(PLACES):
        (tmp_path / place).mkdir(parents=True)
        noise = rgb(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        (tmp_path / place / "x.png").write_bytes(saved(noise, "PNG"))
        for name in kinds if not i else ():
            (tmp_path / place / name).write_bytes(CASES[name].raw)
    for _ in range(2):  # read, then remembered
        assert main(["check-data", str(tmp_path), "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert {look["kind"]: look["count"] for look in said["looks"]} == {
            "turned": 1, "deep": 1, "transparent": 1, "several": 1, "cmyk": 1, "profile": 1,
        }  # fmt: skip
        assert "orientation 6" in said["looks"][0]["places"][0]
    assert main(["check-data", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "  1 picture is transparent: shown over white\n" in shown
    assert "no faults found" in shown
    assert set(TRAITS) >= {look["kind"] for look in said["looks"]}


def test_grey_pictures_among_colour_ones_are_counted(tmp_path: Path) -> None:
    shades, colour = saved(Image.fromarray(GREY), "PNG"), saved(rgb(), "PNG")
    for raws, count in (((shades, colour), 4), ((shades,), 0), ((colour,), 0)):
        source = Data(str(folder(tmp_path / str(count) / str(len(raws)), *raws)))
        looks = {look.kind: len(look.places) for look in find_defects(source).looks}
        assert looks == ({"grey": count} if count else {})
        assert load(source).in_chans == (1 if raws == (shades,) else 3)


TINY = [
    "--model",
    "resnet8_cifar",
    "--batch-size",
    "4",
    "--iterations",
    "1",
    "--validation",
    "0",
    "--threads",
    "1",
    "--no-tensorboard",
]


@pytest.mark.slow
def test_training_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder(tmp_path / "set", CASES["png rgba"].raw, CASES["png, orientation 8"].raw)
    run = tmp_path / "run"
    assert main(["train", "--data", str(source), *TINY, "--out", str(run)]) == 0
    out = capsys.readouterr().out
    assert "pictures    4 of 8 pictures are turned by their orientation (EXIF)\n" in out
    assert "            4 of 8 pictures are transparent: shown over white\n" in out
    assert json.loads((run / "config.json").read_text())["data"]["appearance"] == "shown"
    stored = tmp_path / "stored"
    words = ["train", "--data", str(source), *TINY, "--out", str(stored), "--appearance", "stored"]
    assert main(words) == 0
    assert "pictures    as stored" in capsys.readouterr().out
    assert json.loads((stored / "config.json").read_text())["data"]["appearance"] == "stored"


@pytest.mark.slow
def test_predict_reads_as_the_run_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES["png, orientation 8"]
    source = folder(tmp_path / "set", CASES["png rgba"].raw, case.raw)
    files = {"turned": case.raw, "shown": saved(rgb(case.shown), "PNG"), "stored": saved(rgb(), "PNG")}
    for name, raw in files.items():
        (tmp_path / f"{name}.png").write_bytes(raw)
    for appearance, other in (("shown", "stored"), ("stored", "shown")):
        run = tmp_path / appearance
        words = ["train", "--data", str(source), *TINY, "--out", str(run), "--appearance", appearance]
        assert main(words) == 0
        capsys.readouterr()
        assert main(["predict", str(run), *(str(tmp_path / f"{name}.png") for name in files), "--json"]) == 0
        said = [one["classes"] for one in json.loads(capsys.readouterr().out)]
        classes = dict(zip(files, said, strict=True))
        assert classes["turned"] == classes[appearance] != classes[other]


@pytest.mark.slow
def test_a_run_of_an_earlier_release_goes_on_with_stored_pixels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("png rgba", "png, orientation 8", "png linear")
    source, run = folder(tmp_path / "set", *(CASES[name].raw for name in names)), tmp_path / "run"
    stored = ("--appearance", "stored")
    assert main(["train", "--data", str(source), *TINY, "--out", str(run), *stored]) == 0
    result = json.loads((run / "result.json").read_text())
    config = json.loads((run / "config.json").read_text())

    def resumed(**data: str) -> int:
        (run / "result.json").unlink(missing_ok=True)
        rest = {name: value for name, value in config["data"].items() if name != "appearance"}
        (run / "config.json").write_text(json.dumps(config | {"data": rest | data}))
        return main(["train", "--resume", str(run), "--start-over"])  # its states are of another config.json

    assert resumed() == 0
    assert json.loads((run / "result.json").read_text())["test_loss"] == result["test_loss"]
    capsys.readouterr()
    assert resumed(appearance="shown") == 2
    assert "data" in capsys.readouterr().err


def test_parquet_is_read_alike(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    case: Case = CASES["png, orientation 6"]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": case.raw, "path": None}] * 2, kind)
    for name in ("train", "test"):
        pq.write_table(pa.table({"image": rows, "label": [0, 1]}), tmp_path / f"{name}.parquet")
    for appearance, right in (("shown", case.shown), ("stored", SCENE)):
        splits = load(Data(str(tmp_path), appearance=appearance))  # type: ignore[arg-type]
        assert (shape(splits.train.pixels[0]) == right).all()
        assert (shape(splits.test.pixels[0]) == right).all()


def test_a_gif_whose_first_frame_is_smaller_lies_on_white() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([9, 9, 9, 200, 0, 0] + [0] * 762)
    raw = bytearray(saved(image, "GIF"))
    raw[6:10] = struct.pack("<HH", 16, 16)
    at = raw.index(b"\x2c")
    raw[at + 1 : at + 5] = struct.pack("<HH", 4, 4)
    right = np.full((16, 16, 3), 255, np.uint8)
    right[4:12, 4:12] = (200, 0, 0)
    assert (decoded(bytes(raw)) == right).all()
