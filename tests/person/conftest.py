"""What the commands of these tests are pointed at: a tiny run, a picture, weights; made once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kilolayer.__main__ import main

TINY = ("--model", "preact_resnet8_cifar", "--subset", "64", "--batch-size", "32", "--epochs", "2")
QUICK = (*TINY, "--threads", "1", "--precision", "fp32", "--no-tensorboard")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with runs/tiny, digit.png and net.py."""
    folder = tmp_path_factory.mktemp("person")
    assert main(["train", *QUICK, "--out", str(folder / "runs" / "tiny")]) == 0
    pixels = (np.arange(400).reshape(20, 20) % 256).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "digit.png")
    (folder / "net.py").write_text(
        "from kilolayer import create_model\nmake = create_model('resnet8_cifar')\n"
    )
    return folder
