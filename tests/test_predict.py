"""kilolayer predict: files, folders and patterns in, text, JSON and CSV out; foreign weights."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kilolayer.__main__ import main
from kilolayer.cli import command_line
from kilolayer.cli.foreign_options import ForeignOptions
from kilolayer.data import InputStatistics
from kilolayer.data.picture_files import find_picture_files
from kilolayer.errors import InputError
from kilolayer.networks import Network, build
from kilolayer.runs import read_weights, write_weights
from tiny_runs import network

NAMES = ("plain", "with, a comma", "=1+1", 'a "quote"', "new\nline", "sixth")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that was never trained, for six classes and grey images of 8 pixels."""
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    description = Network(**{**vars(network()), "num_classes": len(NAMES)})
    torch.manual_seed(0)
    statistics = InputStatistics(torch.full((1, 1, 1), 100.0), torch.full((1, 1, 1), 50.0))
    write_weights(path, description, build(description).state_dict(), NAMES, statistics)
    return path


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three pictures at two depths, one damaged, one empty, a text, a hidden file and a link in a circle."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.JPG", "sub/c.png")):
        pixels = np.random.default_rng(number).integers(0, 256, (12, 9), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "damaged.png").write_bytes((folder / "a.png").read_bytes()[:50])
    (folder / "empty.jpg").touch()
    (folder / "notes.txt").write_text("words")
    (folder / ".hidden.png").write_text("words")
    (folder / "loop").symlink_to(".")
    return folder


def paths(*words: str) -> list[str]:
    return [file.path for file in find_picture_files(words)]


ALL = [f"photos/{name}" for name in ("a.png", "b.JPG", "damaged.png", "empty.jpg", "notes.txt", "sub/c.png")]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["photos"], ALL),
        (["photos/"], ALL),
        (["photos/**"], ALL),
        (["photos/**/*"], ALL),
        (["photos/sub", "photos/a.png", "photos/a.png"], ["photos/sub/c.png", *["photos/a.png"] * 2]),
        (["photos/*.png"], ["photos/a.png", "photos/damaged.png"]),
        (["**/*.png"], ["photos/a.png", "photos/damaged.png", "photos/sub/c.png"]),
        (["photos/[ab].*"], ["photos/a.png", "photos/b.JPG"]),
        (["phot*/s*"], ["photos/sub/c.png"]),
    ],
)
@pytest.mark.parametrize("absolute", [False, True])
def test_words_mean_files(absolute: bool, words: list[str], expected: list[str], photos: Path) -> None:
    top = f"{photos.parent}/" if absolute else ""
    assert paths(*(top + word for word in words)) == [(top + path).replace("//", "/") for path in expected]


def test_a_name_that_looks_like_a_pattern(photos: Path) -> None:
    (photos / "[ab].png").write_bytes((photos / "a.png").read_bytes())
    assert paths("photos/[ab].png") == ["photos/[ab].png"]


@pytest.mark.parametrize("word", ["nowhere", "photos/*.gif", "photos/sub/none"])
def test_a_word_that_means_nothing_is_refused(word: str, photos: Path) -> None:
    with pytest.raises(InputError, match=r"no file matches|no such file"):
        find_picture_files(["photos", word])


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="without any file"):
        find_picture_files([str(tmp_path)])


Predicted = Callable[..., tuple[int, str, str]]


@pytest.fixture
def predicted(weights: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> Predicted:
    """Predicts with the network, from the folder above `photos`: status, output, messages."""

    def command(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["predict", str(weights), *words])
        return status, *capsys.readouterr()

    return command


def test_a_folder_is_predicted_without_what_cannot_be_read(predicted: Predicted) -> None:
    status, out, err = predicted("photos")
    assert status == 1
    assert [line for line in out.splitlines() if not line.startswith(" ")] == [ALL[0], ALL[1], ALL[5]]
    assert "skipped 1 of 6 files, which are no images: 'photos/notes.txt'" in err
    assert "2 of 6 images cannot be read: 'photos/damaged.png'" in err
    assert "'photos/empty.jpg' (empty)" in err


def test_a_file_that_is_named_is_never_passed_over(predicted: Predicted) -> None:
    status, _, err = predicted("photos/a.png", "photos/notes.txt")
    assert status == 1
    assert "1 of 2 images cannot be read: 'photos/notes.txt' (not an image)" in err


def test_all_is_well(predicted: Predicted) -> None:
    assert predicted("photos/sub")[0::2] == (0, "")


@pytest.mark.parametrize("kind", [(), ("--json",), ("--csv",), ("--csv", "table.csv")])
def test_nothing_is_written_where_nothing_can_be_read(kind: tuple[str, ...], predicted: Predicted) -> None:
    status, out, err = predicted("photos/damaged.png", "photos/empty.jpg", *kind)
    assert (status, out) == (2, "")
    assert "none of 2 images can be read: 'photos/damaged.png'" in err
    assert not Path("table.csv").exists()


@pytest.mark.parametrize("words", [("--csv", "table.csv", "photos"), ("photos", "--csv", "table.csv")])
def test_csv_holds_every_file_and_exact_names(words: tuple[str, ...], predicted: Predicted) -> None:
    status, out, _ = predicted(*words, "--top", "6")
    assert (status, out) == (1, "")
    with open("table.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [path for path in ALL if not path.endswith("txt")]
    names = [row["class" if rank == 1 else f"class_{rank}"] for row in rows[:1] for rank in range(1, 7)]
    assert sorted(names) == sorted(NAMES)
    chances = [float(rows[0]["probability" if rank == 1 else f"probability_{rank}"]) for rank in range(1, 7)]
    assert chances == sorted(chances, reverse=True)
    assert sum(chances) == pytest.approx(1, abs=1e-5)
    assert [bool(row["error"]) for row in rows] == [False, False, True, True, False]
    assert rows[2]["class"] == rows[2]["probability"] == ""


def test_csv_to_standard_output_is_the_file(predicted: Predicted) -> None:
    predicted("photos", "--csv", "table.csv")
    for words in (("photos", "--csv"), ("--csv", "photos"), ("photos", "--csv", "-")):
        assert predicted(*words)[1] == Path("table.csv").read_bytes().decode()


def test_a_picture_is_never_taken_for_the_table(predicted: Predicted) -> None:
    before = Path("photos/a.png").read_bytes()
    assert predicted("--csv", "photos/a.png", "photos/b.JPG")[1].count("photos/") == 2
    assert predicted("--csv=photos/a.png", "photos/b.JPG")[0] == 2
    status, _, err = predicted("photos", "--csv", "table.txt")
    assert status == 2
    assert "--csv 'table.txt': the name must end in .csv" in err
    assert Path("photos/a.png").read_bytes() == before


def test_a_table_with_no_room_leaves_the_older_one(
    predicted: Predicted, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("table.csv").write_text("older")
    monkeypatch.setattr(
        "kilolayer.system.opened_folder.os.replace",
        lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full")),
    )
    status, _, err = predicted("photos/sub", "--csv", "table.csv")
    assert status == 2
    assert "cannot write table.csv" in err
    assert Path("table.csv").read_text() == "older"
    assert sorted(path.name for path in Path().iterdir()) == ["photos", "table.csv"]


def test_paths_that_are_no_text_come_back(predicted: Predicted) -> None:
    name = os.fsdecode(b"photos/\xff.png")
    Path(name).write_bytes(Path("photos/a.png").read_bytes())
    assert json.loads(predicted(name, "--json")[1])[0]["image"] == name
    assert next(csv.DictReader(io.StringIO(predicted(name, "--csv")[1])))["path"] == "photos/\\udcff.png"


def test_json_says_why_a_file_has_no_classes(predicted: Predicted) -> None:
    entries = json.loads(predicted("photos/empty.jpg", "photos/a.png", "--json", "--top", "1")[1])
    assert entries[0] == {"image": "photos/empty.jpg", "classes": [], "error": "empty"}
    assert [len(entry["classes"]) for entry in entries] == [0, 1]


def test_many_batches_give_what_one_gives(predicted: Predicted, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = predicted("photos", "--csv")[1]
    monkeypatch.setattr("kilolayer.runs.file_predictions.DECODE_CHUNK", 2)
    assert predicted("photos", "--csv")[1] == whole


@pytest.mark.parametrize(
    ("words", "csv_file", "images"),
    [
        ("predict run a --csv", "-", ("a",)),
        ("predict run --csv a b", "-", ("a", "b")),
        ("predict run --csv t.CSV a b", "t.CSV", ("a", "b")),
        ("predict run --csv - a", "-", ("a",)),
        ("predict run --csv=t.csv a", "t.csv", ("a",)),
        ("predict run -- --csv", None, ("--csv",)),
    ],
)
def test_a_bare_option_takes_no_image(words: str, csv_file: str | None, images: tuple[str, ...]) -> None:
    options = command_line.parse(words.split())
    assert (options.csv, options.images) == (csv_file, images)


def test_size_and_appearance_can_be_chosen(predicted: Predicted) -> None:
    own = predicted("photos/a.png", "--json")[1]
    assert predicted("photos/a.png", "--json", "--image-size", "8", "--appearance", "stored")[1] == own
    assert predicted("photos/a.png", "--json", "--image-size", "12")[1] != own
    for size, said in (("1", "too small"), ("0", "--image-size is 0"), ("5000", "--image-size is 5000")):
        status, _, err = predicted("photos/a.png", "--image-size", size)
        assert (status, said in err) == (2, True)


# Weights that say nothing of themselves.


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from kilolayer.networks import describe

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.pt"
    named = describe("resnet8_cifar")
    torch.save(build(Network(**{**vars(named), "num_classes": 4})).state_dict(), path)
    return path


IMAGENET = ("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225")


def test_foreign_weights_predict(foreign: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", str(foreign), "photos/a.png", "--model", "resnet8_cifar", "--top", "4", "--json"]
    assert main([*words, *IMAGENET, "--classes", "w,x,y,z"]) == 0
    by_list = json.loads(capsys.readouterr().out)
    Path("names.txt").write_text("w\nx\r\ny\nz\n")
    doubled = ("--mean", "123.675,116.28,103.53", "--std", "58.395,57.12,57.375")
    assert main([*words, *doubled, "--classes", "names.txt"]) == 0
    assert json.loads(capsys.readouterr().out) == by_list
    assert sorted(one["class"] for one in by_list[0]["classes"]) == ["w", "x", "y", "z"]
    assert main([*words, *IMAGENET]) == 0
    shown = capsys.readouterr()
    assert sorted(one["class"] for one in json.loads(shown.out)[0]["classes"]) == ["0", "1", "2", "3"]
    assert "the classes are numbers" in shown.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model", "resnet8_cifar"), "needs --mean and --std"),
        (("--model", "resnet8_cifar", "--mean", "0.5,0.5,0.5"), "--std is missing"),
        (
            ("--model", "resnet8_cifar", "--mean", "0.5", "--std", "0.5"),
            "have 1 numbers, the network 3 channels",
        ),
        (("--model", "resnet8_cifar", *IMAGENET, "--classes", "a,b"), "has 4 classes, --classes 2"),
        (("--model", "resnet8_cifar", *IMAGENET, "--classes", "a,b,,d"), "name 3 is empty"),
        (("--model", "resnet8_cifar", *IMAGENET, "--classes", "a,b,a,d"), "duplicate names: 'a'"),
        (("--model", "resnet8_cifar", *IMAGENET, "--classes", "none.txt"), "no such file"),
        (("--model", "resnet7_cifar", *IMAGENET), "nearest"),
        (IMAGENET, "add --model NAME"),
    ],
)
def test_foreign_weights_are_refused(
    words: tuple[str, ...], said: str, foreign: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(foreign), "photos/a.png", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mean", "std", "pixel_range", "expected"),
    [
        ("0.5", "0.5", "auto", (127.5, 127.5)),
        ("0.5", "1", "auto", None),
        ("0.5", "1", "0-1", (127.5, 255.0)),
        ("0.5", "1", "0-255", (0.5, 1.0)),
        ("0", "1", "auto", None),
        ("128", "1", "auto", (128.0, 1.0)),
        ("0", "255", "auto", (0.0, 255.0)),
        ("0.5", "0.0039", "auto", (127.5, 0.9945)),
        ("128", "0.5", "auto", None),
        ("128", "0.5", "0-255", (128.0, 0.5)),
        ("128", "0.5", "0-1", None),
        ("0", "0.5", "auto", (0.0, 127.5)),
        ("300", "2", "auto", None),
        ("nan", "1", "0-1", None),
        ("0.5", "0", "0-1", None),
        ("-0.5", "1", "0-1", None),
        ("half", "1", "0-1", None),
        ("", "1", "0-1", None),
        ("0.5,0.5", "0.5", "auto", None),
    ],
)
def test_pixel_statistics(
    mean: str, std: str, pixel_range: str, expected: tuple[float, float] | None
) -> None:
    options = ForeignOptions("m", None, mean, std, pixel_range)  # type: ignore[arg-type]
    if expected is None:
        with pytest.raises(InputError, match=r"--mean|--std|--pixel-range"):
            options.pixel_statistics()
    else:
        found = options.pixel_statistics()
        assert found is not None
        assert (*found.mean, *found.std) == pytest.approx(expected)


def test_names_from_json_and_with_commas(tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text(json.dumps(["a, b", "ü"]))
    (tmp_path / "names.txt").write_text("\ufeffa, b\nü\n", encoding="utf-8")
    for name in ("names.json", "names.txt"):
        assert ForeignOptions(classes=str(tmp_path / name)).class_names() == ("a, b", "ü")
    (tmp_path / "names.json").write_text('{"0": "a"}')
    (tmp_path / "names.txt").write_bytes(b"\xff\n")
    for name in ("names.json", "names.txt"):
        with pytest.raises(InputError, match="--classes"):
            ForeignOptions(classes=str(tmp_path / name)).class_names()


def test_the_network_s_own_file_is_read_as_it_was(weights: Path) -> None:
    assert read_weights(weights).classes == NAMES


def test_no_bar_stands_among_answers_in_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads a pipe may write to the same terminal."""
    from kilolayer.cli.predict import PredictOptions, _prints_to_reader

    ends = os.pipe()
    with open(ends[0], "rb"), open(ends[1], "w") as pipe, open(tmp_path / "answers", "w") as file:
        for stream, csv_name, watched in ((pipe, None, True), (pipe, "a.csv", False), (file, None, False)):
            monkeypatch.setattr("sys.stdout", stream)
            assert _prints_to_reader(PredictOptions("run", ("x.png",), csv=csv_name)) is watched
        monkeypatch.undo()
