"""What can be read in two ways is refused by name, and what is not read is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kilolayer.data import Data, load
from kilolayer.data.defects import find_defects
from kilolayer.errors import InputError
from labelled_data import folders, table

pytest.importorskip("pyarrow")
CLASSES = ("ant", "bee")


def refused(root: Path, **choices: Any) -> str:
    with pytest.raises(InputError) as error:
        load(Data(str(root), **choices))
    assert "\n" not in str(error.value)
    with pytest.raises(InputError):
        find_defects(Data(str(root), **choices))
    return str(error.value).replace(str(root), "D")


def said(root: Path, **choices: Any) -> str:
    lines = load(Data(str(root), **choices)).origin
    assert set(lines) <= {*find_defects(Data(str(root), **choices)).origin, *lines}
    return "\n".join(lines)


class TestFoldersInFolders:
    @pytest.mark.parametrize(
        ("outer", "inner"),
        [
            (("treino", "teste"), CLASSES),
            (("80", "20"), CLASSES),
            (("fold1", "fold2", "fold3"), ("Bed", "Chair")),
            (("Art", "Clipart", "Product"), ("Bed", "Chair", "Desk")),
            (("COVID", "Normal"), ("images", "masks")),
        ],
    )
    @pytest.mark.parametrize("above", ["", "train/"])
    def test_the_same_folders_in_several(
        self, outer: tuple[str, ...], inner: tuple[str, ...], above: str, tmp_path: Path
    ) -> None:
        folders(tmp_path, *(f"{above}{one}/{each}" for one in outer for each in inner), images=2)
        message = refused(tmp_path)
        assert "the outer or the inner folders could be the classes" in message
        assert f"--data D/{above}" in message

    def test_one_folder_alike_is_a_class_further_in(self, tmp_path: Path) -> None:
        folders(tmp_path, "ant/images", "bee/images", "bee/other")
        assert load(Data(str(tmp_path))).classes == CLASSES

    @pytest.mark.parametrize("name", ["unlabeled", "Unlabelled", "unsup", "unlabeled2017"])
    def test_pictures_without_labels_are_no_class(self, name: str, tmp_path: Path) -> None:
        folders(tmp_path, *CLASSES, name)
        assert "unlabelled pictures" in refused(tmp_path)

    @pytest.mark.parametrize(("first", "second"), [("ant", "cow"), ("train", "test")])
    def test_a_link_makes_no_second_folder(self, first: str, second: str, tmp_path: Path) -> None:
        places = [f"{first}/ant", f"{first}/bee"] if first == "train" else CLASSES
        folders(tmp_path, *places)
        (tmp_path / second).symlink_to(first)
        assert "identical" in refused(tmp_path)


class TestLists:
    def write(self, path: Path, *rows: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(rows) + "\n")

    @pytest.mark.parametrize("file", ["HAM10000_metadata.csv", "any.csv"])
    @pytest.mark.parametrize("ending", ["", ".png"])
    def test_labels_of_pictures_in_parts(self, file: str, ending: str, tmp_path: Path) -> None:
        folders(tmp_path, "images_part_1", "images_part_2")
        names = []
        for part in (1, 2):
            for path in (tmp_path / f"images_part_{part}").iterdir():
                names.append(f"ISIC_{part}{path.stem}")
                path.rename(path.with_name(f"{names[-1]}.png"))
        rows = [f"{name}{ending},{'ab'[i % 2]}" for i, name in enumerate(names)]
        self.write(tmp_path / file, "image_id,what", *rows)
        assert f"'D/{file}': lists 8 of these pictures" in refused(tmp_path)

    def test_a_label_column_that_is_not_the_folders(self, tmp_path: Path) -> None:
        folders(tmp_path, "blue", "red")
        rows = [f"{folder}/{i}.png,{'ab'[i % 2]}" for folder in ("blue", "red") for i in range(4)]
        self.write(tmp_path / "labels.csv", "file_name,label", *rows)
        assert "'label' does not agree with their folders 'blue', 'red'" in refused(tmp_path)

    def test_metadata_of_a_hub_beside_folders_of_parts(self, tmp_path: Path) -> None:
        folders(tmp_path, "0", "1")
        lines = [f'{{"file_name": "{part}/{i}.png", "label": {i % 2}}}' for part in "01" for i in range(4)]
        self.write(tmp_path / "metadata.jsonl", *lines)
        assert "'label' does not agree with their folders '0', '1'" in refused(tmp_path)

    @pytest.mark.parametrize("values", [("blue", "red"), ("0", "1")])
    def test_a_label_column_that_is_the_folders_is_no_fault(self, values: Any, tmp_path: Path) -> None:
        folders(tmp_path, "blue", "red")
        pairs = zip(("blue", "red"), values, strict=True)
        rows = [f"{folder}/{i}.png,{value}" for folder, value in pairs for i in range(4)]
        self.write(tmp_path / "birds.csv", "file_name,label", *rows)
        assert "not read: 'birds.csv'" in said(tmp_path)

    @pytest.mark.parametrize("file", ["labels.csv", "metadata.jsonl", "x_metadata.csv", "labels.txt"])
    def test_a_list_that_may_hold_labels_is_said(self, file: str, tmp_path: Path) -> None:
        folders(tmp_path, *CLASSES)
        (tmp_path / file).write_text("words")
        assert f"not read: {file!r}: the folders' names are the classes" in said(tmp_path)

    @pytest.mark.parametrize(
        "file",
        [
            "train.txt",
            "test.txt",
            "train_test_split.txt",
            "meta/train.txt",
            "trainlist01.txt",
            "my_split.json",
        ],
    )
    def test_a_list_of_splits_is_said_where_a_fifth_is_drawn(self, file: str, tmp_path: Path) -> None:
        self.write(tmp_path / file, "1 0")
        root = folders(tmp_path, *(f"images/{name}" for name in CLASSES))
        assert f"not read: {Path(file).name!r}: splits are folders" in said(root)

    def test_a_list_of_splits_beside_splits_is_not_said(self, tmp_path: Path) -> None:
        self.write(tmp_path / "test.txt", "1 0")
        folders(tmp_path, *(f"{split}/{name}" for split in ("train", "test") for name in CLASSES))
        assert "not read" not in said(tmp_path)


class TestRows:
    @pytest.mark.parametrize(
        ("column", "values"),
        [
            ("data_split", ["train", "test"]),
            ("Usage", ["Training", "PublicTest"]),
            ("split", ["treino", "teste"]),
            ("is_test", [False, True]),
            ("is_train", [0, 1]),
            ("is_validation", [True, False]),
            ("fold", [0, 1]),
            ("partition", [0, 2]),
            ("dataset", ["train", "holdout"]),
        ],
    )
    def test_a_column_that_parts_the_rows(self, column: str, values: list[Any], tmp_path: Path) -> None:
        path = table(tmp_path / "x.parquet", [0, 0, 1, 1] * 3, **{column: values * 6})
        assert f"column {column!r} says" in refused(path)
        for i, value in enumerate(values):
            table(tmp_path / f"shards/{i:04}.parquet", [0, 1] * 5, **{column: [value] * 10})
        assert f"column {column!r} says" in refused(tmp_path / "shards")

    @pytest.mark.parametrize(
        ("column", "values"),
        [("set", ["a", "b"]), ("trainId", [3, 7]), ("is_test", [0, 0]), ("split", ["train", "trainval"])],
    )
    def test_columns_that_part_no_rows(self, column: str, values: list[Any], tmp_path: Path) -> None:
        path = table(tmp_path / "x.parquet", [0, 1] * 5, **{column: values * 5})
        assert len(load(Data(str(path))).train) == 8

    def test_folds_of_the_training_rows_beside_a_test_file(self, tmp_path: Path) -> None:
        table(tmp_path / "train.parquet", [0, 1] * 5, fold=[0, 1] * 5)
        table(tmp_path / "test.parquet", [0, 1] * 5)
        assert len(load(Data(str(tmp_path))).train) == 10

    @pytest.mark.parametrize("file", ["train", "test"])
    def test_a_column_that_contradicts_the_file(self, file: str, tmp_path: Path) -> None:
        other = {"train": "test", "test": "train"}[file]
        table(tmp_path / f"{file}.parquet", [0, 1] * 5, split=[other] * 10)
        table(tmp_path / f"{other}.parquet", [0, 1] * 5)
        assert f"is {file} by its name, and its column 'split' says {other!r}" in refused(tmp_path)

    def test_numbers_named_otherwise_in_another_file(self, tmp_path: Path) -> None:
        table(tmp_path / "train.parquet", [0, 1] * 5, label_name=["cat", "dog"] * 5)
        table(tmp_path / "test.parquet", [0, 1] * 5, label_name=["cat", "dog"] * 5)
        assert load(Data(str(tmp_path))).num_classes == 2
        table(tmp_path / "test.parquet", [0, 1] * 5, label_name=["dog", "cat"] * 5)
        with pytest.raises(InputError, match=r"label 0 is 'cat' in .*train.*, and label . is '.*' in .*test"):
            load(Data(str(tmp_path)))
        assert any(
            "label 0 is 'cat'" in place
            for one in find_defects(Data(str(tmp_path))).findings
            for place in one.places
        )
        assert load(Data(str(tmp_path), label_column="label_name")).classes == ("cat", "dog")


class TestFiles:
    def test_a_link_to_the_training_file(self, tmp_path: Path) -> None:
        table(tmp_path / "train.parquet", [0, 1] * 5)
        (tmp_path / "test.parquet").symlink_to("train.parquet")
        assert "identical" in refused(tmp_path)

    def test_a_held_out_file_that_is_trained_on_is_said(self, tmp_path: Path) -> None:
        path = table(tmp_path / "test-00000-of-00001.parquet", [0, 1] * 5)
        assert "'test-00000-of-00001.parquet' is test by its name, and is trained on" in said(path)

    @pytest.mark.parametrize("file", ["train (1)", "train copy", "train-copy 2", "train (12)"])
    def test_a_second_download(self, file: str, tmp_path: Path) -> None:
        for name in ("train", file, "test"):
            table(tmp_path / f"{name}.parquet", [0, 1] * 5)
        assert f"'{file}.parquet' looks like a second download of 'train.parquet'" in refused(tmp_path)
        assert len(load(Data(str(tmp_path), train="train", test="test")).train) == 10

    def test_names_in_options_are_quoted(self, tmp_path: Path) -> None:
        for name in ("my photos", "others"):
            table(tmp_path / f"{name}.parquet", [0, 1] * 5)
        assert "--train 'my photos+others'" in refused(tmp_path)

    def test_a_card_that_declares_splits(self, tmp_path: Path) -> None:
        card = (
            "---\nconfigs:\n- config_name: x\n  data_files:\n  - split: test\n    path: 0001.parquet\n---\n"
        )
        for i in range(2):
            table(tmp_path / f"000{i}.parquet", [0, 1] * 5)
        (tmp_path / "README.md").write_text("words about data_files: none")
        assert len(load(Data(str(tmp_path))).train) == 16
        (tmp_path / "README.md").write_text(card)
        assert "declares splits by file (data_files)" in refused(tmp_path)
        assert len(load(Data(str(tmp_path), train="all")).train) == 16
        for i, name in enumerate(("train", "test")):
            (tmp_path / f"000{i}.parquet").rename(tmp_path / f"{name}.parquet")
        assert "declares splits by file (data_files)" in said(tmp_path)
