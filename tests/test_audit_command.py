"""kilolayer audit: what it prints, its exit status, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kilolayer.__main__ import main
from kilolayer.networks import create_model
from tiny_runs import tiny, train

AUDITED = Path(__file__).parent / "audited"


def test_a_faulty_network_gives_its_faults_and_status_1(capsys):
    assert main(["audit", f"{AUDITED / 'faulty.py'}:PreActResNet18"]) == 1
    shown = capsys.readouterr().out
    assert "full preactivation (P2, Fig. 4 e)" in shown
    assert "fault: no BN-ReLU after the last addition" in shown
    assert shown.strip().endswith("2 faults, 1 deviation, no notes")


def test_a_clean_network_gives_status_0_and_json(capsys):
    assert main(["audit", f"{AUDITED / 'clean.py'}:resnet18", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["clean"] is True
    assert report["content"]["parameters"] == 11_689_512
    assert report["nearest"]["identical"] is True
    assert report["findings"] == []


def test_weights_are_read_without_a_network(tmp_path, capsys):
    path = tmp_path / "preact_resnet110.pt"
    torch.save(create_model("preact_resnet56_bottleneck_cifar").state_dict(), path)
    assert main(["audit", str(path)]) == 1
    shown = capsys.readouterr().out
    assert "calls itself preact_resnet110, but has 56 layers" in shown
    assert "cannot be told from weights: strides" in shown
    assert "not identical" not in shown


def test_a_run_s_folder_stands_for_its_weights(tmp_path, capsys):
    train(tmp_path / "mine", tiny())
    assert main(["audit", str(tmp_path / "mine")]) in (0, 1)
    of_run = capsys.readouterr().out
    assert of_run.startswith("mine (from the shapes of its weights)")
    main(["audit", str(tmp_path / "mine" / "weights.safetensors")])
    assert capsys.readouterr().out.splitlines()[1:] == of_run.splitlines()[1:]


@pytest.mark.parametrize(
    ("subject", "said"),
    [
        ("missing.pt", "missing.pt"),
        ("missing.py:make", "missing.py"),
        ("{here}/own.py", "own.py:CALLABLE"),
        ("{here}/own.py:nothing", "nothing"),
        ("{here}/own.py:number", "not a torch.nn.Module"),
        ("{here}/own.py:failing", "ZeroDivisionError"),
        ("{here}/own.py:texts", "takes no image"),
        ("{here}/broken.py:make", "broken.py"),
        ("{here}/raising.py:make", "KeyError"),
    ],
)
def test_what_cannot_be_audited_is_refused_in_one_line(subject, said, tmp_path, capsys):
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "number = 3\n"
        "def failing():\n    return 1 / 0\n"
        "class Texts(nn.Module):\n    def forward(self, text):\n        return text.upper()\n"
        "def texts():\n    return Texts()\n"
    )
    (tmp_path / "broken.py").write_text("def make(:\n")
    (tmp_path / "raising.py").write_text("raise KeyError('x')\n")
    assert main(["audit", subject.format(here=tmp_path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


def test_image_size_is_checked(capsys):
    assert main(["audit", f"{AUDITED / 'clean.py'}:resnet18", "--image-size", "0"]) == 2
    assert "--image-size is 0" in capsys.readouterr().err
