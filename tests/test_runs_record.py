"""What a run records: its figures by their right names, where they come from, and when it diverges."""

from __future__ import annotations

import getpass
import json
import math
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kilolayer.data import Images, Splits
from kilolayer.report.training_summary import print_training_result
from kilolayer.runs import Run, environment_record, train_run
from kilolayer.runs.start_environment import BITWISE_RELEVANT, current_command
from kilolayer.training import Experiment, NonFinite, Steps, Trainer
from kilolayer.units import BatchNorm
from tiny_runs import HERE, Poll, splits_of, tiny, train, training_of, with_recipe

EPOCH = ["epoch", "iteration", "learning_rate", "train_loss", "train_error"]
CLOCK = ["images_per_second", "seconds"]


def diverging(experiment: Experiment, rate: float = 1e30) -> Experiment:
    return with_recipe(experiment, rate=Steps(rate))


def strict(text: str) -> Any:
    """JSON as its standard has it, which knows neither NaN nor Infinity."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(("held_out", "monitor"), [(0, "test"), (20, "validation")])
def test_a_line_of_figures_for_every_epoch(held_out: int, monitor: str, tmp_path: Path) -> None:
    train(tmp_path / "run", tiny(validation=held_out))
    rows = [strict(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(list(row) == [*EPOCH, f"{monitor}_loss", f"{monitor}_error"] for row in rows)
    assert [(row["epoch"], row["iteration"], row["learning_rate"]) for row in rows] == [
        (1, 3, 0.1), (2, 6, 0.01), (3, 7, 0.01),
    ]  # fmt: skip
    clock = [strict(line) for line in (tmp_path / "run/timing.jsonl").read_text().splitlines()]
    assert all(row["seconds"] > 0 and row["images_per_second"] > 0 for row in clock)
    assert Run(tmp_path / "run").metrics() == [a | b for a, b in zip(rows, clock, strict=True)]


def test_only_every_nth_epoch_and_the_last_are_evaluated(tmp_path: Path) -> None:
    train(tmp_path / "run", tiny(evaluate_every=2))
    rows = Run(tmp_path / "run").metrics()
    assert ["test_error" in row for row in rows] == [False, True, True]
    assert list(rows[0]) == [*EPOCH, *CLOCK]


def test_the_figures_without_a_validation_split(tmp_path: Path) -> None:
    training = train(tmp_path / "run", tiny())
    result, rows = strict((tmp_path / "run/result.json").read_text()), Run(tmp_path / "run").metrics()
    best = min(rows, key=lambda row: row["test_error"])
    measured = training.evaluate(training.splits.test)
    assert measured is not None
    assert result == {
        "status": "done",
        "data": "digits",
        "test_error": measured.error,
        "test_top5_error": measured.top5_error,
        "test_loss": measured.loss,
        "best_test_error": best["test_error"],
        "best_epoch": best["epoch"],
        "train_seconds": sum(row["seconds"] for row in rows),
        "iterations": 7,
        "epochs": 3,
        "peak_memory_bytes": result["peak_memory_bytes"],
    }
    assert result["test_error"] == rows[-1]["test_error"]
    assert result["peak_memory_bytes"] > 10**7


@pytest.mark.skipif(sys.platform != "linux", reason="counted otherwise elsewhere")
def test_the_peak_is_of_this_process_alone_and_not_of_the_one_that_began_it() -> None:
    code = (
        "import torch; from kilolayer.runs.start_environment import peak_memory_bytes;"
        "from kilolayer.training import DistributedContext;"
        "print(peak_memory_bytes(DistributedContext(torch.device('cpu'))))"
    )
    peaks = []
    for size in (0, 1_500_000_000):
        held = torch.ones(size, dtype=torch.uint8)  # noqa: F841 - alive while the other runs
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] == pytest.approx(peaks[0], rel=0.1)


def test_the_figures_with_a_validation_split(tmp_path: Path) -> None:
    training = train(tmp_path / "run", tiny(validation=20))
    result, rows = strict((tmp_path / "run/result.json").read_text()), Run(tmp_path / "run").metrics()
    best = min(rows, key=lambda row: row["validation_error"])
    assert (result["best_validation_error"], result["best_epoch"]) == (
        best["validation_error"],
        best["epoch"],
    )
    assert "best_test_error" not in result
    last = training.evaluate(training.splits.test)
    training.model.load_state_dict(training.state.best_weights)
    selected = training.evaluate(training.splits.test)
    assert last is not None
    assert selected is not None
    assert result["test_error"] == last.error
    assert result["test_error_selected_on_validation"] == selected.error


def test_the_weights_that_are_kept_are_the_last_ones(tmp_path: Path) -> None:
    training = train(tmp_path / "run", tiny(validation=20))
    kept = Run(tmp_path / "run").weights().model.state_dict()
    assert all(torch.equal(kept[key], value) for key, value in training.model.state_dict().items())


class Counted:
    """Reads a test set, and knows how often and when it did."""

    def __init__(self, splits: Splits) -> None:
        self.read_test = splits.read_test
        self.splits = replace(splits, read_test=self)
        self.read = 0

    def __call__(self) -> Images:
        self.read += 1
        return self.read_test()


def test_the_test_set_is_read_once_and_at_the_end(tmp_path: Path) -> None:
    experiment = tiny(validation=20)
    counted = Counted(splits_of(experiment))
    run = Run.create(tmp_path / "run", experiment)
    training = Trainer(experiment, counted.splits, HERE)
    for step in train_run(run, training):
        assert counted.read == 0, f"step {step.iteration}"
    assert counted.read == 1


def test_a_run_that_is_stopped_has_not_read_the_test_set(tmp_path: Path) -> None:
    experiment = tiny(validation=20)
    counted = Counted(splits_of(experiment))
    train(tmp_path / "run", experiment, Poll(9), counted.splits)
    assert counted.read == 0


def test_on_epoch_hears_each_line_once_it_is_written(tmp_path: Path) -> None:
    run, heard = Run.create(tmp_path / "run", tiny()), []

    def on_epoch(row: dict[str, Any]) -> None:
        assert run.metrics()[-1] == row
        heard.append(row)

    for _ in train_run(run, training_of(tiny()), on_epoch=on_epoch):
        pass
    assert heard == run.metrics()


# What is not finite


def test_a_run_that_diverges_says_so_and_what_to_try(tmp_path: Path) -> None:
    with pytest.raises(NonFinite) as refused:
        train(tmp_path / "run", diverging(tiny()))
    said = str(refused.value)
    assert re.fullmatch(
        r".* is not finite at iteration \d+ \(learning rate 1e\+30; all was finite at iteration 0\); "
        r"try a lower --lr, [^\n]*",
        said,
    )
    result = strict((tmp_path / "run/result.json").read_text())
    assert (result["status"], result["reason"]) == ("diverged", said)
    assert result["iterations"] < 7
    assert not (tmp_path / "run/weights.safetensors").exists()


def finite(run: Run) -> bool:
    checkpoint = run.latest_checkpoint()
    return checkpoint is None or all(bool(value.isfinite().all()) for value in checkpoint.tensors.values())


def poison_bn(training: Trainer, value: float) -> None:
    norm = next(module for module in training.model.modules() if isinstance(module, BatchNorm))
    assert norm.running_var is not None
    norm.running_var.fill_(value)


def poison_momentum(training: Trainer, value: float) -> None:
    next(iter(training.state.optimizer.state.values()))["momentum_buffer"].fill_(value)


def poison_weight(training: Trainer, value: float) -> None:
    with torch.no_grad():
        next(training.model.parameters()).fill_(value)


def poison_classifier(training: Trainer, value: float) -> None:
    training.model.get_parameter("classifier.bias").data.fill_(value)


def harmed(run: Run, training: Trainer, harm: Callable[[Trainer], None], at: int, last: int = -1) -> str:
    """What the run says when it is harmed after step `at`; it is asked to stop after step `last`."""

    def go() -> None:
        for step in train_run(run, training, stop=lambda: training.state.iteration == last):
            if step.iteration == at:
                harm(training)

    with pytest.raises(NonFinite) as refused:
        go()
    result = run.result()
    assert result is not None
    assert (result["status"], result["reason"]) == ("diverged", str(refused.value))
    assert not run.file("weights.safetensors").exists()
    return str(refused.value)


@pytest.mark.parametrize(
    ("poison", "name"),
    [
        (poison_bn, "stem.bn1.running_var"),
        (poison_momentum, "momentum.stem.conv1.weight"),
        (poison_weight, "stem.conv1.weight"),
    ],
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("at", [1, 2])
def test_what_no_loss_shows_is_found_before_it_is_saved(
    poison: Callable[[Trainer, float], None], name: str, value: float, at: int, tmp_path: Path
) -> None:
    """In training BN reads no running averages: the loss stays finite while they are not."""
    run, training = Run.create(tmp_path / "run", tiny()), training_of(tiny())
    said = harmed(run, training, lambda training: poison(training, value), at, last=at)
    assert said.startswith(f"{name} is not finite at iteration {at} ")
    assert finite(run)


@pytest.mark.parametrize(("held_out", "at", "seen"), [(0, 2, 3), (20, 7, 7)])
def test_a_nan_that_only_an_evaluation_shows(held_out: int, at: int, seen: int, tmp_path: Path) -> None:
    """A negative variance is finite, and its root is not a number; the second run sees it at its end."""
    experiment = tiny(validation=held_out)
    run, training = Run.create(tmp_path / "run", experiment), training_of(experiment)
    said = harmed(run, training, lambda training: poison_bn(training, -1e6), at)
    assert said.startswith(f"the test loss is not finite at iteration {seen} ")
    assert len(run.metrics()) == (3 if held_out else 0)


def test_a_loss_that_is_not_finite_ends_the_run_at_that_step(tmp_path: Path) -> None:
    run, training = Run.create(tmp_path / "run", tiny()), training_of(tiny())
    said = harmed(run, training, lambda training: poison_classifier(training, math.nan), 4)
    assert said.startswith("the training loss (and stem.conv1.weight) is not finite at iteration 5 ")
    checkpoint = run.latest_checkpoint()
    assert checkpoint is not None
    assert checkpoint.counters["iteration"] == 3
    assert finite(run)


# On what it was made


def test_the_environment_names_what_a_figure_depends_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/home/someone/bin/kilolayer", "train", "--out", "runs/mine"])
    train(tmp_path / "run", tiny(precision="bf16"), Poll(1))
    train(tmp_path / "run", tiny(precision="bf16"))
    starts = Run(tmp_path / "run").environments()
    assert len(starts) == 2
    for start in starts:
        assert set(BITWISE_RELEVANT) < set(start)
        assert start["torch"] == torch.__version__
        assert (start["threads"], start["precision"], start["processes"]) == (
            torch.get_num_threads(),
            "bf16",
            1,
        )
        assert start["command"] == "kilolayer train --out runs/mine"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", start["date"])


def test_no_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [str(Path.home() / "venv/bin/kilolayer"), "train"])
    train(tmp_path / "run", tiny())
    texts = [path.read_text() for path in (tmp_path / "run").iterdir() if path.suffix in (".json", ".jsonl")]
    words = {word for text in texts for word in re.split(r"[^\w.@-]+", text)}
    assert words.isdisjoint({socket.gethostname(), getpass.getuser()})
    for text in texts:
        assert str(tmp_path) not in text
        assert str(Path.home()) not in text
        assert not re.search(r'"/|[ =]/', text), "an absolute path"


def test_python_m_is_shown_as_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/lib/kilolayer/__main__.py", "models", "--json"])
    assert current_command() == "kilolayer models --json"
    assert environment_record(HERE, "fp32")["command"] == "kilolayer models --json"


def test_a_run_whose_clock_readings_are_lost_is_summed_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "run", tiny())
    run = Run.open(tmp_path / "run")
    run.file("timing.jsonl").write_text('{"epoch": 1, "seconds": "x"}\n')
    print_training_result(run)
    assert "images/s" not in capsys.readouterr().out
