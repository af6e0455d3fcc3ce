"""The command line: help, listings, and a run from training to prediction."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kilolayer import __version__
from kilolayer.__main__ import main
from kilolayer.cli.command_line import COMMANDS, command_flags, unbox_error
from kilolayer.cli.options import RECIPE_NAMES
from kilolayer.networks import Network
from kilolayer.training import RECIPES
from kilolayer.units import ARRANGEMENTS
from kilolayer.values import from_json

TINY = ("--epochs", "1", "--subset", "128", "--threads", "1", "--precision", "fp32", "--no-tensorboard")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run that is done."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", *TINY, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def digit(tmp_path: Path) -> Path:
    path = tmp_path / "digit.png"
    Image.fromarray((np.arange(400).reshape(20, 20) % 256).astype(np.uint8)).save(path)
    return path


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["models", "resnet18"], ["recipes"]])
def test_what_only_tells_does_without_torch(words: list[str]) -> None:
    code = (
        "import sys, kilolayer.__main__ as program\n"
        f"status = program.main({words!r})\n"
        "sys.exit(status or 99 * ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 100


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_all_its_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    for flag in command_flags(command):
        assert flag in shown or flag.startswith("--no-")


@pytest.mark.parametrize(
    "command", ["train", "evaluate", "predict", "models", "show", "recipes", "completion"]
)
def test_help_reads_well_in_a_terminal(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines if not line.startswith("usage:")) <= 80
    assert "None" not in "".join(lines)


def test_without_a_command_it_helps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert all(command in capsys.readouterr().out for command in ("train",))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"kilolayer {__version__}\n"


def test_the_recipes_offered_are_all_there_are() -> None:
    assert list(RECIPE_NAMES) == list(RECIPES)


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_every_arrangement_of_the_library_is_one_of_the_command_line_s(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", "resnet20_cifar", "--arrangement", name, "--json"]) == 0
    network = from_json(capsys.readouterr().out, Network)
    assert network.unit.arrangement == ARRANGEMENTS[name]


def test_models_as_json_are_exact(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    models = {model["name"]: model for model in json.loads(capsys.readouterr().out)}
    deep = models["preact_resnet1001_cifar"]
    assert (deep["depth"], deep["parameters"], deep["multiply_adds"]) == (1001, 10_327_706, 1_487_849_984)
    assert (deep["family"], deep["image_size"]) == ("cifar", 32)
    assert deep["paper_error"] == {"value": 4.92, "data": "cifar10", "source": "P2 Table 3"}
    assert models["resnet50"]["family"] == "imagenet"
    assert models["wide_resnet28_10_cifar"]["paper_error"] is None


def test_models_fits_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kilolayer.system.terminal.terminal_size", lambda stream: (80, 25))
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert "10,327,706" in shown


def test_a_model_that_is_not_listed_is_still_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "preact_resnet1199_bottleneck_cifar", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["depth"] == 1199


def test_show_draws_and_describes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawing = tmp_path / "unit.svg"
    assert main(["show", "resnet110_cifar", "--shortcut", "scaled:0.5", "--svg", str(drawing)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("resnet110_cifar: 110 layers, 1,727,962 parameters, 252,887,680 multiply-adds")
    assert "⊕" in shown
    assert "stage3" in shown
    assert "{" not in shown
    assert "--json" in shown
    assert drawing.read_text(encoding="utf-8").lstrip().startswith("<svg")


def test_show_as_json_holds_the_ablation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "resnet110_cifar", "--arrangement", "full_preactivation", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unit"]["arrangement"]["before"] == ["BN", "ReLU"]


def test_recipes_show_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "paper", "paper-v1"]) == 0
    shown = capsys.readouterr().out
    assert "0.01 up to 400" in shown
    assert "momentum" not in shown


def test_train_leaves_a_whole_run(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {"config.json", "metrics.jsonl", "result.json", "weights.safetensors"} <= names
    assert json.loads((run / "config.json").read_text())["data"]["validation"] == 143


def test_a_finished_run_is_not_trained_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "result.json").read_bytes()
    assert main(["train", "--resume", str(run)]) == 0
    assert "is done" in capsys.readouterr().out
    assert main(["train", "--resume", str(run), "--start-over"]) == 2
    assert "is finished; a finished run is not begun anew: choose another --out" in capsys.readouterr().err
    assert (run / "result.json").read_bytes() == before


def test_evaluate_repeats_the_run_s_own_figure(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    result = json.loads((run / "result.json").read_text())
    assert (measured["images"], measured["error"]) == (360, result["test_error"])
    assert sum(map(sum, measured["confusion"])) == 360


def test_evaluate_a_weights_file_on_named_data(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run / "weights.safetensors"), "--data", "digits", "--part", "train"]) == 0
    shown = capsys.readouterr().out
    assert "1,437 train images of digits" in shown
    assert "class" in shown


def test_predict_names_the_likeliest(run: Path, digit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(run), str(digit), str(digit), "--top", "10", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first == second
    chances = [one["probability"] for one in first["classes"]]
    assert chances == sorted(chances, reverse=True)
    assert sum(chances) == pytest.approx(1, abs=1e-4)


def test_tensorboard_gets_the_figures(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = tmp_path / "run"
    words = [word for word in TINY if word != "--no-tensorboard"]
    assert main(["train", *words, "--tensorboard", "--out", str(folder)]) == 0
    events = accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    (point,) = events.Scalars("error/validation")
    assert (point.step, point.value) == (row["iteration"], pytest.approx(row["validation_error"]))


def test_what_tyro_says_in_a_box_becomes_a_line() -> None:
    rows = ("╭─ Value error ──╮", "│ Error parsing --x: │", "│ 'a' is no number. │", "│ ───── │", "│ See … │")
    assert unbox_error("\n".join(rows)) == "--x: 'a' is no number"
