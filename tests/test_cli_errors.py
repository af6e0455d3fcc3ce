"""Whatever is wrong with what was given: exit status 2, one line that says so, nothing written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from kilolayer.__main__ import main

TINY = ("--epochs", "1", "--subset", "128", "--threads", "1", "--precision", "fp32", "--no-tensorboard")
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run that is done."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", *TINY, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Carries out a command line that must be refused, and returns the line that says why."""
    monkeypatch.chdir(tmp_path)

    def contents() -> dict[str, bytes]:
        return {str(path): path.read_bytes() if path.is_file() else b"" for path in tmp_path.rglob("*")}

    def attempt(*words: str) -> str:
        capsys.readouterr()
        before = contents()
        assert main(words) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.count("\n") == 1
        assert shown.err.startswith("kilolayer: ")
        assert contents() == before
        return shown.err

    return attempt


def picture(path: Path, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.arange(3 * 24 * 24, dtype=np.uint8).reshape(24, 24, 3)).convert(mode).save(path)
    return path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train --model preact_resnet11O_cifar", "nearest: preact_resnet110_cifar"),
        ("train --model preact_resnet111_cifar", "nearest: 110"),
        ("show resnet112_cifar", "nearest: 110, 116"),
        ("models preact_resent*", "nearest: preact_resnet"),
        ("train --data nowhere", "nowhere: no such file or folder"),
        ("train --data cifar10 --data-folder nowhere", "nowhere"),
        ("train --batch-size 0", "--batch-size is 0"),
        ("train --ema 2", "kilolayer: --ema is 2.0; allowed"),
        ("train --progressive-resize 2", "--progressive-resize is '2': a scale is 2.0; allowed"),
        ("train --progressive-depth 0.5", "--progressive-depth is '0.5': the scales are [0.5]; allowed"),
        ("train --activation-memory 1KB", "--activation-memory is '1KB'; allowed"),
        ("train --activation-memory 1KB", "bytes in kB, MB, GB, KiB, MiB or GiB"),
        ("train --batch-size 5000", "batch size 5000 is larger"),
        ("train --lr 0", "--lr is 0"),
        ("train --lr nan", "--lr is nan"),
        ("train --lr 0,1", "with a point: 0.1"),
        ("train --lr 1e99", "--lr is 1e+99; allowed: from 1.2e-38 to 3.4e+38"),
        ("train --lr 1e-99", "--lr is 1e-99; allowed: from 1.2e-38 to 3.4e+38"),
        ("train --weight-decay 1e99", "--weight-decay is 1e+99; allowed: from 0 to below 1e+06"),
        ("train --weight-decay 1e-99", "--weight-decay is 1e-99; allowed: 0, or from 1.2e-38"),
        ("train --shortcut scaled:1e99", "Scaled.shortcut is 1e+99; allowed: 0, or from 1.2e-38 to 3.4e+38"),
        ("train --epochs 1000000000000", "--epochs is 1000000000000; allowed: a whole number from 1 to"),
        ("train --iterations 1000000000", "--iterations is 1000000000; allowed: a whole number from 1 to"),
        (f"train --iterations {'9' * 400}", "allowed: a whole number from 1 to 999,999,999"),
        ("train --epochs 1000000 --batch-size 1437 --validation 0 --subset 1437", "are 1,000,000 epochs"),
        (f"train --batch-size {'9' * 30}", "allowed: a whole number from 1 to 999,999,999"),
        (f"train --seed {2**63}", "allowed: a whole number from 0 to 9223372036854775807"),
        ("train --save-every -1", "--save-every is -1; allowed: seconds from 0 to 1,000,000,000"),
        (f"train --save-every {'9' * 400}", "allowed: seconds from 0 to 1,000,000,000"),
        ("train --snapshots -1", "--snapshots is -1"),
        ("train --epochs 0", "--epochs is 0"),
        ("train --epochs 1 --iterations 5", "--epochs and --iterations exclude each other"),
        ("train --memory-format nchw", "'nchw' is unknown; allowed: auto, channels_last, channels_first"),
        ("train --validation 1437", "1,437"),
        ("train --subset 0", "subset"),
        ("train --image-size 2", "image size 2 is too small"),
        ("train --seed -1", "seed is -1"),
        ("train --evaluate-every 0", "--evaluate-every is 0"),
        ("train --threads 0", "--threads is 0"),
        ("train --device cuda:77", "'cuda:77' is missing"),
        ("train --device tpu", "'tpu'"),
        ("train --shortcut scaled:much", "no number"),
        ("train --shortcut sideways", "unknown shortcut"),
        ("train --dropout 2", "dropout"),
        ("train --stride-on 3x3", "stride_on"),
        ("train --epoch 1", "no option --epoch; nearest: --epochs"),
        ("show --name resnet18", "no option --name"),
        ("train --threads 1025", "--threads is 1025; allowed: a whole number from 1 to 1024"),
        ("bench resnet18 --threads 1025", "--threads is 1025; allowed: a whole number from 1 to 1024"),
        (
            "bench resnet18 --activation-memory plain",
            "activation_memory is 'plain'; allowed: fastest, balanced, smallest",
        ),
        ("bench resnet18 --image-size 0", "--image-size is 0; allowed: a whole number from 1"),
        ("bench resnet18 --against own.py", "'own.py' names no function in the file"),
        ("train --epochs=many", "--epochs: 'many' is not a whole number"),
        ("train --lr high", "--lr: 'high' is not a number"),
        ("train --recipe papr", "--recipe: 'papr' is unknown; nearest: paper"),
        ("train --label-smoothing 1", "--label-smoothing is 1.0; allowed: from 0 to below 1"),
        ("train --ema 1", "1.0; allowed: from 0 to below 1"),
        (
            "train --progressive-resize half",
            "--progressive-resize is 'half'; allowed: SCALE, or SCALE,SCALE@SHARE,…",
        ),
        ("train --progressive-resize 0.5,1", "--progressive-resize is '0.5,1'; allowed"),
        ("train --progressive-resize 0.5,2@0.5", "2.0; allowed: above 0, up to 1"),
        ("train --progressive-resize 0.1,1@0.5", "images of 1 of 8 pixels a side are too small"),
        (
            "train --progressive-depth half",
            "--progressive-depth is 'half'; allowed: SCALE, or SCALE,SCALE@SHARE,…",
        ),
        ("train --progressive-depth 0.5", "[0.5]; allowed: rising, to 1 at the end"),
        ("train --arrangement backwards", "full_preactivation"),
        ("train --epochs", "--epochs"),
        ("train digits", "digits"),
        ("trian", "unknown command 'trian'; nearest: train"),
        ("--verbose", "unknown option --verbose"),
        ("show", "NAME"),
        ("completion ksh", "allowed: bash"),
        ("recipes papre", "unknown recipe 'papre'"),
        ("recipes --images 0", "--images is 0"),
        ("train --resume nowhere", "nowhere: no such file or folder"),
        ("train --resume nowhere --seed 3 --dropout 0.1", "leave out --seed, --dropout"),
        ("evaluate nowhere", "nowhere"),
        ("predict nowhere", "no image given"),
        ("predict nowhere a.png", "nowhere"),
    ],
)
def test_is_refused(words: str, said: str, refused: Refused) -> None:
    assert said in refused(*words.split())


def test_a_truncated_parquet_file(tmp_path: Path, refused: Refused) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "data.parquet").write_bytes(b"PAR1" + bytes(100))
    assert "data.parquet" in refused("train", "--data", "data.parquet")


def test_an_image_that_is_none(tmp_path: Path, refused: Refused) -> None:
    for name in ("a/1", "a/2", "b/1", "b/2"):
        picture(tmp_path / f"photos/{name}.png")
    (tmp_path / "photos/b/3.png").write_text("words")
    assert "3.png" in refused("train", "--data", "photos")


def test_an_empty_class_folder(tmp_path: Path, refused: Refused) -> None:
    picture(tmp_path / "photos/a/1.png")
    (tmp_path / "photos/b").mkdir()
    assert "photos/b" in refused("train", "--data", "photos")


def test_a_folder_that_holds_another_run(run: Path, refused: Refused) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert "holds another run" in refused("train", *TINY, "--out", str(run))
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_folder_that_cannot_be_made(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").write_text("")
    assert "file/run" in refused("train", *TINY, "--out", "file/run")


def test_classes_that_the_network_does_not_know(tmp_path: Path, run: Path, refused: Refused) -> None:
    for name in ("cat/1", "cat/2", "1/1", "1/2"):
        picture(tmp_path / f"photos/{name}.png", mode="L")
    said = refused("evaluate", str(run), "--data", "photos")
    assert "1 of the data's 2 classes are not among the network's 10: 'cat'" in said


def test_a_weights_file_names_no_data(run: Path, refused: Refused) -> None:
    assert "add --data" in refused("evaluate", str(run / "weights.safetensors"))


def test_no_validation_images(run: Path, refused: Refused) -> None:
    weights = str(run / "weights.safetensors")
    assert "'validation'" in refused("evaluate", weights, "--data", "digits", "--part", "validation")


def altered(run: Path, path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """The run's weights with some tensors changed, beneath the same description without its checksum."""
    from safetensors import safe_open

    source = run / "weights.safetensors"
    with safe_open(source, "pt") as file:
        said = json.loads(file.metadata()["kilolayer"])
    tensors = load_file(source)
    change(tensors)
    save_file(tensors, path, {"kilolayer": json.dumps(said | {"sha256": ""})})
    return path


def test_weights_of_another_network(tmp_path: Path, run: Path, refused: Refused) -> None:
    path = altered(run, tmp_path / "w.safetensors", lambda tensors: tensors.__delitem__("classifier.bias"))
    assert "weights of another network" in refused("evaluate", str(path), "--data", "digits")


def test_output_that_is_not_finite(tmp_path: Path, run: Path, refused: Refused) -> None:
    path = altered(run, tmp_path / "w.safetensors", lambda tensors: tensors["classifier.bias"].fill_(np.nan))
    assert "not finite" in refused("evaluate", str(path), "--data", "digits")
    picture(tmp_path / "a.png")
    assert "not finite" in refused("predict", str(path), "a.png")


@pytest.mark.parametrize("damage", [lambda raw: raw[:100], lambda raw: b"", lambda raw: b"\xff" * 200])
def test_damaged_weights(
    damage: Callable[[bytes], bytes], tmp_path: Path, run: Path, refused: Refused
) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(damage((run / "weights.safetensors").read_bytes()))
    assert "w.safetensors" in refused("evaluate", str(path), "--data", "digits")


def test_a_bomb(tmp_path: Path, run: Path, refused: Refused) -> None:
    Image.new("1", (9000, 9000)).save(tmp_path / "bomb.png")
    assert "bomb.png" in refused("predict", str(run), "bomb.png")


def test_another_process_has_the_run(tmp_path: Path, run: Path, refused: Refused) -> None:
    from shutil import copytree, ignore_patterns

    from kilolayer.runs import Run

    copytree(run, tmp_path / "copy", ignore=ignore_patterns("result.json"))
    with Run.open(tmp_path / "copy").lock():
        assert "in use by another process" in refused("train", "--resume", "copy")


def test_a_missing_tensorboard(monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    monkeypatch.setattr("kilolayer.runs.tensorboard.find_spec", lambda name: None)
    assert "pip install 'kilolayer[track]'" in refused("train", "--tensorboard")


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(options: object) -> int:
        raise RuntimeError("ours")

    monkeypatch.setattr("kilolayer.cli.models.execute", broken)
    with pytest.raises(RuntimeError, match="ours"):
        main(["models"])


def test_a_reader_who_has_enough() -> None:
    command = f"{sys.executable} -m kilolayer models --json | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[\n", "")
