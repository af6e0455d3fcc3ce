"""The prediction for every test image that a run keeps: complete, checked, and absent from older runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kilolayer.__main__ import main
from kilolayer.data import Data, load
from kilolayer.errors import InputError
from kilolayer.runs import Run
from kilolayer.runs.predictions import (
    PREDICTIONS_FILE,
    Predictions,
    read_predictions,
    write_predictions,
)
from kilolayer.training import DistributedContext
from kilolayer.training.evaluation import NO_CLASS, AnswerCollector
from tiny_runs import numbered, splits_of, tiny, train

TINY = (
    "--model",
    "resnet8_cifar",
    "--subset",
    "64",
    "--iterations",
    "2",
    "--threads",
    "1",
    "--no-tensorboard",
)


def test_a_run_keeps_the_class_and_loss_of_every_test_image(tmp_path: Path) -> None:
    experiment = tiny()
    training = train(tmp_path, experiment)
    kept, result, test = read_predictions(tmp_path), Run(tmp_path).result(), splits_of(experiment).test
    assert kept is not None
    assert result is not None
    assert torch.equal(kept.labels, test.labels)
    assert kept.error == pytest.approx(result["test_error"], abs=1e-12)
    assert float(kept.losses.double().mean()) == pytest.approx(result["test_loss"], rel=1e-3)
    assert kept.test_set == test.fingerprint()
    training.model.eval()
    with torch.no_grad():
        logits = training.model(training.statistics.normalize(test.pixels))
    assert torch.equal(kept.answers, logits.argmax(1))


def test_ranks_share_the_images_out_and_gather_all() -> None:
    """Two ranks by hand: each sees its batches, and the sums of both are what one rank sees."""
    images = numbered(23, 5)
    logits = torch.randn(23, 5, generator=torch.Generator().manual_seed(0))
    logits[7, 2] = torch.nan
    found = []
    for world_size in (1, 2, 3):
        parts = []
        for rank in range(world_size):
            collector = AnswerCollector(images, DistributedContext(torch.device("cpu"), rank, 1), 4)
            collector._next, collector._context = (
                rank * 4,
                DistributedContext(torch.device("cpu"), rank, world_size),
            )
            for start in range(rank * 4, 23, world_size * 4):
                collector.observe(logits[start : start + 4])
            parts.append((collector._answers, collector._losses))
        found.append([sum(column) for column in zip(*parts, strict=True)])
    assert found[0][0][7] == NO_CLASS
    for answers, losses in found[1:]:
        assert torch.equal(answers, found[0][0])
        assert torch.equal(losses.nan_to_num(), found[0][1].nan_to_num())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    made = Predictions(
        torch.tensor([0, 65_535, 999]), torch.tensor([0, 1, 999]), torch.tensor([0.5, 1e9, torch.nan])
    )
    write_predictions(tmp_path, made, "abc")
    read = read_predictions(tmp_path)
    assert read is not None
    assert read.answers.tolist() == [0, 65_535, 999]
    assert read.wrong.tolist() == [False, True, False]
    assert read.losses.isfinite().all()
    assert read.test_set == "abc"
    assert (tmp_path / PREDICTIONS_FILE).stat().st_size < 500


def test_damaged_predictions_are_one_line(tmp_path: Path) -> None:
    write_predictions(tmp_path, Predictions(torch.arange(9), torch.arange(9), torch.rand(9)), "abc")
    path = tmp_path / PREDICTIONS_FILE
    whole = path.read_bytes()
    for position in range(0, len(whole), 5):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(InputError, match=PREDICTIONS_FILE):
            read_predictions(tmp_path)
    for content in (b"", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=PREDICTIONS_FILE):
            read_predictions(tmp_path)


def test_a_run_of_an_earlier_release_has_none_and_evaluate_adds_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", *TINY, "--out", str(run)]) == 0
    trained = read_predictions(run)
    (run / PREDICTIONS_FILE).unlink()
    assert read_predictions(run) is None
    capsys.readouterr()
    assert main(["evaluate", str(run), "--predictions", "--json"]) == 0
    added = read_predictions(run)
    assert added is not None
    assert trained is not None
    assert torch.equal(added.answers, trained.answers)
    assert torch.equal(added.labels, load(Data("digits", subset=64)).test.labels)
    assert added.test_set == trained.test_set


def test_predictions_of_another_error_or_of_other_images_are_not_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(run, tiny(), splits=load(tiny().data))
    (run / PREDICTIONS_FILE).unlink()
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"test_error": 1.25}))
    assert main(["evaluate", str(run), "--predictions"]) == 2
    assert "the run recorded 1.2500 %" in capsys.readouterr().err
    for words in (["--data", "digits"], ["--part", "train"]):
        assert main(["evaluate", str(run), "--predictions", *words]) == 2
        assert "--predictions keeps those of a run's own test set" in capsys.readouterr().err
    assert main(["evaluate", str(run / "weights.safetensors"), "--data", "digits", "--predictions"]) == 2
    assert not (run / PREDICTIONS_FILE).exists()
