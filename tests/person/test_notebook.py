"""In a notebook: a command behind `!`, and from Python with a bar in the cell."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import QUICK

nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")


def executed(folder: Path, *cells: str) -> list[list[Any]]:
    """The outputs of each cell."""
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    nbclient.NotebookClient(
        notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return [cell.outputs for cell in notebook.cells]


def text_of(outputs: list[Any]) -> str:
    return "".join(output.get("text", "") for output in outputs)


@pytest.mark.slow
def test_commands_behind_an_exclamation_mark(folder: Path, tmp_path: Path) -> None:
    program = f"{sys.executable} -m kilolayer"
    trained, listed, swept = executed(
        tmp_path,
        f"!{program} train {shlex.join(QUICK)} --out run",
        f"!{program} models 'preact*'",
        f"!{program} demo --depths 8 --iterations 2 --out demo",
    )
    assert "Traceback" not in text_of(trained)
    assert "epoch 2/2" in text_of(trained)
    assert "next        kilolayer evaluate run" in text_of(trained)
    assert "10,327,706" in text_of(listed)
    # A cell cannot go up, so the board would be there again and again.
    assert text_of(swept).count("original unit (v1)") <= 6
    assert "\x1b[1A" not in text_of(swept)


@pytest.mark.slow
def test_from_python_in_a_cell(tmp_path: Path) -> None:
    call = f"main(['train', *{list(QUICK)}, '--out', 'run'])"
    (outputs,) = executed(tmp_path, f"from kilolayer.__main__ import main\n{call}")
    assert "Traceback" not in text_of(outputs)
    assert "next        kilolayer evaluate run" in text_of(outputs)
    bars = [output["data"]["text/plain"] for output in outputs if output.get("output_type") == "display_data"]
    assert len(bars) == 1, "one line that is written over"
    assert "epoch 2/2" in bars[0]
    assert "loss" in bars[0]
    assert not any("ipywidgets" in str(output) for output in outputs)
