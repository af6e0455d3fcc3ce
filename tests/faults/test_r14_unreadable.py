"""R14: what cannot be read is not damaged, and what is damaged is set aside; nothing good is ever removed."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hostile import status

from kilolayer.data import load
from kilolayer.runs import checkpoints
from kilolayer.system.opened_folder import OpenedFolder
from tiny_runs import Poll, files_in, outcome, tiny, train

NEW, OLD = "000000005-000001", "000000003-000001"
ERRORS = (errno.EIO, errno.EACCES, errno.ESTALE, errno.EPERM, errno.ENODEV, errno.EMFILE)
STATES = tuple(f"checkpoints/{name}.{ending}" for name in (NEW, OLD) for ending in ("json", "safetensors"))
FILES = ("config.json", "environment.json", "metrics.jsonl", "timing.jsonl", *STATES[:2])
Chosen = Callable[[Sequence[Any]], list[Any]]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("r14") / "run"
    train(path, tiny(), stop=Poll(7), splits=load(tiny().data))
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("r14") / "done"
    train(path, tiny(), splits=load(tiny().data))
    return outcome(path)


def content(run: Path) -> dict[str, bytes]:
    return {name: raw for name, raw in files_in(run).items() if name != ".lock"}


def resumed(run: Path, *words: str) -> tuple[int, str]:
    code, _, err = status(["train", "--resume", str(run), "--threads", "1", "--no-tensorboard", *words])
    return code, err


def unreadable(run: Path, name: str, number: int, call: str) -> str:
    """What is wrong with a resume during which one file cannot be opened or read, or "" where all is well."""
    before, open_file, read = content(run), OpenedFolder._open, OpenedFolder.read

    def refuse(folder: OpenedFolder, file: str, *args: Any) -> Any:
        if folder.path / file == run / name:
            with folder._storage_errors("cannot read", file):
                raise OSError(number, os.strerror(number))
        return (open_file if call == "open" else read)(folder, file, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OpenedFolder, "_open" if call == "open" else "read", refuse)
        code, err = resumed(run)
    if code != 2 or os.strerror(number) not in err or str(run / name) not in err or err.count("\n") != 1:
        return f"status {code}: {err}"
    return "" if content(run) == before else "changed"


def test_an_unreadable_file_refuses_and_changes_nothing(
    stopped: Path, done: dict[str, Any], tmp_path: Path, chosen: Chosen, count: Any
) -> None:
    """And once it can be read again, the run goes on to the same bits."""
    cases = chosen([*itertools.product(FILES, ERRORS, ("open", "read"))])
    bad = {}
    for number, (name, error, call) in enumerate(cases):
        run = Path(shutil.copytree(stopped, tmp_path / str(number)))
        wrong = unreadable(run, name, error, call)
        if not wrong and (resumed(run)[0] != 0 or outcome(run) != done):
            wrong = "not identical afterwards"
        if wrong:
            bad[name, error, call] = wrong
    print(bad)
    count("R14", tried=len(cases), held=len(cases) - len(bad), note="read errors")


def half(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


def flipped(raw: bytes) -> bytes:
    return raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:]


HARMS: tuple[Callable[[bytes], bytes] | None, ...] = (
    None,
    half,
    flipped,
    lambda raw: b"",
    lambda raw: raw + b" ",
)


def harmed(run: Path, name: str, harm: Callable[[bytes], bytes] | None) -> None:
    raw = (run / name).read_bytes()
    (run / name).unlink()
    if harm is not None:
        (run / name).write_bytes(harm(raw))


def all_there(before: dict[str, bytes], run: Path) -> bool:
    """Whether every byte of what was passed over is there still, under any name."""
    return set(before.values()) <= set(content(run).values()) | {b""}


def test_what_is_damaged_is_set_aside(
    stopped: Path, done: dict[str, Any], tmp_path: Path, chosen: Chosen, count: Any
) -> None:
    cases, bad = chosen([*itertools.product((*STATES[:2], "metrics.jsonl"), HARMS)]), {}
    for number, (name, harm) in enumerate(cases):
        run = Path(shutil.copytree(stopped, tmp_path / str(number)))
        harmed(run, name, harm)
        before = content(run)
        passed = {file: raw for file, raw in before.items() if NEW in file}
        code, err = resumed(run)
        if name == "metrics.jsonl":
            passed = {file: raw for file, raw in before.items() if file == name}
        if code != 0 or outcome(run) != done or not all_there(passed, run):
            bad[name, harm] = f"status {code}: {err}"
    print(bad)
    count("R14", tried=len(cases), held=len(cases) - len(bad), note="damage that is passed over")


def test_without_a_usable_state_only_your_word_begins_anew(
    stopped: Path, done: dict[str, Any], tmp_path: Path, chosen: Chosen, count: Any
) -> None:
    cases, bad = chosen([*itertools.product(STATES[:2], STATES[2:], HARMS, HARMS)]), {}
    for number, (new, old, first, second) in enumerate(cases):
        run = Path(shutil.copytree(stopped, tmp_path / str(number)))
        harmed(run, new, first)
        harmed(run, old, second)
        before = content(run)
        code, err = resumed(run)
        if code != 2 or "--start-over" not in err or err.count("\n") != 1 or content(run) != before:
            bad[new, old, first, second] = f"status {code}: {err}"
            continue
        states = {file: raw for file, raw in before.items() if "checkpoints" in file or "metrics" in file}
        code, err = resumed(run, "--start-over")
        if code != 0 or outcome(run) != done or not all_there(states, run):
            bad[new, old, first, second] = f"anew: status {code}: {err}"
    print(bad)
    count("R14", tried=len(cases), held=len(cases) - len(bad), note="no usable state")


@pytest.mark.parametrize("fault", ["a read error is damage", "damage is removed", "it begins anew"])
def test_the_harness_sees_seeded_faults(
    fault: str, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    if fault == "a read error is damage":
        real = checkpoints._read

        def read(states: OpenedFolder, name: str, *args: Any) -> Any:
            try:
                return real(states, name, *args)
            except Exception as error:
                raise checkpoints.DamagedCheckpoint(str(error)) from None

        monkeypatch.setattr(checkpoints, "_read", read)
        assert unreadable(run, STATES[1], errno.EIO, "read")
    elif fault == "damage is removed":
        monkeypatch.setattr(OpenedFolder, "set_aside", lambda folder, name: folder.remove(name) or "")
        harmed(run, STATES[1], flipped)
        passed = {name: raw for name, raw in content(run).items() if NEW in name}
        resumed(run)
        assert not all_there(passed, run)
    else:
        monkeypatch.setattr(checkpoints, "_is_first_save_cut_short", lambda names: True)
        harmed(run, STATES[0], None)
        harmed(run, STATES[2], flipped)
        assert resumed(run)[0] == 0
