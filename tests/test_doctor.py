"""doctor: what it says can be pasted anywhere, and its self-test can fail."""

from __future__ import annotations

import getpass
import json
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kilolayer.__main__ import main
from kilolayer.runs import self_test as tested
from kilolayer.training import Trainer


def said(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    assert main(["doctor", *words]) == status
    return capsys.readouterr().out


def leaves(value: object) -> Iterator[str]:
    match value:
        case dict():
            for one in value.values():
                yield from leaves(one)
        case list():
            for one in value:
                yield from leaves(one)
        case _:
            yield str(value)


def test_it_tells_what_matters_and_nothing_private(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "kilolayer.cli.doctor._run_self_tests", lambda: [dict.fromkeys(tested.PROMISES, True)]
    )
    found = json.loads(said(capsys, "--json"))
    assert found["versions and machine"]["torch"] == torch.__version__
    assert found["devices"][0]["native_bf16"] in (True, False)
    assert found["required"]["safetensors"][0].isdigit()
    assert {"matplotlib", "pyarrow"} <= found["optional"].keys()
    assert found["limits"]["disk_free_here"].endswith("GB")
    private = [Path.home(), tmp_path, platform.node(), getpass.getuser(), "/"]
    for text in leaves(found):
        assert not [one for one in private[:3] if str(one) in text]
        assert text != getpass.getuser()
        assert "/" not in text
    assert not list(tmp_path.iterdir())


def test_the_self_test_holds_here(capsys: pytest.CaptureFixture[str]) -> None:
    shown = said(capsys)
    assert shown.count("repeats                  yes") == len(shown.split("steps per second")) - 1 > 0


def only_counts(training: Trainer, tensors: object, counters: dict[str, int]) -> None:
    training.state.iteration = counters["iteration"]


@pytest.mark.parametrize(
    ("place", "fault", "broken"),
    [
        ("torch.manual_seed", lambda seed: None, "repeats"),
        ("kilolayer.training.trainer.Trainer.restore", only_counts, "resumes"),
        ("kilolayer.runs.self_test.train_run", lambda *rest, **named: (), "repeats"),
    ],
)
def test_the_self_test_sees_a_fault(
    place: str,
    fault: object,
    broken: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights begun from chance, a state that is not restored, nothing trained at all."""
    monkeypatch.setattr(place, fault)
    assert json.loads(said(capsys, "--json", status=1))["self-test"][0][broken] is False


def test_what_is_missing_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def version(name: str) -> str:
        if name == "pyarrow":
            raise metadata.PackageNotFoundError
        return "1.0"

    monkeypatch.setattr("kilolayer.runs.environment_report.metadata.version", version)
    monkeypatch.setattr(
        "kilolayer.cli.doctor._run_self_tests", lambda: [dict.fromkeys(tested.PROMISES, True)]
    )
    assert "pyarrow                  missing (parquet)" in said(capsys)
