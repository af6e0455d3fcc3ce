"""R12: runs of older formats go on to the same end; those of newer ones are refused, and stay as they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from harness import Ended, Lab

from kilolayer.runs import Run
from kilolayer.runs.checkpoints import FORMAT, _manifest_bytes
from kilolayer.runs.start_environment import environment_differences

FIXTURES = Path(__file__).with_name("fixtures")
CLOCK = ("images_per_second", "seconds")


def figures(run: Run) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in run.metrics()]


def resumed(lab: Lab, run: Path) -> Ended:
    return lab.run("train", "--resume", str(run), "--no-tensorboard", "--device", "cpu", "--threads", "1")


@pytest.mark.parametrize("number", range(1, FORMAT + 1))
def test_every_format_there_was_goes_on(number: int, lab: Lab, tmp_path: Path, count: Any) -> None:
    old, anew = Run(tmp_path / "old"), Run(tmp_path / "anew")
    copytree(FIXTURES / f"format-{number}", old.path)
    made_here = not environment_differences(old.environments(), _here(lab, old, anew))
    assert old.latest_checkpoint() is not None
    assert resumed(lab, old.path).status == 0
    weights = [run.weights().model.state_dict() for run in (old, anew)]
    near = all(torch.allclose(weights[0][key], value, atol=1e-3) for key, value in weights[1].items())
    same = [hashlib.sha256(run.file("weights.safetensors").read_bytes()).digest() for run in (old, anew)]
    identical = same[0] == same[1] and figures(old) == figures(anew)
    # Another machine than the fixture's computes other last digits.
    held = identical if made_here else near and len(figures(old)) == len(figures(anew))
    count(
        "R12", tried=1, held=int(held), note=f"format {number}{'' if made_here else ', on another machine'}"
    )


def _here(lab: Lab, old: Run, anew: Run) -> dict[str, Any]:
    """Runs the same experiment from its beginning in `anew`; what it was computed on."""
    anew.path.mkdir()
    anew.file("config.json").write_bytes(old.file("config.json").read_bytes())
    assert resumed(lab, anew.path).status == 0
    return anew.environments()[0]


def newer_environment(run: Path) -> None:
    starts = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps([*starts, {"format": FORMAT + 1}]))


def newer_seal(run: Path) -> None:
    seal = max((run / "checkpoints").glob("*.json"))
    says = json.loads(seal.read_text()) | {"format": FORMAT + 1}
    del says["seal"]
    seal.write_bytes(_manifest_bytes(says))


def unknown_field(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"invented_later": 1}))


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a newer start": (newer_environment, "newer release of kilolayer"),
    "a newer state": (newer_seal, "newer release of kilolayer"),
    "an unknown field": (unknown_field, "invented_later"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_newer_run_is_refused_and_stays_as_it_is(change: str, lab: Lab, tmp_path: Path, count: Any) -> None:
    run = tmp_path / "run"
    copytree(FIXTURES / f"format-{FORMAT}", run)
    make, words = CHANGES[change]
    make(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    ended = resumed(lab, run)
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    print(ended)
    held = ended.status == 2 and words in ended.err and ended.err.count("\n") == 1 and after == before
    count("R12", tried=1, held=int(held), note=change)
