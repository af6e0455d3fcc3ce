"""S4: CIFAR files of a stranger run nothing, also where no hash was checked; wrong ones are refused."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import gadgets
import pytest
from hostile import refused, tree, watched
from small_cifar import archive, binary, member, python

from kilolayer.data import Data, load
from kilolayer.data.sources import cifar_pickle
from kilolayer.errors import InputError

MUTATIONS = 100
Files = dict[str, bytes]


def hidden(call: gadgets.Call, canary: str, how: str, sound: bytes, place: int) -> bytes:
    """A pickle that calls: alone, beside a sound file's values, before them, or after its end."""
    body = gadgets.calling(call, canary, how)
    match place % 4:
        case 0:
            return body
        case 1:
            return gadgets.within(body)
        case 2:
            return sound[:2] + body[2:-1] + b"0" + sound[2:]
        case _:
            return sound[:-1] + gadgets.text("data") + body[2:-1] + b"s."


def with_gadgets(canary: str) -> Iterator[Files]:
    names = list(python())
    for number, call in enumerate(gadgets.CALLS):
        for step in range(4):
            how = gadgets.HOWS[(number + step) % 6]
            name, good = names[(number + 2 * step) % len(names)], python()
            yield good | {name: hidden(call, canary, how, good[name], number + step)}


def mutated(number: int) -> Files:
    rng, good = random.Random(number), python() if number % 2 else binary()
    name = rng.choice(list(good))
    raw = bytearray(good[name])
    for _ in range(rng.choice((1, 5, 50))):
        at = rng.randrange(min(len(raw), 400)) if rng.random() < 0.7 else rng.randrange(len(raw))
        raw[at] = rng.randrange(256)
    return good | {name: bytes(raw[: rng.randrange(len(raw))] if number % 5 == 0 else raw)}


def put(folder: Path, files: Files, packed: bool) -> Path:
    """A folder of these files, or the author's archive of them."""
    folder.mkdir(parents=True)
    if packed:
        path = folder / "cifar-10-python.tar.gz"
        path.write_bytes(archive(member(f"cifar-10-batches-py/{name}", raw) for name, raw in files.items()))
        return path
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    return folder


def is_refused(place: Path) -> bool:
    try:
        splits = load(Data(str(place)))
        assert len(splits.test) == 20
    except InputError as error:
        return "\n" not in str(error) and str(place) in str(error)
    return False


def test_gadgets(
    tmp_path: Path, chosen: Callable[[Sequence[Files]], list[Files]], count: Callable[..., None]
) -> None:
    canary, places = tmp_path / "canary", tmp_path / "places"
    canary.mkdir()
    assert not is_refused(put(places / "sound", python(), packed=False))
    cases, failed = chosen(list(with_gadgets(str(canary / "ran")))), []
    for i, files in enumerate(cases):
        place = put(places / str(i), files, packed=i % 3 == 0)
        before = tree(tmp_path)
        with watched() as seen:
            held = is_refused(place)
        if not held or seen or tree(tmp_path) != before:
            failed.append(str(i))
        clear(place)
    count("S4", tried=len(cases), held=len(cases) - len(failed), note=", ".join(failed))


def clear(place: Path) -> None:
    for path in (place,) if place.is_file() else place.iterdir():
        path.unlink()


def test_mutated_files(
    tmp_path: Path, chosen: Callable[[Sequence[int]], list[int]], count: Callable[..., None]
) -> None:
    """They give images with labels in range, or are refused; nothing else comes of them."""
    cases, held = chosen(range(MUTATIONS)), 0
    for number in cases:
        place = put(tmp_path / str(number), mutated(number), packed=False)
        try:
            with watched() as seen:
                splits = load(Data(str(place)))
                labels = splits.train.labels
                held += (
                    not seen and int(labels.min()) >= 0 and int(labels.max()) < 10 and len(splits.test) > 0
                )
        except InputError as error:
            held += "\n" not in str(error)
    count("S4", tried=len(cases), held=held, note="mutated")


def test_the_command_line_refuses_them(tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    for i, files in enumerate(list(with_gadgets(str(canary)))[::60]):
        place = put(tmp_path / str(i), files, packed=False)
        assert refused(["train", "--data", str(place), "--out", str(tmp_path / "run")], str(i))
        assert not canary.exists()
        assert not (tmp_path / "run").exists()


def test_the_harness_sees_a_seeded_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR unpickled, as everywhere else."""
    import pickle

    def opened(raw: bytes, where: str) -> object:
        return pickle.loads(raw)  # noqa: S301 - the fault

    monkeypatch.setattr(cifar_pickle, "_values", opened)
    files = python() | {"data_batch_1": gadgets.calling(("posix", "system"), f"mkdir {tmp_path / 'ran'}")}
    place = put(tmp_path / "x", files, packed=False)
    with watched(), pytest.raises(AttributeError):  # what os.system returns is no dictionary
        load(Data(str(place)))
    assert (tmp_path / "ran").exists()
