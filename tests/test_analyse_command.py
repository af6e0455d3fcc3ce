"""kilolayer analyse: what it is pointed at, what it writes, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kilolayer.__main__ import main
from kilolayer.measure.analyses import ANALYSES
from kilolayer.measure.layer_responses import measure_layer_responses
from kilolayer.units import extensions

BLOCKS = Path(__file__).with_name("foreign_networks.py")
NETWORK = "preact_resnet8_cifar"
SMALL = ("--batch-size", "8")
OURS = ("decomposition", "gradient", "shortcut", "responses")


def results(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    assert main(["analyse", *words, *SMALL, "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    words = ["--model", NETWORK, "--subset", "64", "--epochs", "2", "--batch-size", "32", "--snapshots", "3"]
    assert main(["train", *words, "--out", str(folder), "--no-tensorboard"]) == 0
    return folder


SCRATCH = """
from dataclasses import dataclass

from kilolayer.chart import Chart, Series


@dataclass(frozen=True)
class Loudness:
    network: str
    largest: float

    def charts(self):
        series = Series("x", (1.0,), (self.largest,))
        return (Chart("loudness", "Loudness", "max |x|", "unit", "largest", (series,)),)

    def summary(self):
        return (("largest element", f"{self.largest:.3g}"),)

    def finding(self):
        return f"the largest element is {self.largest:.3g}"


def loudness_of(given):
    return Loudness(given.name, float(given.x.abs().max()))
"""


REGISTER = """
import sys
from kilolayer.measure import ANALYSES, AnalysisEntry

ANALYSES["loudness"] = AnalysisEntry("How loud are the images?", "nowhere", "loudness_scratch:loudness_of")

from kilolayer.__main__ import main

sys.exit(main(sys.argv[1:]))
"""


def test_an_analysis_of_ones_own_is_a_module_and_a_row(tmp_path: Path) -> None:
    """The command's words, text, JSON, SVG and HTML follow from its row and its values."""
    pytest.importorskip("matplotlib")
    (tmp_path / "loudness_scratch.py").write_text(SCRATCH)
    words = ["analyse", "loudness", NETWORK, *SMALL, "--out", "out", "--html", "page.html"]
    done = subprocess.run(
        [sys.executable, "-c", REGISTER, *words], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert "the largest element is" in done.stdout
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["loudness-loudness.svg", "loudness.json"]
    (record,) = json.loads((tmp_path / "out" / "loudness.json").read_text())["results"]
    assert record["analysis"] == "loudness"
    assert record["largest"] > 0
    assert "Loudness" in (tmp_path / "page.html").read_text()


def test_the_registry_says_what_each_analysis_is_and_imports_none() -> None:
    code = "import sys, kilolayer.measure.analyses; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    for name, entry in ANALYSES.items():
        module, _, function = entry.function.partition(":")
        assert callable(getattr(import_module(module), function)), name
        assert entry.question.endswith("?")
        assert entry.source


@pytest.mark.parametrize(("network", "predicted"), [("resnet8_cifar", False), (NETWORK, True)])
def test_where_nothing_is_predicted_no_column_says_so(
    network: str, predicted: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eq. 4's shares are predicted where Eq. 4 holds, which it does not behind a ReLU."""
    assert main(["analyse", "decomposition", network, *SMALL]) == 0
    shown = capsys.readouterr().out
    assert ("* predicted" in shown) == predicted
    assert ("no prediction" in shown) != predicted


@pytest.fixture
def without_rules(tmp_path: Path) -> Iterator[str]:
    """A unit without BN and ReLU, whose layer has no mean-field rule."""
    before = dict(extensions._loaded_origins)
    (tmp_path / "plain.py").write_text(
        "from dataclasses import dataclass\n"
        "from torch import nn\n"
        "from kilolayer.units import Activation, Arrangement, CustomLayer\n"
        "def tanh(channels): return nn.Tanh()\n"
        "@dataclass(frozen=True)\n"
        "class T(Activation):\n"
        "    normalises = True\n"
        "    def layer(self, channels): return CustomLayer(tanh, channels)\n"
        "TANH = Arrangement(before=(T(),), between=(T(),), f=())\n"
    )
    yield f"{tmp_path / 'plain.py'}:TANH"
    for name in set(extensions._loaded_origins) - set(before):
        del extensions._loaded_origins[name], sys.modules[name]


def test_a_figure_of_a_layer_that_the_network_lacks_is_left_out(
    without_rules: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyse", "responses", "resnet8_cifar", "--unit", without_rules, *SMALL]) == 0
    shown = capsys.readouterr()
    assert "BN's input" not in shown.out
    assert "no mean-field prediction" not in shown.err  # nothing of it would be shown
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Tanh())
    found = measure_layer_responses(model, torch.randn(2, 3, 8, 8))
    assert found.summary() == (("3×3 layers", "0"),)
    assert found.finding() == "no layer is 3×3; the network has no ReLU"
    assert found.tracked_metrics() == ()
    assert "nan" not in " ".join(chart.note for chart in found.charts())


def test_paths_without_a_rule_have_no_prediction_and_no_star(
    without_rules: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The binomial distribution beside them is no prediction of theory."""
    assert main(["analyse", "paths", "resnet8_cifar", "--unit", without_rules, *SMALL]) == 0
    shown = capsys.readouterr()
    assert "no mean-field prediction for resnet8_cifar: theory has no rule for the layer tanh" in shown.err
    assert "share of paths, C(L, k) / 2^L" in shown.out
    assert "*" not in shown.out
    assert "no prediction" in shown.out


def test_the_parabola_of_a_landscape_is_no_prediction(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyse", "landscape", NETWORK, *SMALL]) == 0
    shown = capsys.readouterr().out
    assert "parabola of slope and curvature at θ" in shown
    assert "*" not in shown


def test_a_foreign_network_has_no_predicted_column(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyse", "initialisation", f"{BLOCKS}:preactivation", "--units", "layer?.*", *SMALL]) == 0
    shown = capsys.readouterr().out
    assert "no prediction" in shown
    assert "* predicted" not in shown


@pytest.mark.parametrize("what", OURS)
def test_networks_stand_side_by_side(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyse", what, NETWORK, "resnet8_cifar", *SMALL]) == 0
    shown = capsys.readouterr().out
    assert NETWORK in shown
    assert "resnet8_cifar" in shown


def test_figures_repeat_and_follow_the_seed(capsys: pytest.CaptureFixture[str]) -> None:
    first = results(capsys, "gradient", NETWORK)
    assert first == results(capsys, "gradient", NETWORK)
    assert first != results(capsys, "gradient", NETWORK, "--seed", "1")


def test_a_run_is_followed_over_its_snapshots(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = results(capsys, "decomposition", str(run))
    assert [one.get("iteration") for one in found] == [0, 2, 4, None]
    assert found[-1]["names"] == ["elements that f sets to 0", "residual of Eq. 4"]
    assert found[-1]["iterations"] == [0, 2, 4]


def test_a_weights_file_is_the_trained_network(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = results(capsys, "responses", str(run / "weights.safetensors"), "--data", "digits")
    last = results(capsys, "responses", str(run))[-2]
    mine, theirs = ([layer["name"] for layer in one["layers"]] for one in (found[0], last))
    assert mine == theirs
    assert mine


def test_units_may_be_ablated(capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = results(capsys, "shortcut", NETWORK, "--shortcut", "scaled:0.9")
    assert [unit["predicted"] for unit in found["units"]] == [0.9, None, None]


def test_a_module_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = results(capsys, "gradient", f"{BLOCKS}:preactivation", "--units", "layer?.*")
    assert [unit["name"] for unit in found["units"]] == ["layer1.0", "layer1.1", "layer2.0", "layer2.1"]
    assert found["network"] == "preactivation"


def test_results_and_figures_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "out"
    words = ["analyse", "gradient", NETWORK, "resnet8_cifar", "--out", str(folder)]
    assert main([*words, "--html", str(tmp_path / "page.html"), *SMALL]) == 0
    assert f"page        {tmp_path / 'page.html'}" in capsys.readouterr().out
    written = sorted(path.name for path in folder.iterdir())
    assert written == ["gradient-left.svg", "gradient-terms.svg", "gradient.json"]
    record = json.loads((folder / "gradient.json").read_text())
    assert {"command", "torch", "processor", "date"} <= set(record["environment"])
    assert len(record["results"]) == 2
    assert NETWORK in (folder / "gradient-terms.svg").read_text()
    assert NETWORK in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing", NETWORK], "nothing"),
        (["gradient"], "name a network, a run, a weights file, or FILE.py:CALLABLE"),
        (
            ["gradient", NETWORK, NETWORK],
            "is named twice, and --unit and the like hold for both; to see two units",
        ),
        (["gradient", "resnet9_cifar"], "depth 9 is not"),
        (["gradient", NETWORK, "--batch-size", "0"], "--batch-size is 0"),
        (["gradient", NETWORK, "--batch-size", "5000"], "but there are 1,437 training images"),
        (["gradient", NETWORK, "--seeds", "0"], "--seeds is 0"),
        (["gradient", "nowhere.safetensors"], "nowhere.safetensors: no such file or folder"),
        (["gradient", "nowhere.py:net"], "nowhere.py: no such file or folder"),
        (["gradient", f"{BLOCKS}:nothing"], "has no 'nothing'"),
        (["gradient", f"{BLOCKS}:names_of"], "names_of is called without arguments, but: missing"),
        (["gradient", f"{BLOCKS}:UNITS"], "returns tuple, not a torch.nn.Module"),
        (["gradient", f"{BLOCKS}:original"], "ForeignResNet has no residual units of Kilolayer's"),
        (["gradient", f"{BLOCKS}:original", "--units", "layer9"], "no module 'layer9'"),
    ],
)
def test_what_cannot_be_used_is_told_on_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyse", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
