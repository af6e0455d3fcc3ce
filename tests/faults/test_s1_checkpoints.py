"""S1: a damaged state of ours is never continued from; the one before it is, and that is said."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hostile import refused, status

from kilolayer.data import load
from kilolayer.errors import InputError
from kilolayer.runs import Run, checkpoints, read_weights
from kilolayer.runs.checkpoints import UnusableStates
from tiny_runs import Poll, tiny, train

STATES, WEIGHTS = 1600, 400
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two states, stopped before its end."""
    path = tmp_path_factory.mktemp("s1") / "run"
    train(path, tiny(), stop=Poll(7), splits=load(tiny().data))
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("s1") / "done"
    train(path, tiny(), splits=load(tiny().data))
    return path


def files(run: Path) -> Files:
    return {path.name: path.read_bytes() for path in sorted((run / "checkpoints").iterdir())}


def cut(raw: bytes, rng: random.Random) -> bytes:
    return raw[: rng.randrange(len(raw))]


def flip(raw: bytes, rng: random.Random) -> bytes:
    changed = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        changed[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def zero(raw: bytes, rng: random.Random) -> bytes:
    size = rng.choice((512, 4096))
    at = size * rng.randrange(-(-len(raw) // size))
    return raw[:at] + bytes(len(raw[at : at + size])) + raw[at + size :]


def swell(raw: bytes, rng: random.Random) -> bytes:
    return raw + rng.randbytes(rng.randrange(1, 100))


DAMAGE: tuple[Callable[[bytes, random.Random], bytes], ...] = (cut, flip, flip, zero, swell)


def damaged(raw: bytes, rng: random.Random) -> bytes:
    """The bytes, otherwise than they were."""
    while True:
        found = rng.choice(DAMAGE)(raw, rng)
        if found != raw:
            return found


def swapped(good: Files, rng: random.Random) -> Files:
    """The newest state's files as others: the one before, or each as the other."""
    old_seal, old, seal, new = sorted(good)
    match rng.randrange(6):
        case 0:
            changes = {new: good[old]}
        case 1:
            changes = {seal: good[old_seal]}
        case 2:
            changes = {new: good[old], seal: good[old_seal]}
        case 3:
            changes = {new: good[seal], seal: good[new]}
        case 4:
            changes = {new: good[old], old: good[new], seal: good[old_seal], old_seal: good[seal]}
        case _:
            changes = {seal: b"", new: b""}
    return {**good, **changes}


def put(folder: Path, content: Files) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, raw in content.items():
        (folder / name).write_bytes(raw)


def case(number: int, good: Files) -> tuple[Files, int]:
    """Damaged files, and how many of the two states are still whole."""
    rng = random.Random(number)
    old_seal, old, seal, new = sorted(good)
    if number % 5 == 0:
        content = swapped(good, rng)
        return content, int(content[old] == good[old] and content[old_seal] == good[old_seal])
    victims = [rng.choice((seal, new))] + ([rng.choice((old_seal, old))] if number % 7 == 0 else [])
    return {**good, **{name: damaged(good[name], rng) for name in victims}}, 2 - len(victims)


def holds(number: int, run: Path, good: Files, oldest: str, warnings: list[str]) -> bool:
    content, whole = case(number, good)
    put(run / "checkpoints", content)
    warnings.clear()
    try:
        found = Run(run).latest_checkpoint()
    except UnusableStates as refused:
        return whole == 0 and "none can be used" in str(refused) and files(run) == content
    if len(warnings) != 2 - whole or not all("checkpoints/0" in said for said in warnings):
        return False
    return whole > 0 and found is not None and found.name == oldest


class Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    handler, logger = Heard(), logging.getLogger("kilolayer.runs.checkpoints")
    logger.addHandler(handler)
    yield handler.said
    logger.removeHandler(handler)


def copy_of(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_damaged_states(
    run: Path, tmp_path: Path, warnings: list[str], chosen: Callable[[Sequence[int]], list[int]],
    count: Callable[..., None],
) -> None:  # fmt: skip
    copy, good = copy_of(run, tmp_path), files(run)
    cases = chosen(range(STATES))
    held = [holds(number, copy, good, sorted(good)[0][:-5], warnings) for number in cases]
    count("S1", tried=len(cases), held=sum(held))


def test_damaged_runs_go_on_to_the_same_bits(
    run: Path, done: Path, tmp_path: Path, chosen: Callable[[Sequence[int]], list[int]],
    count: Callable[..., None],
) -> None:  # fmt: skip
    """By the command line: from the older state; where both are damaged, from the beginning at your word."""
    cases, held, good = chosen(range(0, STATES, 20)), 0, files(run)
    for number in cases:
        copy = Path(shutil.copytree(run, tmp_path / str(number)))
        content, whole = case(number, good)
        put(copy / "checkpoints", content)
        words = ["train", "--resume", str(copy), "--threads", "1", "--no-tensorboard"]
        if whole == 0 and status(words)[0] != 2:
            continue
        code, _, _ = status([*words, *(["--start-over"] if whole == 0 else [])])
        kept = {path.name: path.read_bytes() for path in (copy / "checkpoints").iterdir()}
        held += (
            code == 0
            and same_weights(copy, done)
            and all(
                raw in kept.values()
                for name, raw in content.items()
                if name[:9] > sorted(good)[0][:9] or not whole
            )
        )
    count("S1", tried=len(cases), held=held, note="the command line, of the same cases")


def same_weights(one: Path, other: Path) -> bool:
    a, b = (hashlib.sha256((path / "weights.safetensors").read_bytes()).digest() for path in (one, other))
    return a == b


def test_damaged_weights(
    done: Path, tmp_path: Path, chosen: Callable[[Sequence[int]], list[int]], count: Callable[..., None]
) -> None:
    raw, cases, held = (done / "weights.safetensors").read_bytes(), chosen(range(WEIGHTS)), 0
    path = tmp_path / "weights.safetensors"
    for number in cases:
        path.write_bytes(damaged(raw, random.Random(number)))
        try:
            read_weights(path)
        except InputError as error:
            held += str(path) in str(error)
    count("S1", tried=len(cases), held=held, note="weights.safetensors")
    assert refused(["evaluate", str(path), "--data", "digits"], path.name)


@pytest.mark.parametrize("fault", ["no checksum", "no seal of the seal", "names unchecked"])
def test_the_harness_sees_seeded_faults(
    fault: str, run: Path, tmp_path: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, good = copy_of(run, tmp_path), files(run)
    if fault == "no checksum":
        monkeypatch.setattr(checkpoints, "_sha256", lambda content: "")
    elif fault == "no seal of the seal":
        monkeypatch.setattr(
            checkpoints, "_read_manifest", lambda states, name: json.loads(states.read(f"{name}.json", 2**20))
        )
    else:
        monkeypatch.setattr(checkpoints, "_check_name", lambda path, manifest: None)
    outcomes = []
    for number in range(200):
        try:
            outcomes.append(holds(number, copy, good, sorted(good)[0][:-5], warnings))
        except Exception:
            outcomes.append(False)
    assert not all(outcomes)
