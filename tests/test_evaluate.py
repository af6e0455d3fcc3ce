"""kilolayer evaluate on new labelled images: all of them, in the network's classes; text, JSON and page."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kilolayer.__main__ import main
from kilolayer.data import Data, Images, InputStatistics
from kilolayer.data.evaluation_sample import EvaluationSample, lies_within
from kilolayer.errors import InputError
from kilolayer.networks import build
from kilolayer.report import evaluation_page
from kilolayer.report.page import render_page
from kilolayer.runs import write_weights
from kilolayer.runs.evaluation_result import EvaluationResult
from kilolayer.training import Evaluation
from tiny_runs import network

CLASSES = ("dark", "mid", "light")
STATISTICS = InputStatistics(torch.full((3, 1, 1), 100.0), torch.full((3, 1, 1), 50.0))


def saved(path: Path, channels: int = 3, classes: tuple[str, ...] = CLASSES) -> Path:
    """A network that was never trained, for images of 8 pixels."""
    description = replace(network(), in_chans=channels, num_classes=len(classes))
    torch.manual_seed(3)
    model = build(description)
    with torch.no_grad():  # so that answers differ
        noise = torch.rand(400, channels, 8, 8) * torch.randint(64, 257, (400, 1, 1, 1))
        model.get_parameter("classifier.weight").mul_(20)
        model.get_parameter("classifier.bias").sub_(model.eval()(noise.sub(100).div(50)).mean(0))
    write_weights(path, description, model.state_dict(), classes, InputStatistics(*(
        one[:channels] for one in (STATISTICS.mean, STATISTICS.scale)
    )))  # fmt: skip
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("weights") / "w.safetensors")


def folder(root: Path, *names: str, count: int = 4, mode: str = "RGB") -> Path:
    """`count` pictures in each of these folders, all of them different."""
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng((number, i)).integers(0, 64 * (i % 4 + 1), (8, 8, 3), np.uint8)
            Image.fromarray(pixels).convert(mode).save(root / name / f"{i}.png")
    return root


def parquet(path: Path, names: list[str] | None, labels: list[int]) -> Path:
    """A table as the hub has them, its classes named or not."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    rows = []
    for i, _ in enumerate(labels):
        stream = io.BytesIO()
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)).save(stream, "PNG")
        rows.append({"bytes": stream.getvalue(), "path": None})
    table = arrow.table({"image": rows, "label": arrow.array(labels, arrow.int64())})
    if names:
        info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(table, path)
    return path


Measured = Callable[..., dict[str, Any]]


@pytest.fixture
def measured(weights: Path, capsys: pytest.CaptureFixture[str]) -> Measured:
    def command(data: Path, *words: str, network: Path = weights) -> dict[str, Any]:
        capsys.readouterr()
        assert main(["evaluate", str(network), "--data", str(data), "--json", *words]) == 0
        figures: dict[str, Any] = json.loads(capsys.readouterr().out)
        return figures

    return command


@pytest.mark.parametrize(
    ("names", "counts"),
    [
        (("dark", "mid", "light"), [4, 4, 4]),
        (("test/dark", "test/mid", "test/light"), [4, 4, 4]),
        (("train/dark", "train/mid", "test/mid", "test/light"), [4, 8, 4]),
        (("light", "dark"), [4, 0, 4]),
        (("mid",), [0, 4, 0]),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_all_images_count(
    mode: str, names: tuple[str, ...], counts: list[int], measured: Measured, tmp_path: Path
) -> None:
    figures = measured(folder(tmp_path / "new", *names, mode=mode))
    assert (figures["images"], figures["class_images"], figures["part"]) == (sum(counts), counts, "all")
    notes = " ".join(figures["notes"])
    assert ("grey pictures are read as colour" in notes) is (mode == "L")
    assert ("no image of" in notes) is (0 in counts)
    assert "does not name its training data" in notes


def test_one_image_is_enough(measured: Measured, tmp_path: Path) -> None:
    figures = measured(folder(tmp_path / "new", "mid", count=1))
    assert figures["images"] == 1
    low, high = figures["error_interval_95"]
    assert 0 <= low <= figures["error"] <= high <= 100


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_evaluate_says_what_predict_says(
    mode: str, channels: int, measured: Measured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = saved(tmp_path / "w.safetensors", channels)
    new = folder(tmp_path / "new", *CLASSES, mode=mode)
    confusion = measured(new, network=other)["confusion"]
    assert main(["predict", str(other), str(new), "--csv", "--top", "1"]) == 0
    counted = np.zeros((3, 3), int)
    for row in csv.DictReader(io.StringIO(capsys.readouterr().out)):
        counted[CLASSES.index(Path(row["path"]).parent.name), CLASSES.index(row["class"])] += 1
    assert counted.tolist() == confusion
    assert len(np.flatnonzero(counted.sum(0))) > 1  # the network does not say the same of all


def test_a_table_with_its_classes_in_another_order(measured: Measured, tmp_path: Path) -> None:
    by_name = [("light", 0), ("dark", 1), ("dark", 2), ("mid", 3)]
    confusions = []
    for names in (["dark", "mid", "light"], ["light", "mid", "dark"], ["mid", "light", "dark", "unused"]):
        labels = [names.index(name) for name, _ in by_name]
        confusions.append(measured(parquet(tmp_path / f"{names[0]}.parquet", names, labels))["confusion"])
    assert confusions[0] == confusions[1] == confusions[2]
    assert [sum(row) for row in confusions[0]] == [2, 1, 1]


def test_a_folder_with_only_a_test_table(measured: Measured, tmp_path: Path) -> None:
    parquet(tmp_path / "new/data/test-00000-of-00001.parquet", list(CLASSES), [0, 1, 2, 0])
    assert measured(tmp_path / "new")["images"] == 4


def test_a_part(measured: Measured, tmp_path: Path) -> None:
    root = folder(tmp_path / "new", "train/dark", "train/mid", "test/light")
    assert measured(root, "--part", "test")["class_images"] == [0, 0, 4]
    assert measured(root, "--part", "train")["class_images"] == [4, 4, 0]


def test_the_old_name_of_part(
    measured: Measured, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder(tmp_path / "new", "train/dark", "test/light")
    assert main(["evaluate", str(weights), "--data", str(root), "--split", "test"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("4 test images of new\n")
    assert shown.err == "kilolayer: --split is now called --part\n"
    assert main(["evaluate", str(weights), "--data", str(root), "--split", "test", "--part", "all"]) == 2


Refused = Callable[..., str]


@pytest.fixture
def refused(weights: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    def command(data: Path, *words: str, network: Path = weights) -> str:
        capsys.readouterr()
        assert main(["evaluate", str(network), "--data", str(data), *words]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.count("\n") == 1
        return shown.err

    return command


def test_classes_that_the_network_lacks(refused: Refused, measured: Measured, tmp_path: Path) -> None:
    root = folder(tmp_path / "new", "dark", "cat", "a, b")
    said = refused(root)
    assert (
        "2 of the data's 3 classes are not among the network's 3: 'a, b' (4 images), 'cat' (4 images)" in said
    )
    assert "--skip-unknown-classes" in said
    figures = measured(root, "--skip-unknown-classes")
    assert figures["class_images"] == [4, 0, 0]
    assert any("left out: 8 images" in note and "'cat'" in note for note in figures["notes"])
    others = folder(tmp_path / "others", "Dark")
    assert "the network's are 'dark', 'mid', 'light'" in refused(others, "--skip-unknown-classes")


def test_numbers_are_no_names(refused: Refused, measured: Measured, tmp_path: Path) -> None:
    table = parquet(tmp_path / "new.parquet", None, [0, 1, 2])
    assert "the data have numbers for names" in refused(table)
    numbered = saved(tmp_path / "n.safetensors", classes=("2", "1", "0"))
    assert measured(table, network=numbered)["images"] == 3
    assert measured(folder(tmp_path / "f", "1", "0"), network=numbered)["class_images"] == [0, 4, 4]


@pytest.mark.parametrize("content", [{}, {"notes.txt": b"words"}, {"dark/0.png": b"words"}])
def test_what_holds_no_image(content: dict[str, bytes], refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    for name, data in content.items():
        (tmp_path / "new" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "new" / name).write_bytes(data)
    assert "new" in refused(tmp_path / "new")


def test_an_image_size_that_the_mean_image_has_not(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    description = replace(network(), in_chans=3, num_classes=3)
    mean = InputStatistics(torch.full((3, 8, 8), 100.0), torch.full((1, 1, 1), 50.0))
    write_weights(path, description, build(description).state_dict(), CLASSES, mean)
    root = folder(tmp_path / "new", "dark")
    assert "mean image of 8 pixels a side" in refused(root, "--image-size", "16", network=path)
    assert "too small" in refused(root, "--image-size", "1")


def test_a_network_of_two_channels(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    description = replace(network(), in_chans=2, num_classes=3)
    statistics = InputStatistics(torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    write_weights(path, description, build(description).state_dict(), CLASSES, statistics)
    assert "with 2 channels, and these have 3" in refused(folder(tmp_path / "new", "dark"), network=path)


def test_foreign_weights(refused: Refused, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from kilolayer.networks import describe

    torch.manual_seed(0)
    path = tmp_path / "w.pt"
    torch.save(build(replace(describe("resnet8_cifar"), num_classes=3)).state_dict(), path)
    root = folder(tmp_path / "new", "test/light", "test/dark")
    words = ("--model", "resnet8_cifar", "--mean", "0.4,0.5,0.6", "--std", "0.2,0.2,0.2")
    assert "has 3 classes, the data 2" in refused(root, *words, network=path)
    assert (
        main(["evaluate", str(path), "--data", str(root), *words, "--classes", "dark,mid,light", "--json"])
        == 0
    )
    figures = json.loads(capsys.readouterr().out)
    assert (figures["class_images"], figures["classes"]) == ([4, 0, 4], ["dark", "mid", "light"])
    doubled = ("--model", "resnet8_cifar", "--mean", "102,127.5,153", "--std", "51,51,51")
    assert (
        main(["evaluate", str(path), "--data", str(root), *doubled, "--classes", "dark,mid,light", "--json"])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(figures["loss"], rel=1e-5)
    assert main(["evaluate", str(path), "--data", str(root), *words[:2], "--classes", "dark,mid,light"]) == 0
    assert "normalised by the statistics of these images" in capsys.readouterr().out
    own = refused(root, "--mean", "0.4,0.5,0.6", "--std", "0.2,0.2,0.2")
    assert "add --model NAME" in own


@pytest.fixture(scope="module")
def own_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a folder without splits, which lies beside it."""
    root = tmp_path_factory.mktemp("own")
    folder(root / "own", *CLASSES, count=10)
    words = ("--model", "resnet8_cifar", "--iterations", "1", "--batch-size", "8", "--no-tensorboard")
    assert main(["train", *words, "--data", str(root / "own"), "--out", str(root / "run")]) == 0
    return root / "run"


@pytest.mark.parametrize("words", [(), ("--part", "test"), ("--data",), ("--data", "--part", "test")])
@pytest.mark.parametrize("place", ["own", "link", "moved"])
def test_a_run_s_own_data_are_its_test_set(
    place: str, words: tuple[str, ...], own_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = own_run.parent / "own"
    if place == "link":
        (tmp_path / "link").symlink_to(own)
    if place == "moved":
        shutil.copytree(own, tmp_path / "moved")
    data = own if place == "own" else tmp_path / place
    given = [word for one in words for word in (["--data", str(data)] if one == "--data" else [one])]
    capsys.readouterr()
    assert main(["evaluate", str(own_run), "--json", *given]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["part"], figures["images"]) == ("test", 6)
    assert figures["error"] == json.loads((own_run / "result.json").read_text())["test_error"]


@pytest.mark.parametrize(
    ("place", "within"), [("own/test", True), ("link/test", True), ("own", False), ("owner", False)]
)
def test_a_folder_within_the_run_s_own_data(place: str, within: bool, tmp_path: Path) -> None:
    (tmp_path / "own/test").mkdir(parents=True)
    (tmp_path / "link").symlink_to("own")
    assert lies_within(str(tmp_path / place), Data(str(tmp_path / "own"))) is within


def test_data_that_are_gone(own_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(own_run, tmp_path / "run")
    config = json.loads((tmp_path / "run/config.json").read_text())
    config["data"]["source"] = "gone"
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    (tmp_path / "run/environment.json").unlink()
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    assert "'gone', do not exist; name their new place: --data PATH" in capsys.readouterr().err


def damaged(picture: Path) -> None:
    picture.write_bytes(picture.read_bytes()[:60])


CHANGES: dict[str, Callable[[Path], object]] = {
    "damaged": damaged,
    "deleted": Path.unlink,
    "added": lambda picture: shutil.copy(picture, picture.with_name(f"0{picture.name}")),
}


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate",),
        ("evaluate", "--part", "train"),
        ("evaluate", "--image-size", "16"),
        ("analyse", "responses", "--batch-size", "4"),
        ("analyse", "paths", "--batch-size", "4"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("change", CHANGES)
def test_a_pool_that_changed_has_another_test_set(
    change: str, words: tuple[str, ...], own_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("own", "run"):
        shutil.copytree(own_run.parent / name, tmp_path / name)
    for file in ("config.json", "environment.json"):
        text = (tmp_path / "run" / file).read_text()
        (tmp_path / "run" / file).write_text(text.replace(str(own_run.parent), str(tmp_path)))
    CHANGES[change](sorted((tmp_path / "own" / CLASSES[0]).iterdir())[0])
    command = words[:1] if words[0] == "evaluate" else words[:2]
    skip = ("--skip-damaged",) if change == "damaged" and words[0] == "evaluate" else ()
    capsys.readouterr()
    assert main([*command, str(tmp_path / "run"), *words[len(command) :], *skip]) == 2
    said = capsys.readouterr().err
    if (change, words[0]) != ("damaged", "analyse"):
        assert "of the run's data is not that of" in said
        assert "--data PATH --part all" in said


def test_a_run_that_noted_nothing_says_so(
    own_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(own_run, tmp_path / "run")
    path = tmp_path / "run/environment.json"
    starts = json.loads(path.read_text())
    for start in starts if isinstance(starts, list) else starts["starts"]:
        del start["data"]["fingerprints"]
    path.write_text(json.dumps(starts))
    shutil.rmtree(tmp_path / "run/checkpoints")
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert "has no record of its test set" in capsys.readouterr().out


def test_other_pictures_in_the_same_classes_are_new_data(
    own_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = folder(tmp_path / "own", *CLASSES, count=10, mode="L")
    capsys.readouterr()
    assert main(["evaluate", str(own_run), "--json", "--data", str(new)]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["part"], figures["images"]) == ("all", 30)
    assert any("the error is too low" in note for note in figures["notes"])
    assert main(["evaluate", str(own_run), "--json", "--part", "all"]) == 0
    assert "the network was trained on most of these images" in capsys.readouterr().out


# What is shown.


def example(classes: tuple[str, ...], images: int = 60, where: str = "photo") -> EvaluationResult:
    """Three of four answers right, the others for the next class."""
    count = len(classes)
    labels = torch.arange(images) % count
    answers = torch.where(torch.arange(images) % 4 > 0, labels, (labels + 1) % count)
    confusion = torch.zeros(count, count, dtype=torch.int64)
    confusion.index_put_((labels, answers), torch.ones(images, dtype=torch.int64), accumulate=True)
    evaluation = Evaluation(
        images, 0.5, 100 * float((labels != answers).double().mean()), 1.25,
        tuple(confusion.sum(1).tolist()), tuple(map(tuple, confusion.tolist())),
    )  # fmt: skip
    pixels = torch.arange(images * 3 * 64).remainder(251).to(torch.uint8).view(images, 3, 8, 8)
    sample = EvaluationSample(where, "all", Images(pixels, labels), lambda i: f"{where} {i}", (where,))
    probability = torch.linspace(0.5, 0.99, images).double()
    return EvaluationResult(sample, classes, evaluation, answers, probability, torch.zeros(images))


@pytest.mark.parametrize("classes", [2, 5, 6, 25, 26, 1000])
def test_top_5_only_of_more_than_five_classes(
    classes: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kilolayer.report.evaluation_text import evaluation_json, print_evaluation

    measurement = example(tuple(f"class {i}" for i in range(classes)), 2000)
    html = render_page(evaluation_page.build_evaluation_page(measurement, "run"))
    print_evaluation(measurement)
    assert ("top-5" in html) is ("top-5" in capsys.readouterr().out) is (classes > 5)
    assert evaluation_json(measurement)["top5_error"] == 1.25
    assert ("<small>" in html) is (classes <= 25)
    assert ("<svg" in html) is (classes > 25)
    assert len(html) < 3_000_000


def test_the_page_shows_the_most_confident_mistakes_first() -> None:
    measurement = example(("a", "b"))
    page = evaluation_page.build_evaluation_page(measurement, "run")
    gallery = next(item for section in page.sections for item in section.items if hasattr(item, "pictures"))
    assert [picture.lines[-1] for picture in gallery.pictures] == [f"photo {i}" for i in range(56, -1, -4)]
    with Image.open(io.BytesIO(gallery.pictures[0].png)) as image:
        shown = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    assert torch.equal(shown, measurement.sample.images.pixels[56])
    assert page.subtitle.startswith("15 of 60 images are misclassified: 25.00\u00a0%")


@pytest.mark.parametrize("side", [8, 160, 500])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_on_the_page_are_small(side: int, channels: int) -> None:
    content = evaluation_page.png_bytes(torch.zeros(channels, side, side, dtype=torch.uint8))
    with Image.open(io.BytesIO(content)) as image:
        assert image.size == (min(side, 160),) * 2


def test_nothing_wrong_is_a_page_too() -> None:
    measurement = example(("a", "b"))
    labels = measurement.sample.images.labels
    evaluation = replace(measurement.evaluation, error=0.0, confusion=((30, 0), (0, 30)))
    right = EvaluationResult(
        measurement.sample, ("a", "b"), evaluation, labels, measurement.probability, measurement.losses
    )
    html = render_page(evaluation_page.build_evaluation_page(right, "run"))
    assert "0 of 60 images are misclassified" in html
    assert "<img" not in html


def test_the_page_is_written_beside_the_text(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder(tmp_path / "new", *CLASSES)
    page = tmp_path / "page.html"
    assert main(["evaluate", str(weights), "--data", str(root), "--html", str(page)]) == 0
    assert str(page) in capsys.readouterr().out
    html = page.read_text(encoding="utf-8")
    assert "data:image/png;base64," in html
    assert "new/dark/" in html or "new/mid/" in html or "new/light/" in html
    assert main(["evaluate", str(weights), "--data", str(root), "--html", str(tmp_path)]) == 2


def test_the_next_command_can_be_copied(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path / "a folder", *CLASSES)
    words = ["evaluate", str(weights), "--data", str(root)]
    monkeypatch.setattr("sys.argv", ["kilolayer", *words])
    assert main(words) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"next        kilolayer evaluate {weights} --data '{root}' --html mistakes.html"


def test_of_pictures_without_labels_predict_is_named(tmp_path: Path) -> None:
    from kilolayer.cli.evaluation_input import _new_images
    from kilolayer.cli.options import EvaluationDataOptions

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="for images without labels: kilolayer predict runs/mine "):
        _new_images("runs/mine", EvaluationDataOptions(data=str(tmp_path)), Data(str(tmp_path)), False)
