"""Training on a real terminal: the bar, and what is left when it is gone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from terminal import on_terminal

TINY = ["--model", "resnet8_cifar", "--subset", "64", "--batch-size", "32", "--epochs", "2"]
TINY += ["--threads", "1", "--no-tensorboard"]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_training_on_a_terminal(tmp_path: Path, width: int) -> None:
    shown = on_terminal(["train", *TINY, "--out", "run"], folder=tmp_path, width=width)
    assert shown.status == 0, shown.text
    assert "Traceback" not in shown.text
    assert "next        kilolayer evaluate run" in shown.text
    seen = {line.strip() for frame in shown.frames for line in frame}
    assert any(re.match(r"epoch 2/2 .*loss [\d.]+ .*error [\d.]+ %", line) for line in seen)
    assert all(len(line) < width for line in seen if line.startswith("epoch"))
