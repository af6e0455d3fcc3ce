"""A label follows the name of its class, never its number: in every file, shard and split."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from kilolayer.data import Data, load, load_labelled
from kilolayer.data.defects import find_defects
from kilolayer.errors import InputError
from labelled_data import folders, picture, table

pytest.importorskip("pyarrow")

NAMES = ("cat", "dog")
MARKS = {"cat": 10, "dog": 20, "ant": 30}


def written(root: Path, file: str, classes: list[str], given: str, order: tuple[str, ...] = NAMES) -> None:
    """A file whose pictures show their class by their first pixel, and whose labels are given in some way."""
    import pyarrow as pa

    marks = [MARKS[name] for name in classes]
    path = root / f"{file}.parquet"
    if given == "list":
        table(path, [order.index(name) for name in classes], names=list(order), marks=marks)
    elif given == "dictionary":
        table(path, classes, marks=marks, kind=pa.dictionary(pa.int32(), pa.string()))
    else:
        table(path, classes, marks=marks, kind=pa.large_string() if given == "large" else None)


@pytest.mark.parametrize("second", ["list", "text", "large", "dictionary"])
@pytest.mark.parametrize("first", ["list", "text"])
@pytest.mark.parametrize("other", [("dog", "cat"), ("ant", "dog", "cat"), ("dog", "ant", "cat"), NAMES])
def test_labels_follow_names(first: str, second: str, other: tuple[str, ...], tmp_path: Path) -> None:
    written(tmp_path, "train-0", ["cat", "dog"] * 4, first)
    written(tmp_path, "train-1", ["dog", "cat"] * 4, second, other)
    written(tmp_path, "test-0", ["dog", "dog", "cat"], second, other)
    splits = load(Data(str(tmp_path)))
    every = load_labelled(Data(str(tmp_path)))
    parts = ((splits.train, splits.classes), (splits.test, splits.classes), (every.images, every.classes))
    for images, classes in parts:
        shown = images.pixels[:, 0, 0, 0].tolist()
        assert [MARKS[classes[label]] for label in images.labels] == shown


def refused(root: Path) -> str:
    with pytest.raises(InputError) as error:
        load(Data(str(root)))
    assert find_defects(Data(str(root))).findings, "check-data finds what training refuses"
    return str(error.value)


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        ({"names": NAMES}, {}, "only numbers"),
        ({}, {"names": NAMES}, "only numbers"),
        ({}, {"values": ["cat", "dog"] * 3}, "only numbers"),
        ({"names": ("cat", "cat")}, {"names": NAMES}, "duplicated"),
        ({"names": NAMES}, {"names": ("Cat", "dog")}, "differ only in case"),
        ({"names": NAMES}, {"names": ("cat ", "dog")}, "differ only in case or in blanks"),
        ({"names": ("Cat", "cat")}, {"names": ("Cat", "cat")}, "differ only in case"),
        ({"values": ["Cat", "cat"] * 4}, {"values": ["Cat", "cat"]}, "differ only in case"),
        ({"names": NAMES}, {"names": ("cat", "")}, "empty"),
        ({"values": ["", "dog"] * 4}, {"values": ["", "dog"]}, "empty"),
        ({"values": ["cat", None] * 4}, {"values": ["cat", "dog"]}, "null"),
        ({"names": NAMES}, {"names": ("cat",)}, "row 1: label 1 is outside the classes 0 to 0"),
        ({"names": NAMES}, {"names": NAMES, "values": [0, -1]}, "row 1: label -1"),
        ({"label": "label"}, {"label": "fine_label"}, "--label-column"),
        ({"values": [0.5, 1.0]}, {}, "whole numbers or text"),
        ({"values": [True, False]}, {}, "whole numbers or text"),
    ],
)
def test_contradictions_are_refused(
    train: dict[str, Any], test: dict[str, Any], said: str, tmp_path: Path
) -> None:
    for file, options in (("train", train), ("test", test)):
        table(tmp_path / f"{file}.parquet", **{"values": [0, 1] * 4, **options})
    message = refused(tmp_path)
    assert said in message
    assert "\n" not in message


def test_names_that_are_the_numbers_go_with_numbers(tmp_path: Path) -> None:
    table(tmp_path / "train.parquet", [0, 1] * 4, names=["0", "1"])
    table(tmp_path / "test.parquet", [0, 1])
    assert load(Data(str(tmp_path))).classes == ("0", "1")


def test_letters_are_classes(tmp_path: Path) -> None:
    table(tmp_path / "train.parquet", [0, 1] * 5, names=["A", "a"])
    assert load(Data(str(tmp_path))).classes == ("A", "a")


@pytest.mark.parametrize("kind", ["parquet", "folder"])
def test_one_name_in_two_encodings_is_one_class(kind: str, tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    if kind == "parquet":
        table(tmp_path / "train.parquet", [0, 1] * 5, names=[composed, "tea"])
        table(tmp_path / "test.parquet", [0, 1] * 3, names=[apart, "tea"])
    else:
        folders(tmp_path, f"train/{composed}", "train/tea", f"test/{apart}", "test/tea")
    splits = load(Data(str(tmp_path)))
    assert splits.classes == (composed, "tea")
    assert any("accents" in line for line in splits.origin)


@pytest.mark.parametrize("names", [("Cat", "cat"), ("cat", "cat "), ("Cat ", "cAT")])
def test_folders_that_differ_in_case_or_blanks(names: tuple[str, str], tmp_path: Path) -> None:
    folders(tmp_path, f"train/{names[0]}", "train/dog", f"test/{names[1]}", "test/dog")
    assert "differ only in case" in refused(tmp_path)


@pytest.mark.parametrize("names", [{"0": "cat", "1": "dog"}, ["cat", "dog"]])
def test_names_as_hugging_face_writes_them(names: Any, tmp_path: Path) -> None:
    table(tmp_path / "x.parquet", [0, 1] * 5, names=names)
    assert load(Data(str(tmp_path))).classes == NAMES


class TestColumns:
    @pytest.mark.parametrize("image", ["image", "img", "jpg", "picture", "whatever"])
    @pytest.mark.parametrize("raw", [True, False])
    def test_images(self, image: str, raw: bool, tmp_path: Path) -> None:
        table(tmp_path / "x.parquet", [0, 1] * 5, image=image, raw=raw)
        assert len(load(Data(str(tmp_path))).train) == 8

    @pytest.mark.parametrize("label", ["label", "labels", "fine_label", "class", "target", "cls"])
    def test_labels(self, label: str, tmp_path: Path) -> None:
        table(
            tmp_path / "x.parquet", [0, 1] * 5, label=label, coarse_label=[0] * 10, image_id=list(range(10))
        )
        assert load(Data(str(tmp_path))).num_classes == 2

    def test_a_class_label_of_any_name(self, tmp_path: Path) -> None:
        table(tmp_path / "x.parquet", [0, 1] * 5, label="species", names=list(NAMES), file=["x"] * 10)
        assert load(Data(str(tmp_path))).classes == NAMES

    def test_unusual_names_are_chosen(self, tmp_path: Path) -> None:
        more = {"thumb": [b"x"] * 10, "file": [str(i) for i in range(10)]}
        path = table(tmp_path / "x.parquet", ["cat", "dog"] * 5, image="scan", label="species", **more)
        for option, choices in (("image", {"label_column": "species"}), ("label", {"image_column": "scan"})):
            with pytest.raises(InputError, match=rf"--{option}-column NAME; its columns are scan \(struct"):
                load(Data(str(path), **choices))
        splits = load(Data(str(path), image_column="scan", label_column="species"))
        assert splits.classes == NAMES

    def test_two_usual_names_are_ambiguous(self, tmp_path: Path) -> None:
        path = table(tmp_path / "x.parquet", [0, 1] * 5, labels=[1, 0] * 5)
        with pytest.raises(InputError, match="several columns could hold the labels: label, labels"):
            load(Data(str(path)))
        assert load(Data(str(path), label_column="labels")).num_classes == 2

    @pytest.mark.parametrize(
        ("choices", "said"),
        [
            ({"label_column": "nowhere"}, "no column 'nowhere'"),
            ({"label_column": "image"}, "whole numbers or text"),
            ({"image_column": "label"}, "encoded bytes"),
        ],
    )
    def test_columns_that_do_not_do(self, choices: dict[str, str], said: str, tmp_path: Path) -> None:
        path = table(tmp_path / "x.parquet", [0, 1] * 5)
        with pytest.raises(InputError, match=said):
            load(Data(str(path), **choices))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["binary", "large_binary", "binary_view"])
def test_kinds_of_bytes(kind: str, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = pa.array([picture() for _ in range(10)], getattr(pa, kind)())
    pq.write_table(pa.table({"image": column, "label": [0, 1] * 5}), tmp_path / "x.parquet")
    assert len(load(Data(str(tmp_path))).train) == 8


def test_a_file_without_any_image_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": pa.array([None] * 10, pa.binary()), "label": [0, 1] * 5}), path)
    assert [len(finding.places) for finding in find_defects(Data(str(path))).findings] == [10]
    with pytest.raises(InputError, match=r"row 1 \(null\)"):
        load(Data(str(path)))


def test_files_are_closed(tmp_path: Path) -> None:
    """A data set may have more shards than a process may have open files."""
    for i in range(20):
        table(tmp_path / f"train-{i}.parquet", [0, 1] * 2)
    before = len(os.listdir("/dev/fd"))
    splits = load(Data(str(tmp_path)))
    assert len(splits.train) == 64
    assert len(os.listdir("/dev/fd")) - before < 10


def test_an_image_in_many_rows_is_held_once(tmp_path: Path) -> None:
    """A file of a few kilobytes can stand for gigabytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from kilolayer.data.sources.parquet_table import ParquetTable

    value = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array([b"\0" * 100_000]))
    image = pa.StructArray.from_arrays([value, pa.nulls(5000, pa.string())], ["bytes", "path"])
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": image, "label": [0, 1] * 2500}), path, compression="zstd")
    assert ParquetTable(path).read().encoded.nbytes < 10_000_000


def test_text_that_is_no_text_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    broken = pa.Array.from_buffers(
        pa.string(),
        4,
        [None, pa.array([0, 1, 2, 3, 4], pa.int32()).buffers()[1], pa.py_buffer(b"\xffa\xffa")],
    )
    images = pa.array([picture() for _ in range(4)], pa.binary())
    pq.write_table(pa.table({"image": images, "label": broken}), tmp_path / "x.parquet")
    assert "utf-8" in refused(tmp_path)
