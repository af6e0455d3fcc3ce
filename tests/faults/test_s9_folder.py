"""S9: in a stranger's run folder every name is a link, a pipe or a device; nothing outside changes."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hostile import status

from kilolayer.data import load
from kilolayer.system.opened_folder import OpenedFolder
from tiny_runs import Poll, tiny, train

SECONDS = 60
NAMES = (
    *("config.json", "environment.json", "metrics.jsonl", "timing.jsonl", "result.json", "registration.json"),
    *("weights.safetensors", "predictions.safetensors", ".lock", "checkpoints", "snapshots", "tensorboard"),
    *("checkpoints/000000005-000001.json", "checkpoints/000000005-000001.safetensors"),
)


def link(path: Path, outside: Path) -> None:
    path.symlink_to(
        outside / ("folder" if path.name in ("checkpoints", "snapshots", "tensorboard") else "file")
    )


def dangling_link(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "missing")


def device_link(path: Path, outside: Path) -> None:
    path.symlink_to("/dev/zero")


def hard_link(path: Path, outside: Path) -> None:
    os.link(outside / "file", path)


def pipe(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def folder(path: Path, outside: Path) -> None:
    path.mkdir()


def plain_file(path: Path, outside: Path) -> None:
    path.write_bytes(b"{}")


def unix_socket(path: Path, outside: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


def device(path: Path, outside: Path) -> None:
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero


def endless(path: Path, outside: Path) -> None:
    path.touch()
    os.truncate(path, 2**42)


KINDS = (link, dangling_link, device_link, hard_link, pipe, folder, plain_file, unix_socket, device, endless)
COMMANDS = {
    "resume": ("train", "--threads", "1", "--no-tensorboard", "--resume"),
    "anew": ("train", "--threads", "1", "--no-tensorboard", "--start-over", "--resume"),
    "report": ("report",),
    "evaluate": ("evaluate",),
    "keep": ("evaluate", "--predictions"),
    "analyse": ("analyse", "gradient"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A stopped run, and one that is done."""
    base, splits = tmp_path_factory.mktemp("s9"), load(tiny().data)
    train(base / "stopped", tiny(), stop=Poll(7), splits=splits)
    train(base / "done", tiny(), splits=splits)
    return {False: base / "stopped", True: base / "done"}


@contextmanager
def deadline() -> Iterator[None]:
    def hang(number: int, frame: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outside_of(top: Path) -> dict[str, bytes]:
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}


def holds(
    name: str, kind: Callable[[Path, Path], None], command: str, runs: dict[bool, Path], top: Path
) -> str:
    """What is wrong with a command on such a folder, or "" where all is well."""
    outside, run = top / "outside", top / "run"
    (outside / "folder").mkdir(parents=True)
    for file in ("file", "folder/000000009-000001.json", "folder/000000001.safetensors"):
        (outside / file).write_bytes(b"mine\n" * 100)
    shutil.copytree(runs[command not in ("resume", "anew")], run)
    path = run / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    kind(path, outside)
    before = outside_of(outside)
    with deadline():
        code, _, err = status([*COMMANDS[command], str(run)])
    if outside_of(outside) != before:
        return f"files outside changed; status {code}: {err}"
    if code not in (0, 2) or (code == 2 and (err.count("kilolayer: ") != 1 or "Traceback" in err)):
        return f"status {code}: {err}"
    return ""


def test_no_name_leads_out_of_the_folder(
    runs: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    chosen: Callable[[Sequence[Any]], list[Any]], count: Any,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)  # a socket's name may have a hundred bytes only
    kinds = KINDS if os.geteuid() == 0 else tuple(kind for kind in KINDS if kind is not device)
    cases, bad = chosen([*itertools.product(COMMANDS, kinds, NAMES)]), {}
    for number, (command, kind, name) in enumerate(cases):
        if wrong := holds(name, kind, command, runs, tmp_path / str(number)):
            bad[name, kind.__name__, command] = wrong
        shutil.rmtree(tmp_path / str(number))
    print(bad)
    count("S9", tried=len(cases), held=len(cases) - len(bad), note="the folder")


def test_the_harness_sees_a_seeded_fault(
    runs: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links are followed, and files are written in place."""
    from seeded import in_place

    monkeypatch.setattr(OpenedFolder, "write", OpenedFolder.write)
    in_place()
    assert holds("metrics.jsonl", hard_link, "anew", runs, tmp_path / "1") or holds(
        "timing.jsonl", hard_link, "resume", runs, tmp_path / "2"
    )
