"""Which files and folders are trained on and which are held out: by their names, and always said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kilolayer.__main__ import main
from kilolayer.cli.assemble import assemble_experiment
from kilolayer.cli.options import DataOptions, ExperimentOptions, RecipeOptions
from kilolayer.data import Data, Splits, load, load_labelled
from kilolayer.data.defects import find_defects
from kilolayer.data.sources.splits import ROLE_WORDS, name_roles
from kilolayer.errors import InputError
from labelled_data import HELD_OUT, folders, table

pytest.importorskip("pyarrow")


def held_out(splits: Splits) -> tuple[int, int]:
    """How many of the marked pictures are in the training set and in the test set."""
    train, test = ((part.pixels[:, 0, 0, 0] == HELD_OUT).sum() for part in (splits.train, splits.test))
    return int(train), int(test)


def refused(root: Path, **choices: str) -> str:
    with pytest.raises(InputError) as error:
        load(Data(str(root), **choices))  # type: ignore[arg-type]
    message = str(error.value)
    assert "\n" not in message
    return message.replace(str(root), "D")


def parquet(root: Path, name: str, *, train: bool) -> None:
    table(root / f"{name}.parquet", [0, 1] * (5 if train else 3), mark=0 if train else HELD_OUT)


def images(root: Path, name: str, *, train: bool) -> None:
    places = (f"{name}/ant", f"{name}/bee")
    folders(root, *places, images=5 if train else 3, mark=0 if train else HELD_OUT)


PAIRS = [
    ("train", "test"),
    ("Train", "Test"),
    ("TRAIN", "VAL"),
    ("training", "testing"),
    ("training", "validation"),
    ("training_set", "test_set"),
    ("train", "dev"),
    ("train", "eval"),
    ("train", "holdout"),
    ("train", "held-out"),
    ("set-train", "set-test"),
    ("name_train", "name_test"),
    ("seg_train", "seg_test"),
    ("my.data.train", "my.data.valid"),
    ("catsTrain", "catsTest"),
    ("trainset", "testset"),
    ("train2017", "val2017"),
    ("train_1", "test_1"),
    ("partial-train", "partial-test"),
]


@pytest.mark.parametrize("write", [parquet, images])
@pytest.mark.parametrize(("train", "test"), PAIRS)
def test_the_words_in_names_decide(write, train: str, test: str, tmp_path: Path) -> None:
    write(tmp_path, train, train=True)
    write(tmp_path, test, train=False)
    splits = load(Data(str(tmp_path)))
    assert held_out(splits) == (0, 6)
    assert len(splits.train) == 10
    assert train in splits.origin[0]
    assert test in splits.origin[1]


@pytest.mark.parametrize(
    ("role", "word"), [(role, word) for role, words in ROLE_WORDS.items() for word in words]
)
def test_every_word_says_one_thing(role: str, word: str) -> None:
    joined = word.replace(" ", "_")
    for name in (joined, joined.upper(), joined.title(), f"set-{joined}", f"{joined}_2017", f"x.{joined}"):
        assert name_roles(name) == {role}, name


@pytest.mark.parametrize("name", ["contest", "latest", "trains", "value", "device", "medieval", "cats", ""])
def test_parts_of_words_say_nothing(name: str) -> None:
    assert not name_roles(name)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("data/train-00000-of-00002", "data/validation-00000-of-00001"),
        ("train/0000", "test/0000"),
        ("default/train/0000", "default/test/0000"),
        ("plain_text/train-00000-of-00001", "plain_text/test-00000-of-00001"),
        ("data/plain/train-0", "data/plain/test-0"),
        ("data/train-00000-of-00001-a09b74b3ef9c3b56", "data/test-00000-of-00001-0123456789abcdef"),
        ("train/part/0000", "test/part/0000"),
    ],
)
def test_layouts_of_hubs(train: str, test: str, tmp_path: Path) -> None:
    parquet(tmp_path, train, train=True)
    parquet(tmp_path, test, train=False)
    assert held_out(load(Data(str(tmp_path)))) == (0, 6)


def test_endings_in_capitals(tmp_path: Path) -> None:
    table(tmp_path / "TRAIN.PARQUET", [0, 1] * 5)
    table(tmp_path / "TEST.Parquet", [0, 1] * 3, mark=HELD_OUT)
    assert held_out(load(Data(str(tmp_path)))) == (0, 6)
    assert len(load(Data(str(tmp_path / "TRAIN.PARQUET"))).train) == 8


@pytest.mark.parametrize("write", [parquet, images])
class TestThreeSplits:
    """Training, validation and test: validation is held out where asked for, else not used and named."""

    def test_the_validation_split_is_not_used_unless_asked_for(self, write, tmp_path: Path) -> None:
        for name in ("train", "val", "test"):
            write(tmp_path, name, train=name == "train")
        splits = load(Data(str(tmp_path)))
        assert splits.validation is None
        assert held_out(splits) == (0, 6)
        assert any("not used" in line and "val" in line for line in splits.origin)
        splits = load(Data(str(tmp_path), validation_split="val"))
        assert splits.validation is not None
        assert (len(splits.train), len(splits.validation), held_out(splits)) == (10, 6, (0, 6))

    def test_without_a_test_split_validation_is_the_test_set(self, write, tmp_path: Path) -> None:
        for name in ("train", "val"):
            write(tmp_path, name, train=name == "train")
        splits = load(Data(str(tmp_path)))
        assert held_out(splits) == (0, 6)
        assert "the validation split, since" in splits.origin[1]

    def test_chosen_splits(self, write, tmp_path: Path) -> None:
        for name in ("train", "extra", "test"):
            write(tmp_path, name, train=name != "test")
        assert any("extra" in line and "not used" in line for line in load(Data(str(tmp_path))).origin)
        splits = load(Data(str(tmp_path), train="train+extra"))
        assert (len(splits.train), held_out(splits)) == (20, (0, 6))
        splits = load(Data(str(tmp_path), train="EXTRA", test="train"))
        assert (len(splits.train), len(splits.test)) == (10, 10)
        assert "it has: extra, test, train" in refused(tmp_path, train="nowhere")
        assert "is chosen twice" in refused(tmp_path, train="train", test="train")

    @pytest.mark.parametrize(
        ("names", "said"),
        [
            (("train", "test", "eval"), "several splits could be the test set"),
            (("a_train", "b_train", "test"), "--train a_train+b_train"),
            (("test",), "no train split"),
            (("train_test", "test"), "could be test or train"),
        ],
    )
    def test_what_is_not_plain_is_refused(self, write, names, said: str, tmp_path: Path) -> None:
        for name in names:
            write(tmp_path, name, train=True)
        assert said in refused(tmp_path)


def test_files_without_such_words_are_refused_or_shards_of_one(tmp_path: Path) -> None:
    parquet(tmp_path / "shards", "0000", train=True)
    parquet(tmp_path / "shards", "0001", train=True)
    assert len(load(Data(str(tmp_path / "shards"))).train) == 16
    parquet(tmp_path, "pool", train=True)
    parquet(tmp_path, "private", train=False)
    (tmp_path / "shards/0000.parquet").unlink()
    (tmp_path / "shards/0001.parquet").unlink()
    assert "--train pool+private" in refused(tmp_path)


def test_several_configurations_are_refused_with_the_choice(tmp_path: Path) -> None:
    for name in ("ten", "hundred"):
        parquet(tmp_path, f"{name}/train/0000", train=True)
        parquet(tmp_path, f"{name}/test/0000", train=False)
    message = refused(tmp_path)
    assert "'hundred', 'ten'" in message
    assert "--train hundred/train --test hundred/test" in message
    assert held_out(load(Data(str(tmp_path), train="ten/train", test="ten/test"))) == (0, 6)
    assert held_out(load(Data(str(tmp_path / "ten")))) == (0, 6)


@pytest.mark.parametrize(
    ("labels", "said"),
    [([-1] * 6, "all labels are −1"), ([None] * 6, "all labels are null"), ([], "empty")],
)
def test_a_test_split_without_labels_is_not_used(labels: list[int | None], said: str, tmp_path: Path) -> None:
    """As ImageNet-1k is stored: the validation split is the test set."""
    import pyarrow as pa

    parquet(tmp_path, "data/train-0", train=True)
    parquet(tmp_path, "data/validation-0", train=False)
    table(tmp_path / "data/test-0.parquet", labels, kind=pa.int64())
    splits = load(Data(str(tmp_path)))
    assert (len(splits.train), held_out(splits)) == (10, (0, 6))
    assert any(line.startswith("not used") and said in line for line in splits.origin)
    if labels:
        assert said in refused(tmp_path, test="test")


def test_a_test_split_without_a_label_column_is_not_used(tmp_path: Path) -> None:
    parquet(tmp_path, "train", train=True)
    table(tmp_path / "test.parquet", [0] * 6, label="")
    splits = load(Data(str(tmp_path)))
    assert (len(splits.train), len(splits.test)) == (8, 2)
    assert "no label column" in splits.origin[-1]


def test_pictures_in_no_class_folder_are_no_test_set(tmp_path: Path) -> None:
    images(tmp_path, "train", train=True)
    folders(tmp_path, "test", "val/images")
    splits = load(Data(str(tmp_path)))
    assert (len(splits.train), len(splits.test)) == (8, 2)
    assert sum("not used: 4 images" in line for line in splits.origin) == 2


def test_empty_shards_and_damaged_files(tmp_path: Path) -> None:
    import pyarrow as pa

    parquet(tmp_path, "train-0", train=True)
    table(tmp_path / "train-1.parquet", [], kind=pa.int64())
    (tmp_path / "extra.parquet").write_bytes(b"PAR1")
    splits = load(Data(str(tmp_path)))
    assert len(splits.train) == 8
    assert "cannot be read" in splits.origin[-1]
    (tmp_path / "train-2.parquet").write_bytes(b"")
    assert "train-2.parquet" in refused(tmp_path)
    with pytest.raises(InputError, match=r"(extra|train-2)\.parquet.*damaged"):
        load_labelled(Data(str(tmp_path)))


@pytest.mark.parametrize(("column", "values"), [("split", ["train", "test"]), ("Subset", ["TRAIN", "val"])])
def test_rows_of_several_splits_in_one_file_are_refused(
    column: str, values: list[str], tmp_path: Path
) -> None:
    path = table(tmp_path / "x.parquet", [0, 1] * 4, **{column: values * 4})
    assert "write a file for each" in refused(path)
    table(path, [0, 1] * 5, **{column: ["train"] * 10}, set=["a", "b"] * 5)
    assert len(load(Data(str(path))).train) == 8


def test_files_that_are_not_here_are_named(tmp_path: Path) -> None:
    parquet(tmp_path, "train-00000-of-00003", train=True)
    parquet(tmp_path, "test-00000-of-00001", train=False)
    (tmp_path / "README.md").write_text("a card")
    said = "\n".join(load(Data(str(tmp_path))).origin)
    assert "files of train: 1 of 3 are here" in said
    assert "files of test" not in said
    assert "ignored, not pictures: 1 ('.md' 1)" in said
    (tmp_path / "train-00001-of-00003.parquet").write_text("version https://git-lfs\n")
    assert "git lfs pull" in refused(tmp_path)


class TestFolders:
    @pytest.mark.parametrize(
        "above", ["seg_train/seg_train", "train/images", "training_set/train", "dataset/dataset/train"]
    )
    def test_one_more_folder_in_between(self, above: str, tmp_path: Path) -> None:
        folders(tmp_path, f"{above}/ant", f"{above}/bee")
        assert load(Data(str(tmp_path))).classes == ("ant", "bee")

    def test_a_folder_within_a_split_is_no_class(self, tmp_path: Path) -> None:
        folders(tmp_path, "seg_train/seg_train/ant", "seg_train/seg_train/bee", "seg_pred/seg_pred")
        every = load_labelled(Data(str(tmp_path), train="seg_train"))
        assert (every.classes, len(every)) == (("ant", "bee"), 8)
        assert any(line.startswith("not used: 4 images") for line in every.origin)

    def test_a_class_called_train_is_a_class(self, tmp_path: Path) -> None:
        splits = load(Data(str(folders(tmp_path, "bus", "car", "train"))))
        assert splits.classes == ("bus", "car", "train")

    @pytest.mark.parametrize("name", ["test", "val", "my_testset"])
    def test_held_out_pictures_beside_class_folders_are_no_class(self, name: str, tmp_path: Path) -> None:
        folders(tmp_path, "cat", "dog", name)
        assert "if it is a class, rename it" in refused(tmp_path)

    def test_a_class_or_a_split(self, tmp_path: Path) -> None:
        folders(tmp_path, "train/ant", "train/bee", "bus")
        assert "could be a split, or a class" in refused(tmp_path)
        assert load(Data(str(tmp_path), train="train")).classes == ("ant", "bee")

    def test_splits_within_classes_are_refused(self, tmp_path: Path) -> None:
        folders(tmp_path, "ant/train", "ant/test", "bee/train", "bee/test")
        assert "has the name of a split" in refused(tmp_path)
        with pytest.raises(InputError, match="has the name of a split"):
            find_defects(Data(str(tmp_path)))

    def test_a_copy_of_all_splits_beside_them_is_not_used(self, tmp_path: Path) -> None:
        """As some archives are unpacked."""
        places = [f"{part}/{name}" for part in ("train", "test") for name in ("ant", "bee")]
        folders(tmp_path, *places, *(f"copy/{place}" for place in places))
        assert len(load(Data(str(tmp_path))).train) == 8
        assert len(load_labelled(Data(str(tmp_path)))) == 16

    def test_splits_by_other_names(self, tmp_path: Path) -> None:
        folders(tmp_path, "photo/ant", "photo/bee", "sketch/ant", "sketch/bee")
        assert "could be the classes" in refused(tmp_path)
        splits = load(Data(str(tmp_path), train="photo", test="sketch"))
        assert (splits.classes, len(splits.train), len(splits.test)) == (("ant", "bee"), 8, 8)

    def test_tiny_imagenet(self, tmp_path: Path) -> None:
        folders(tmp_path, "train/n1/images", "train/n2/images", "val/images", "test/images")
        lines = "".join(f"{i}.png\tn{1 + i % 2}\t0\t0\t62\t62\n" for i in range(4))
        (tmp_path / "val/val_annotations.txt").write_text(lines)
        splits = load(Data(str(tmp_path)))
        assert (splits.classes, splits.test.labels.tolist()) == (("n1", "n2"), [0, 0, 1, 1])
        (tmp_path / "val/val_annotations.txt").write_text(lines[:-2] + "\n9.png\tn1\n")
        assert "do not agree" in refused(tmp_path)

    @pytest.mark.parametrize("place", ["", "train", "images"])
    def test_pictures_without_classes(self, place: str, tmp_path: Path) -> None:
        folders(tmp_path, place)
        assert "put the pictures of each class into a folder" in refused(tmp_path)
        with pytest.raises(InputError, match="put the pictures"):
            find_defects(Data(str(tmp_path)))

    def test_what_is_no_picture_is_passed_over_and_counted(self, tmp_path: Path) -> None:
        folders(tmp_path, "ant", "bee")
        for litter in ("__MACOSX", "ant/@eaDir", "ant/.ipynb_checkpoints"):
            folders(tmp_path, litter)
        for name in (
            "ant/.DS_Store",
            "ant/Thumbs.db",
            "ant/._0.png",
            "ant/labels.csv",
            "README.txt",
            "x.json",
        ):
            (tmp_path / name).write_text("words")
        splits = load(Data(str(tmp_path)))
        assert len(splits.train) + len(splits.test) == 8
        said = "\n".join(splits.origin)
        assert "not pictures: 3 ('.txt' 1, '.json' 1, '.csv' 1)" in said
        assert "left behind by systems: 6" in said
        assert not find_defects(Data(str(tmp_path))).findings

    def test_folders_without_end(self, tmp_path: Path) -> None:
        (tmp_path / ("a/" * 500)).mkdir(parents=True)
        assert "more than 100 deep" in refused(tmp_path)

    def test_a_picture_without_an_ending_is_one(self, tmp_path: Path) -> None:
        folders(tmp_path, "ant", "bee")
        (tmp_path / "ant/0.png").rename(tmp_path / "ant/0")
        splits = load(Data(str(tmp_path)))
        assert len(splits.train) + len(splits.test) == 8

    @pytest.mark.parametrize(
        ("file", "head", "is_image"),
        [
            ("x.dng", b"II*\0" + bytes(20), True),
            ("x.psd", b"8BPS" + bytes(20), True),
            ("x.dcm", bytes(128) + b"DICM", True),
            ("x.heic", b"", True),
            ("x", b"\0\0\0\x18ftypheic" + bytes(20), True),
            ("x.mp4", b"\0\0\0\x18ftypisom" + bytes(20), False),
            ("x.pdf", b"%PDF-1.7", False),
            ("x.txt", b"BMW and others", False),
            ("x.csv", b"P1,P2,P3", False),
            ("x.md", b"", False),
        ],
    )
    def test_pictures_of_other_kinds_are_no_other_files(
        self, file: str, head: bytes, is_image: bool, tmp_path: Path
    ) -> None:
        """What is a picture and cannot be read is refused by name; other files are passed over."""
        folders(tmp_path, "ant", "bee")
        (tmp_path / "ant" / file).write_bytes(head)
        if is_image:
            assert "1 of 9 images are unusable" in refused(tmp_path)
        else:
            assert "ignored, not pictures: 1" in load(Data(str(tmp_path))).origin[-1]

    def test_empty_class_folders_are_no_empty_split(self, tmp_path: Path) -> None:
        images(tmp_path, "train", train=True)
        for name in ("ant", "bee"):
            (tmp_path / "test" / name).mkdir(parents=True)
        assert "2 class folders are empty" in refused(tmp_path)


@pytest.mark.parametrize("write", [parquet, images])
def test_skipped_pictures_change_no_proportion(write, tmp_path: Path) -> None:
    """The test set is drawn when damage is known: a fifth of each class of what is left."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if write is images:
        folders(tmp_path, "ant", "bee", images=20)
        for i in range(10):
            (tmp_path / f"ant/{i}.png").write_bytes(b"damaged")
    else:
        path = table(tmp_path / "x.parquet", [0] * 20 + [1] * 20)
        rows = pq.read_table(path).to_pylist()
        for row in rows[:10]:
            row["image"]["bytes"] = b"damaged"
        pq.write_table(pa.Table.from_pylist(rows), path)
    splits = load(Data(str(tmp_path), skip_damaged=True))
    assert splits.test.labels.bincount().tolist() == [2, 4]
    assert splits.train.labels.bincount().tolist() == [8, 16]
    again = load(Data(str(tmp_path), skip_damaged=True))
    assert again.test.fingerprint() == splits.test.fingerprint()


@pytest.mark.parametrize(
    ("words", "validation_split", "validation", "counts"),
    [
        ({}, "val", 0, (10, 6, 6)),
        ({"validation": "0"}, None, 0, (10, 0, 6)),
        ({"validation": "3"}, None, 3, (7, 3, 6)),
        ({"train": "val", "test": "train", "validation": "2"}, None, 2, (4, 2, 10)),
        ({"validation": "test", "test": "val"}, "test", 0, (10, 6, 6)),
    ],
)
def test_what_train_takes(
    words: dict[str, str],
    validation_split: str | None,
    validation: int,
    counts: tuple[int, int, int],
    tmp_path: Path,
) -> None:
    """By default the data's own validation split, where there is a test split beside it."""
    for name in ("train", "val", "test"):
        images(tmp_path, name, train=name == "train")
    options = DataOptions(str(tmp_path), **words)  # type: ignore[arg-type]
    recipe = RecipeOptions(batch_size=4, iterations=1)
    settings = ExperimentOptions(model="preact_resnet8_cifar", data=options, recipe=recipe)
    experiment, splits = assemble_experiment(settings)
    assert (experiment.data.validation_split, experiment.data.validation) == (validation_split, validation)
    assert (len(splits.train), len(splits.validation or ()), len(splits.test)) == counts


@pytest.mark.parametrize("read", [load, find_defects, load_labelled])
def test_digits_have_no_splits_to_choose(read) -> None:
    for choice in ({"train": "x"}, {"validation_split": "x"}, {"label_column": "x"}):
        with pytest.raises(InputError, match=r"--(train|validation|label-column) x: digits has one"):
            read(Data("digits", **choice))


@pytest.mark.slow
def test_training_says_what_it_uses_and_records_the_choice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train", "val", "test"):
        images(tmp_path / "data", name, train=name == "train")
    words = [
        "--model",
        "preact_resnet8_cifar",
        "--iterations",
        "1",
        "--batch-size",
        "4",
        "--threads",
        "1",
        "--precision",
        "fp32",
    ]
    words = ["train", "--data", str(tmp_path / "data"), *words, "--no-tensorboard"]
    assert main([*words, "--out", str(tmp_path / "a")]) == 0
    said = capsys.readouterr().out
    assert "validation: 6 images" in said
    assert json.loads((tmp_path / "a/config.json").read_text())["data"]["validation_split"] == "val"
    chosen = ["--train", "val", "--test", "train", "--validation", "2"]
    assert main([*words, "--out", str(tmp_path / "b"), *chosen]) == 0
    assert "not used" in capsys.readouterr().out
    data = json.loads((tmp_path / "b/config.json").read_text())["data"]
    assert (data["train"], data["test"], data["validation"]) == ("val", "train", 2)
    result = json.loads((tmp_path / "b/result.json").read_text())
    assert "val" in result["images_from"][0]
    assert main(["check-data", str(tmp_path / "data"), "--test", "val"]) == 0
    assert "test: 6 images of" in capsys.readouterr().out


def test_what_is_not_chosen_is_not_written() -> None:
    """So that runs which are named by a digest of their description keep their names."""
    from kilolayer.values import from_json, to_json

    text = to_json(Data("somewhere"))
    assert "train" not in text
    assert from_json(to_json(Data("somewhere", train="a", label_column="b")), Data).label_column == "b"
