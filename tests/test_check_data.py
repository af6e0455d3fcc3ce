"""check-data names all that is wrong with a data set, and training begins only with what can be used."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kilolayer.__main__ import main
from kilolayer.data import Data, load
from kilolayer.data.defects import DEFECTS, DataReport, find_defects
from kilolayer.data.pictures import inspection_cache
from kilolayer.errors import InputError

TINY = ("--epochs", "1", "--batch-size", "4", "--threads", "1", "--precision", "fp32", "--no-tensorboard")


def noise(seed: int, format: str = "PNG", side: int = 16) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for number, name in enumerate(("train/ant", "train/bee", "test/ant", "test/bee")):
        (root / name).mkdir(parents=True)
        for i in range(6):
            (root / name / f"{i}.png").write_bytes(noise(10 * number + i))
    return root


def kinds(report: DataReport) -> dict[str, tuple[str, ...]]:
    return {one.kind: one.places for one in report.findings}


def test_a_sound_folder(photos: Path) -> None:
    report = find_defects(Data(str(photos)))
    assert (report.images, report.classes, report.findings) == ({"train": 12, "test": 12}, 2, ())


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes(content)


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def bomb() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (9000, 9000)).save(buffer, "PNG")
    return buffer.getvalue()


def linked(root: Path) -> None:
    (root / "train/ant/loop").symlink_to(root / "train/ant/loop")
    (root / "train/ant/up").symlink_to(root)
    (root / "train/cat").symlink_to(root / "nowhere")


def emptied(root: Path) -> None:
    (root / "train/cat").mkdir()


def only_in_test(root: Path) -> None:
    (root / "test/cat").mkdir()
    (root / "test/cat/1.png").write_bytes(noise(99))


@pytest.mark.parametrize(
    ("change", "kind", "count"),
    [
        (write("test/bee/x.jpg", noise(7, "JPEG", 64)[:-200]), "damaged", 1),
        (write("test/bee/x.jpg", noise(7, "JPEG", 64)[:-2]), "damaged", 1),
        (write("train/bee/x.png", flipped(noise(7), 300)), "damaged", 1),
        (write("train/bee/x.png", noise(7)[:-20]), "damaged", 1),
        (write("train/bee/x.jpg", b"words"), "damaged", 1),
        (write("train/bee/x.png", b""), "empty", 1),
        (write("train/bee/x.png", bomb()), "too_large", 1),
        (linked, "no_file", 3),
        (emptied, "class", 1),
        (only_in_test, "class", 1),
        (write("train/bee/x.png", noise(35)), "train_and_test", 1),
        (write("train/bee/x.bmp", noise(11, "BMP")), "twice", 1),
        (write("train/bee/x.png", noise(0)), "labels_differ twice", 1),
        (write("train/bee/x\n.png", noise(98)), "name", 1),
    ],
)
def test_what_is_wrong_is_named(
    change: Callable[[Path], object], kind: str, count: int, photos: Path
) -> None:
    change(photos)
    found = kinds(find_defects(Data(str(photos))))
    assert {kind: len(places) for kind, places in found.items()} == dict.fromkeys(kind.split(), count)
    assert kinds(find_defects(Data(str(photos)))) == found, "what is remembered says the same"


def test_one_class_is_refused_and_broken_pictures_beside_it_are_named(tmp_path: Path) -> None:
    (tmp_path / "bee").mkdir()
    for i in range(3):
        (tmp_path / "bee" / f"{i}.png").write_bytes(noise(i))
    (tmp_path / "sound.png").write_bytes(noise(9))
    (tmp_path / "broken.jpg").write_bytes(b"words")
    report = find_defects(Data(str(tmp_path)))
    assert {one.kind: one.is_refused for one in report.findings} == {"few_classes": True, "beside": False}
    (place,) = kinds(report)["beside"]
    assert "broken.jpg" in place
    with pytest.raises(InputError, match="1 class, but at least 2"):
        load(Data(str(tmp_path)))


def test_every_kind_is_explained() -> None:
    assert all(DEFECTS.values())


def test_what_has_changed_is_read_again(photos: Path) -> None:
    assert not find_defects(Data(str(photos))).findings
    path = photos / "test/bee/5.png"
    state = path.stat()
    path.write_bytes(path.read_bytes()[:-20])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert len(kinds(find_defects(Data(str(photos))))["damaged"]) == 1


def test_what_is_remembered_is_not_decoded(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_defects(Data(str(photos)))
    monkeypatch.setattr(
        "kilolayer.data.pictures.inspection.map_pictures", lambda *rest: pytest.fail("decoded again")
    )
    find_defects(Data(str(photos)))


@pytest.mark.parametrize("content", [b"no database at all" * 100, None])
def test_without_a_cache_all_is_read(
    content: bytes | None, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "cache"
    if content is None:
        place.mkdir()  # no file can be opened there
    else:
        place.write_bytes(content)
    monkeypatch.setattr(inspection_cache, "cache_path", lambda: place)
    for _ in range(2):
        assert not find_defects(Data(str(photos))).findings


def cifar10(root: Path) -> Path:
    """A CIFAR-10 of 20 images to a file, all of them different."""
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"):
        table = rng.integers(0, 256, (20, 3073), dtype=np.uint8)
        table[:, 0] = np.arange(20) % 10
        (root / name).write_bytes(table.tobytes())
    return root


def test_cifar(tmp_path: Path) -> None:
    assert not find_defects(Data(str(cifar10(tmp_path)))).findings
    path = tmp_path / "test_batch.bin"
    raw = bytearray(path.read_bytes())
    raw[3073:6146] = (tmp_path / "data_batch_3.bin").read_bytes()[3073:6146]
    path.write_bytes(raw)
    assert kinds(find_defects(Data(str(tmp_path)))) == {"train_and_test": ("train image 41, test image 1",)}
    raw[0] = 10
    path.write_bytes(raw)
    assert "label 10" in kinds(find_defects(Data(str(tmp_path))))["damaged"][0]
    with pytest.raises(InputError, match="label 10"):
        load(Data(str(tmp_path)))


def test_parquet(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for name, images, labels in (
        ("train", [noise(1), noise(2), b"", noise(2), noise(3)], [0, 1, 0, 1, 7]),
        ("test", [noise(1), noise(4)[:-30]], [0, 1]),
    ):
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        column = pa.array([{"bytes": image, "path": None} for image in images], kind)
        metadata = {"huggingface": json.dumps({"info": {"features": {"label": {"names": ["a", "b"]}}}})}
        table = pa.table({"image": column, "label": labels}).replace_schema_metadata(metadata)
        pq.write_table(table, tmp_path / f"{name}.parquet")
    (tmp_path / "train-2.parquet").write_bytes(b"PAR1")
    found = kinds(find_defects(Data(str(tmp_path))))
    counts = {"damaged": 2, "empty": 1, "label": 1, "train_and_test": 1, "twice": 1}
    assert {kind: len(places) for kind, places in found.items()} == counts


def test_the_command_and_its_status(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", str(photos)]) == 0
    assert "no faults found" in capsys.readouterr().out
    for i in range(12):
        (photos / f"train/ant/bad{i:02}.png").write_bytes(b"x")
    assert main(["check-data", str(photos)]) == 1
    shown = capsys.readouterr().out
    assert "12: cannot be read; training rejects them" in shown
    assert "bad09.png" in shown
    assert "bad10.png" not in shown
    assert main(["check-data", str(photos), "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert (finding["kind"], finding["count"], finding["refused"]) == ("damaged", 12, True)
    assert main(["check-data", str(photos / "nowhere")]) == 2


def test_training_refuses_damaged_data_or_counts_them(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train/ant/bad.png", "test/bee/bad.png"):
        raw = noise(50)
        # Whole at its end, so that only decoding can tell.
        (photos / name).write_bytes(raw[:100] + raw[300:])
    run = str(tmp_path / "run")
    words = ("train", "--data", str(photos), "--validation", "0", *TINY, "--model", "preact_resnet20_cifar")
    assert main([*words, "--out", run]) == 2
    assert "test/bee/bad.png" in capsys.readouterr().err
    assert not Path(run).exists()
    assert main([*words, "--out", run, "--skip-damaged"]) == 0
    assert "2 damaged images" in capsys.readouterr().out
    skipped = json.loads((tmp_path / "run/result.json").read_text())["skipped_images"]
    assert ["train/ant/bad.png" in skipped[0], "test/bee/bad.png" in skipped[1]] == [True, True]


def test_what_is_no_file_can_be_skipped_too(photos: Path) -> None:
    (photos / "train/ant/loop").symlink_to(photos / "train/ant/loop")
    with pytest.raises(InputError, match="not files"):
        load(Data(str(photos)))
    splits = load(Data(str(photos), skip_damaged=True))
    assert (len(splits.train), len(splits.skipped)) == (12, 1)


def test_a_class_of_which_nothing_is_left(photos: Path) -> None:
    for path in (photos / "train/bee").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(InputError, match="training set has no image of 'bee'"):
        load(Data(str(photos), skip_damaged=True))


@pytest.mark.parametrize("name", ["an\x1bt", os.fsdecode(b"b\xffee")])
def test_a_class_that_no_report_could_name(name: str, photos: Path) -> None:
    for part in ("train", "test"):
        (photos / part / "ant").rename(photos / part / name)
    with pytest.raises(InputError, match="1 class names are unprintable"):
        load(Data(str(photos)))
    assert len(kinds(find_defects(Data(str(photos))))["class"]) == 2
