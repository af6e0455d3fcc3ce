"""S9: every field of every JSON file of a run and of a sweep, with values of every other type, in commands.

Nothing here is a list of fields: the files are those of a run and of a registered sweep, and the fields are
those in them and in their record types. A command answers in one line and with exit status 2; or with 0 where
the field plays no part in its answer, or where the value is one that the record allows.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints, is_typeddict

import pytest
from PIL import Image

from kilolayer.__main__ import main
from kilolayer.errors import KilolayerError
from kilolayer.runs import checkpoints, records
from kilolayer.sweep import registration
from kilolayer.sweep.reproduction import Request
from kilolayer.training import Experiment
from kilolayer.values import from_json
from test_registration import Invented, begun, work

TINY = (
    *("--model", "preact_resnet8_cifar", "--subset", "64", "--batch-size", "32", "--epochs", "3"),
    *("--snapshots", "2", "--threads", "1", "--precision", "fp32", "--no-tensorboard"),
)
OWNED = r"\u001b]0;owned\u0007\u001b[2J\u202e\u009b5n"
VALUES = {
    "null": "null",
    "true": "true",
    "whole": "7",
    "negative": "-1",
    "fraction": "1.5",
    "text": '"x"',
    "number as text": '"1"',
    "empty text": '""',
    "escapes": f'"{OWNED}"',
    "half a character": '"\\ud800"',
    "a byte that is no text": '"\\udcff"',
    "list": "[]",
    "list of lists": "[[1], 2]",
    "object": "{}",
    "other object": f'{{"{OWNED}": [1]}}',
    "deep": "[" * 500 + "]" * 500,
    "bottomless": "[" * 100_000,
    "NaN": "NaN",
    "infinite": "-Infinity",
    "too large": "1e999",
    "huge": "1" + "0" * 400,
    "endless": "9" * 5_000,
    "twice": '1, "twice": 1, "twice": 1',
}
"""JSON text in place of a value."""
WHOLE = {
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "list of numbers": b"[1]",
    "object": b"{}",
    "text": f'"{OWNED}"'.encode(),
    "not UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "cut": b'{"status": "do',
    "zeros": bytes(100),
    "deep": b"[" * 100_000,
}
"""Bytes in place of a file."""
CASES = 2_500
"""Of some 100,000; every content is also given to the reader alone."""

COMMANDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "done": (
        ("train", "--resume", "{}"),
        ("report", "{}"),
        ("evaluate", "{}", "--json"),
        ("predict", "{}", "{}/picture.png"),
        ("analyse", "gradient", "{}"),
    ),
    "stopped": (("train", "--resume", "{}", "--no-tensorboard"), ("report", "{}")),
    "sweep": (
        ("reproduce", "--resume", "{}", "--dry-run"),
        ("reproduce", "--list", "--out", "{}", "--json"),
        ("reproduce", "--resume", "{}"),
        ("report", "{}"),
    ),
}
"""What reads the folders; {} is the folder."""

KINDS: dict[str, Any] = {
    "result.json": records.EndedRun,
    "environment.json": list[records.Start],
    "metrics.jsonl": records.MetricsKey,
    "timing.jsonl": records.TimingRow,
    "plan.json": records.SnapshotPlan,
    "config.json": Experiment,
    "sweep.json": Request,
}
"""The types of the files by name; seals of states and registrations are told apart by their folder."""


def kind_of(path: Path) -> Any:
    if path.parent.name == "checkpoints":
        return records.Seal
    if path.name == "registration.json":
        of_run = path.parent.parent.name == "runs"
        return registration.EntryFields if of_run else registration.RegistrationFields
    return KINDS[path.name]


@dataclass(frozen=True)
class Case:
    """A folder, a file in it, what the file holds instead, and the command that reads it."""

    folder: str
    file: str
    change: str
    content: bytes
    command: tuple[str, ...]

    def __str__(self) -> str:
        return f"{' '.join(self.command)}: {self.file}: {self.change}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run that is done, the same run stopped in its last epoch, and a registered sweep of invented runs."""
    root = tmp_path_factory.mktemp("json")
    done, stopped, sweep = (root / name for name in COMMANDS)
    assert main(["train", *TINY, "--out", str(done)]) == 0
    shutil.copytree(done, stopped)
    for name in ("result.json", "weights.safetensors", "predictions.safetensors"):
        (stopped / name).unlink()
    newest = sorted((stopped / "checkpoints").glob("*.json"))[-1]
    newest.unlink()
    newest.with_suffix(".safetensors").unlink()
    Image.new("L", (8, 8), 9).save(done / "picture.png")
    work(*begun(sweep), Invented(sweep))
    return {"done": done, "stopped": stopped, "sweep": sweep}


def json_files(folder: Path) -> Iterator[Path]:
    """The JSON files below a folder; of the runs of a sweep, those of the first."""
    files = sorted(path for path in folder.rglob("*.json*") if path.name != "findings.json")
    first = min((path.parent for path in files if path.parent.parent.name == "runs"), default=None)
    return (path for path in files if path.parent.parent.name != "runs" or path.parent == first)


def field_paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The paths of all values in a JSON value, its own first; of a list those of its first item."""
    yield path
    items = (
        value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    )
    for key, item in items:
        yield from field_paths(item, (*path, key))


def unnamed_fields(kind: Any, value: Any) -> Iterator[tuple[str | int, ...]]:
    """The fields of a record's type that the file does not have."""
    if is_typeddict(kind) and isinstance(value, dict):
        yield from ((name,) for name in get_type_hints(kind) if name not in value)
    elif get_args(kind) and isinstance(value, list) and value:
        yield from ((0, *path) for path in unnamed_fields(get_args(kind)[0], value[0]))


MARK = "in place of this"


def replaced(value: Any, path: Sequence[str | int]) -> Any:
    """A copy of a JSON value with `MARK` at the path."""
    if not path:
        return MARK
    first, *rest = path
    if isinstance(value, dict):
        return {**value, str(first): replaced(value.get(str(first)), rest)}
    return [replaced(item, rest) if at == first else item for at, item in enumerate(value)]


def resealed(path: Path, content: bytes) -> bytes | None:
    """The file with the checksum of its new content, as a stranger would make it; None where it has none."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if kind_of(path) is records.Seal and isinstance(value, dict):
        return checkpoints._manifest_bytes({key: item for key, item in value.items() if key != "seal"})
    if kind_of(path) is registration.EntryFields and isinstance(value, dict):
        return json.dumps({**value, "sha256": registration._seal(value)}).encode()
    if kind_of(path) is registration.RegistrationFields and isinstance(value, dict):
        entries = value.get("entries")
        if isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries):
            entries = [{**entry, "sha256": registration._seal(entry)} for entry in entries]
            return json.dumps({**value, "entries": entries}).encode()
    return None


def variants(path: Path) -> Iterator[tuple[str, bytes]]:
    """What a file may hold instead, each with a name."""
    content = path.read_bytes()
    yield from WHOLE.items()
    lines = content.splitlines(keepends=True)[-1:] if path.suffix == ".jsonl" else [content]
    value = json.loads(lines[0])
    before = content[: len(content) - len(lines[0])]
    for at in (*field_paths(value), *unnamed_fields(kind_of(path), value)):
        marked = json.dumps(replaced(value, at), indent=None if path.suffix == ".jsonl" else 2)
        for name, text in VALUES.items():
            changed = before + marked.replace(f'"{MARK}"', text).encode() + b"\n"
            title = f"{'.'.join(map(str, at))} is {name}"
            yield title, changed
            if (sealed := resealed(path, changed)) is not None:
                yield f"{title}, sealed again", sealed


def all_cases(folders: dict[str, Path]) -> list[Case]:
    cases = [
        Case(name, str(path.relative_to(folder)), change, content, command)
        for name, folder in folders.items()
        for path in json_files(folder)
        for change, content in variants(path)
        for command in COMMANDS[name]
    ]
    return random.Random(9).sample(cases, CASES)


def answer(command: Sequence[str], folder: Path) -> tuple[int, str, str]:
    """Exit status, standard output and standard error; a traceback counts as standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([word.format(folder) for word in command])
        except BaseException as error:
            return 1, out.getvalue(), f"Traceback: {type(error).__name__}: {error}"
    return status, out.getvalue(), err.getvalue()


def fits(path: Path, content: bytes) -> bool:
    """Whether the file's own type allows the content."""
    kind = kind_of(path)
    try:
        if kind in (Experiment, Request):
            from_json(content, kind)
        elif path.name == "result.json":
            records.read_result(content, path)
        elif path.name == "metrics.jsonl":
            records.read_rows(content, path)
        elif path.name != "timing.jsonl":  # lines that are none are left out
            records.read_record(content, kind, path)
    except KilolayerError:
        return False
    return True


def without_figures(text: str) -> str:
    return re.sub(r"[\d.,:]+", "#", text)


def fault_of(case: Case, folder: Path, usual: dict[tuple[str, tuple[str, ...]], str]) -> str:
    """What is wrong with a command's answer; empty if it holds."""
    status, out, err = answer(case.command, folder)
    if err.startswith("Traceback") or "Traceback" in out + err:
        return f"traceback: {err.splitlines()[-1]}"
    if any(letter in out + err for letter in "\x1b\x07\x9b\u202e"):
        return f"raw escape: {out + err!r}"
    lines = [
        line for line in err.splitlines() if not line.startswith(str(folder))
    ]  # warnings begin with a path
    if status == 2:
        return "" if len(lines) == 1 and lines[0].startswith("kilolayer: ") else f"not one line: {err!r}"
    if status != 0:
        return f"status {status}: {err!r}"
    if (
        kind_of(folder / case.file) is records.Seal and "set aside" in err
    ):  # the state before it is taken (S1)
        return ""
    ignored = without_figures(out) == usual[case.folder, case.command]
    return "" if ignored or fits(folder / case.file, case.content) else f"taken: {out[-300:]!r}"


def test_every_field_of_every_file(
    folders: dict[str, Path],
    tmp_path: Path,
    chosen: Callable[[Sequence[Case]], list[Case]],
    count: Callable[..., None],
) -> None:
    os.environ["NO_COLOR"] = "1"
    usual: dict[tuple[str, tuple[str, ...]], str] = {}
    for name, commands in COMMANDS.items():
        for command in commands:
            copy = tmp_path / name / "usual"
            shutil.copytree(folders[name], copy)
            status, out, err = answer(command, copy)
            assert status == 0, err
            usual[name, command] = without_figures(out)
            shutil.rmtree(copy)
    cases, faults = chosen(all_cases(folders)), []
    for case in cases:
        copy = tmp_path / case.folder / "usual"
        shutil.copytree(folders[case.folder], copy)
        (copy / case.file).write_bytes(case.content)
        if fault := fault_of(case, copy, usual):
            faults.append(f"{case}: {fault}")
        shutil.rmtree(copy)
    print("\n".join(faults))
    count("S9", tried=len(cases), held=len(cases) - len(faults), note="fields of JSON files")


def test_the_reader_answers_every_content(
    folders: dict[str, Path], chosen: Callable[[Sequence[Any]], list[Any]], count: Callable[..., None]
) -> None:
    """A record or one line, whatever a file holds; what it refuses, it says of a line of this file."""
    contents = [
        (path, change, content)
        for folder in folders.values()
        for path in json_files(folder)
        for change, content in variants(path)
    ]
    held, tried = 0, chosen(contents)
    for path, change, content in tried:
        try:
            fits(path, content)
        except Exception as error:
            print(f"{path}: {change}: {type(error).__name__}: {error}")
        else:
            held += 1
    count("S9", tried=len(tried), held=held, note="contents of JSON files, read alone")
