"""Image folders and parquet: what is right is read exactly, what is wrong is said before training."""

import io
import json
import os
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from kilolayer.data import Data, load
from kilolayer.data.pictures import decoding
from kilolayer.errors import InputError
from kilolayer.system import memory_limit

CLASSES = ("ant", "bee")


def encoded(value, size=(12, 12), mode="RGB", format="PNG"):
    buffer = io.BytesIO()
    fill = value if mode == "L" else (value, 255 - value, 7)
    Image.new(mode, size, fill).save(buffer, format)
    return buffer.getvalue()


def noise():
    """A JPEG with much to lose at its end."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def image_folder(root, parts=("train", "test"), classes=CLASSES, n=6, **kind):
    for part in parts:
        for number, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(n):
                (folder / f"{i}.png").write_bytes(encoded(100 * number + i, **kind))
    return root


def bomb(width=9000, height=9000):
    """A tiny PNG that claims, and has, 81 million pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width // 8 + 1) * height))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def fails(match, source, **description):
    with pytest.raises(InputError, match=match) as error:
        load(Data(str(source), **description))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_folder(tmp_path):
    splits = load(Data(str(image_folder(tmp_path / "insects"))))
    assert (splits.name, splits.classes) == ("insects", CLASSES)
    assert (splits.in_chans, splits.image_size) == (3, 12)
    assert (len(splits.train), len(splits.test)) == (12, 12)
    assert splits.train.pixels[8].flatten(1)[:, 0].tolist() == [102, 153, 7]
    assert splits.train.labels.tolist() == [0] * 6 + [1] * 6


def test_grey_stays_grey(tmp_path):
    assert load(Data(str(image_folder(tmp_path, mode="L")))).in_chans == 1


@pytest.mark.parametrize("name", ["validation", "valid", "val"])
def test_other_names_for_test(name, tmp_path):
    assert len(load(Data(str(image_folder(tmp_path, ("train", name))))).test) == 12


@pytest.mark.parametrize("parts", [("",), ("train",)])
def test_a_fifth_of_each_class_is_the_test_set(parts, tmp_path):
    image_folder(tmp_path, parts, n=10)
    splits = load(Data(str(tmp_path)))
    assert splits.test.labels.tolist() == [0, 0, 1, 1]
    seen = {tuple(x.flatten().tolist()) for x in (*splits.train.pixels, *splits.test.pixels)}
    assert len(seen) == 20
    again, other = load(Data(str(tmp_path))), load(Data(str(tmp_path), split_seed=1))
    assert again.test.fingerprint() == splits.test.fingerprint() != other.test.fingerprint()


def test_sizes_that_differ_become_224_or_what_is_asked(tmp_path):
    image_folder(tmp_path)
    (tmp_path / "train" / "ant" / "wide.jpg").write_bytes(encoded(90, (40, 20), format="JPEG"))
    assert load(Data(str(tmp_path))).image_size == 224
    splits = load(Data(str(tmp_path), image_size=10))
    assert splits.train.pixels.shape == (13, 3, 10, 10)
    assert splits.train.pixels[6, 0].float().sub(90).abs().max() <= 3


def test_centre_is_kept(tmp_path):
    image_folder(tmp_path)
    image = Image.new("RGB", (30, 10), "red")
    image.paste("blue", (10, 0, 20, 10))
    image.save(tmp_path / "train" / "ant" / "x.png")
    pixels = load(Data(str(tmp_path), image_size=10)).train.pixels[6]
    assert (pixels[2] == 255).all()
    assert (pixels[0] == 0).all()


def test_only_the_subset_is_decoded(tmp_path, monkeypatch):
    image_folder(tmp_path, n=8)
    sizes = []
    original = decoding.decode
    monkeypatch.setattr(
        "kilolayer.data.sources.picture_source.decode",
        lambda p, *rest: sizes.append(len(p)) or original(p, *rest),
    )
    splits = load(Data(str(tmp_path), subset=3, validation=2))
    assert sizes == [5]
    _ = splits.test
    assert sizes == [5, 16]


def test_test_pixels_are_not_read_while_training(tmp_path):
    splits = load(Data(str(image_folder(tmp_path))))
    (tmp_path / "test" / "ant" / "0.png").unlink()
    with pytest.raises(InputError, match=r"test/ant/0\.png"):
        _ = splits.test


def test_hidden_files_are_passed_over(tmp_path):
    image_folder(tmp_path)
    (tmp_path / ".git").mkdir()
    (tmp_path / "train" / "README").write_text("beside the class folders")
    for name in (".DS_Store", "Thumbs.db"):
        (tmp_path / "train" / "ant" / name).write_text("x")
    assert len(load(Data(str(tmp_path))).train) == 12


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", r"\(empty\)"),
        (b"plain text", "not an image"),
        (encoded(5)[:-30], "truncated|broken|unrecognized"),
        (noise()[:-200], "truncated"),
        (bomb(), "9000×9000 pixels"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "a PostScript file; convert its pages",
        ),
    ],
    ids=["empty", "text", "png cut", "jpeg cut", "bomb", "eps"],
)
def test_unusable_images_are_named(part, raw, reason, tmp_path):
    image_folder(tmp_path)
    (tmp_path / part / "bee" / "bad\n.png").write_bytes(raw)
    assert r"bee/bad\n.png" in fails(reason, tmp_path)


def test_the_first_ten_are_named(tmp_path):
    image_folder(tmp_path)
    for i in range(25):
        (tmp_path / "train" / "ant" / f"bad{i:02}.png").write_text("x")
    message = fails("25 of 49", tmp_path)
    assert "bad09.png" in message
    assert "bad10.png" not in message
    assert "and 15 more" in message


def test_entries_that_are_no_files(tmp_path):
    image_folder(tmp_path)
    folder = tmp_path / "train" / "ant"
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe")
    message = fails("2 entries", tmp_path)
    assert "loop" in message
    assert "pipe" in message


def test_empty_class(tmp_path):
    image_folder(tmp_path)
    (tmp_path / "train" / "cat").mkdir()
    assert "train/cat" in fails("are empty", tmp_path)


@pytest.mark.parametrize(("part", "where"), [("test", "training"), ("train", "test")])
def test_class_on_one_side_only(part, where, tmp_path):
    image_folder(tmp_path)
    image_folder(tmp_path, (part,), ("cat",))
    assert "'cat'" in fails(f"the {where} set has no image", tmp_path)


def test_too_few_classes(tmp_path):
    fails("1 class", image_folder(tmp_path / "one", classes=("ant",)))
    (tmp_path / "none").mkdir()
    fails("no class folders", tmp_path / "none")
    fails("no train split", image_folder(tmp_path / "only", ("test", "val")))


def test_one_image_cannot_be_split(tmp_path):
    fails("2 or more", image_folder(tmp_path, ("",), n=1))


def test_memory_is_asked_for_first(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_limit, "available_memory", lambda: 20_000)
    assert "--subset" in fails("24 images of 64×64", image_folder(tmp_path), image_size=64)


# Parquet

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def rows(path, labels, images=None, names=CLASSES, column="image", label="label", **kind):
    """A Hugging Face parquet file; image i has the colour i."""
    images = [encoded(i, **kind) for i in range(len(labels))] if images is None else images
    structs = [None if raw is None else {"bytes": raw, "path": None} for raw in images]
    kind_of = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({column: pa.array(structs, kind_of), label: labels})
    if names:
        features = {column: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=5)
    return path


def parquet_folder(root, **kind):
    rows(root / "train-00000-of-00002.parquet", [0, 1] * 6, **kind)
    rows(root / "train-00001-of-00002.parquet", [1, 0] * 2, **kind)
    rows(root / "test-00000-of-00001.parquet", [0, 1, 1], **kind)
    return root


@pytest.mark.parametrize("column", ["img", "image", "photo"])
@pytest.mark.parametrize("label", ["label", "labels", "fine_label"])
def test_parquet(column, label, tmp_path):
    splits = load(Data(str(parquet_folder(tmp_path / "insects", column=column, label=label))))
    assert (splits.name, splits.classes) == ("insects", CLASSES)
    assert splits.train.labels.tolist() == [0, 1] * 6 + [1, 0] * 2
    assert splits.train.pixels[:, 0, 0, 0].tolist() == [*range(12), *range(4)]
    assert splits.test.labels.tolist() == [0, 1, 1]


def test_parquet_file_alone(tmp_path):
    path = rows(tmp_path / "bugs.parquet", [0, 1] * 10, names=None)
    splits = load(Data(str(path)))
    assert (splits.name, splits.classes) == ("bugs", ("0", "1"))
    assert splits.test.labels.tolist() == [0, 1] * 2 or sorted(splits.test.labels.tolist()) == [0, 0, 1, 1]
    colours = [*splits.train.pixels[:, 0, 0, 0].tolist(), *splits.test.pixels[:, 0, 0, 0].tolist()]
    assert sorted(colours) == list(range(20))


def test_parquet_in_a_data_folder(tmp_path):
    parquet_folder(tmp_path / "data")
    assert len(load(Data(str(tmp_path))).train) == 16


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("image", [None, b"", b"text", noise()[:-200], bomb()])
def test_parquet_names_row_and_file(part, image, tmp_path):
    parquet_folder(tmp_path)
    rows(tmp_path / f"{part}-00000-of-00001.parquet", [0, 1, 0], images=[encoded(1), image, encoded(2)])
    assert f"{part}-00000-of-00001.parquet' row 1 (" in fails("unusable", tmp_path)


@pytest.mark.parametrize("label", [-1, 2, 2**40])
def test_parquet_label_outside(label, tmp_path):
    parquet_folder(tmp_path)
    rows(tmp_path / "test-00000-of-00001.parquet", [0, label, 1])
    assert "row 1" in fails("outside the classes 0 to 1", tmp_path)


def test_parquet_enormous_label_without_names(tmp_path):
    fails("outside the classes", rows(tmp_path / "x.parquet", [0, 2**62], names=None))


def test_parquet_null_label(tmp_path):
    fails("1 of 3 labels are null", rows(tmp_path / "x.parquet", [0, None, 1]))


def test_parquet_class_missing_from_train(tmp_path):
    rows(tmp_path / "train.parquet", [0, 1] * 4, names=("a", "b", "c"))
    rows(tmp_path / "test.parquet", [0, 1, 2], names=("a", "b", "c"))
    assert "'c'" in fails("training set has no image", tmp_path)


def test_parquet_without_the_columns(tmp_path):
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), tmp_path / "x.parquet")
    assert "text (string)" in fails("no image column", tmp_path)
    rows(tmp_path / "x.parquet", [0.5, 1.0])
    fails("labels are whole numbers or text", tmp_path)


def test_damaged_parquet(tmp_path):
    path = rows(tmp_path / "x.parquet", [0, 1] * 10)
    whole = path.read_bytes()
    for raw in (
        b"",
        b"PAR1",
        whole[: len(whole) // 2],
        whole[:4] + bytes(60) + whole[64:],
        bytes(len(whole)),
    ):
        path.write_bytes(raw)
        fails("damaged", path)


def test_parquet_test_only(tmp_path):
    rows(tmp_path / "test-0.parquet", [0, 1])
    fails("no train", tmp_path)


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    path = rows(tmp_path / "x.parquet", [0, 1])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    fails(r"pip install 'kilolayer\[parquet\]'", path)


def test_re_encoded_cifar_says_so():
    from kilolayer.data.pictures.decoding import Header
    from kilolayer.data.sources.cifar_files import CIFAR10_CLASSES as TEN
    from kilolayer.data.sources.picture_source import _title

    small, full = {Header("JPEG", (32, 32), False)}, (50_000, 10_000)
    assert _title("x", TEN, small, full) == "CIFAR-10 (JPEG re-encode)"
    assert _title("x", TEN, {Header("PNG", (32, 32), False)}, full) == "x"
    assert _title("x", TEN, small, (50_000, 100)) == "x"


def test_labels_are_int64(tmp_path):
    assert load(Data(str(image_folder(tmp_path)))).train.labels.numpy().dtype == np.int64


def test_readable_pictures_are_decoded_beside_unreadable_ones(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(7, mode="L"))
    (tmp_path / "b.png").write_text("words")
    paths = [tmp_path / "b.png", tmp_path / "a.png"]
    labelled = decoding.EncodedPictures(np.zeros(2, np.int64), paths.__getitem__, lambda i: paths[i].name)
    images, outcomes = decoding.decode_readable(labelled, decoding.PixelFormat(4, grey=True), "")
    assert [isinstance(outcome, decoding.Unreadable) for outcome in outcomes] == [True, False]
    assert images.pixels[1].eq(7).all()
