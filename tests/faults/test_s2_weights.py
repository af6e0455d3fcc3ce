"""S2: a stranger's weights file runs nothing, takes no more memory than its size allows, and fits or not."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path

import gadgets
import pytest
import torch
from hostile import peak, refused, reset_peak, resident, tree, watched
from safetensors.torch import save
from torch import Tensor, nn

from kilolayer.errors import InputError
from kilolayer.networks import build
from kilolayer.weights import load_weights, match_weights, pickle_scanner, read_state_dict
from tiny_runs import network

State = dict[str, Tensor]
Content = Callable[[Path], bytes]
ROOM = 300_000_000
MUTATIONS = 120


@cache
def good() -> State:
    torch.manual_seed(0)
    return build(network()).state_dict()


@cache
def saved(form: str) -> bytes:
    if form == "safetensors":
        return save(good())
    file = io.BytesIO()
    torch.save(good(), file, _use_new_zipfile_serialization=form == "zip")
    return file.getvalue()


def of(value: object, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(value, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def script() -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), file)
    return file.getvalue()


@cache
def bomb(name: str) -> bytes:
    """A zip archive of some kilobytes that unpacks to 512 MB."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/version", "3\n")
        if name != "data.pkl":
            archive.writestr("archive/data.pkl", gadgets.storage(2**27, old=False))
        with archive.open(f"archive/{name}", "w", force_zip64=True) as member:
            for _ in range(16):
                member.write(bytes(2**25))
    return file.getvalue()


def lying(size: int) -> bytes:
    """A member stored plainly whose directory entry declares more than there is."""
    raw = bytearray(gadgets.zipped(gadgets.anything({}), {"data/0": bytes(8)}))
    at = raw.rindex(b"PK\x01\x02")
    raw[at + 20 : at + 28] = struct.pack("<II", size, size)
    return bytes(raw)


def header(text: str, length: int | None = None) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def huge(shape: str, dtype: str = "F32", offsets: str = "[0,4]") -> bytes:
    return header('{"w":{"dtype":"%s","shape":%s,"data_offsets":%s}}' % (dtype, shape, offsets)) + bytes(4)  # noqa: UP031


def calls() -> Iterator[tuple[str, Content]]:
    for number, call in enumerate(gadgets.CALLS):
        for place, container in list(gadgets.CONTAINERS.items())[:: 1 + number % 2]:
            how = gadgets.HOWS[(number + len(place)) % len(gadgets.HOWS)]
            hide = gadgets.within if number % 3 else lambda body: body

            def content(canary: Path, call=call, how=how, hide=hide, container=container) -> bytes:
                return container(hide(gadgets.calling(call, str(canary), how)))

            yield f"{'.'.join(call)} by {how}, {place}", content


def bombs() -> Iterator[tuple[str, bytes | Callable[[], bytes]]]:
    for old in (False, True):
        wrap = gadgets.legacy if old else gadgets.zipped
        yield "bytearray", wrap(b"\x80\x02cbuiltins\nbytearray\n(" + gadgets.long(10**12) + b"tR.")
        for elements in (10**7, 2**31 - 1, 10**12, 2**62):
            yield f"{elements} elements", wrap(gadgets.storage(elements, old=old))
            yield f"{elements} doubles", wrap(gadgets.storage(elements, old=old, kind="DoubleStorage"))
        yield "expanded", of({"w": torch.zeros(1).expand(10**10)}, not old)
        yield "expanded often", of({str(i): torch.zeros(1).expand(10**6) for i in range(5000)}, not old)
    yield "a pickle that unpacks", partial(bomb, "data.pkl")
    yield "a storage that unpacks", partial(bomb, "data/0")
    yield "one that lies", lying(2**31)
    yield "and more", lying(2**32 - 2)
    yield "nested", gadgets.zipped(b"\x80\x02" + b"]" * 10**6 + b"a" * (10**6 - 1) + b".")
    for shape in ("[1000000000000]", "[4294967296,4294967296,4294967296]", "[18446744073709551615,2]"):
        yield f"shape {shape}", huge(shape)
    yield "offsets", huge("[1]", offsets="[0,99999999999]")
    yield "a long header", header("{", 2**62)
    yield "a header of everything", header("{", 2**63 + 5)


def others() -> Iterator[tuple[str, bytes]]:
    for old in (False, True):
        yield "a whole module", of(nn.Linear(2, 2), not old)
        yield "a whole network", of(build(network()), not old)
        yield "an optimiser", of(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1).state_dict(), not old)
        yield "sparse", of({"w": torch.eye(3).to_sparse()}, not old)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield "sparse rows", of({"w": torch.eye(3).to_sparse_csr()}, not old)
        yield "meta", of({"w": torch.zeros(3, device="meta")}, not old)
        yield "complex", of({"w": torch.zeros(3, dtype=torch.complex64)}, not old)
        yield "a number", of({"w": 3.0, "v": torch.zeros(1)}, not old)
        yield "a name that is none", of({3: torch.zeros(1)}, not old)
        yield "a list", of([torch.zeros(1)], not old)
        yield "a tensor", of(torch.zeros(1), not old)
        yield "nothing", of({}, not old)
        yield "None", of(None, not old)
        yield "too deep", of({"model": {"model": {"model": {"model": {"w": torch.zeros(1)}}}}}, not old)
        yield "shadowed methods", (gadgets.legacy if old else gadgets.zipped)(shadowed())
        yield (
            "prefixes that collide",
            of({"module.a": torch.zeros(1), "module._orig_mod.a": torch.zeros(1)}, not old),
        )
    yield "float8", of({"w": torch.zeros(3, dtype=torch.float8_e4m3fn)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield "quantised", of({"w": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)})
    yield "float8 safetensors", save({"w": torch.zeros(3).to(torch.float8_e4m3fn)})
    yield "TorchScript", script()
    for start in (
        b"",
        b"x",
        b"\x80\x02",
        b"PK\x03\x04",
        b"\x89HDF\r\n",
        b"GGUF",
        b"\x1f\x8b\x08",
        b"\xff" * 40,
    ):
        yield f"{start!r}", start
        yield f"{start!r} and more", start + bytes(1000)
    yield "another zip", gadgets.zipped(b"", {"a": b"b"}).replace(b"data.pkl", b"dota.pkl")
    yield "two pickles", two_pickles()


def shadowed() -> bytes:
    """An OrderedDict whose methods the file has replaced by numbers."""
    state = b"".join(gadgets.text(name) + b"K\x01" for name in ("items", "keys", "values", "get", "__len__"))
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + gadgets.text("a") + b"K\x03u}(" + state + b"ub."


def two_pickles() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for folder in ("a", "b"):
            archive.writestr(f"{folder}/data.pkl", gadgets.anything({}))
    return file.getvalue()


def unfit() -> Iterator[tuple[str, bytes]]:
    """Sound files of tensors that are not, or not all, the network's."""
    state = good()
    for form in (partial(of, zipped=True), partial(of, zipped=False), save):
        yield "another network", form({f"layer{key}": value.clone() for key, value in state.items()})
        yield "prefixed otherwise", form({f"backbone.{key}": value.clone() for key, value in state.items()})
        yield "one missing", form({k: v.clone() for k, v in state.items() if k != "classifier.bias"})
        yield "one more", form({**{k: v.clone() for k, v in state.items()}, "w": torch.zeros(1)})
        yield (
            "one shape",
            form({**{k: v.clone() for k, v in state.items()}, "classifier.bias": torch.zeros(3)}),
        )
        yield (
            "a scalar",
            form({**{k: v.clone() for k, v in state.items()}, "classifier.bias": torch.zeros(())}),
        )
        yield (
            "whole numbers",
            form({key: torch.zeros_like(value, dtype=torch.int64) for key, value in state.items()}),
        )
        yield "not finite", form({key: torch.full_like(value, torch.nan) for key, value in state.items()})


def is_refused(path: Path) -> bool:
    """In one line that begins with the path, by an `InputError`; anything else is a fault of ours."""
    try:
        load_weights(build(network()), read_state_dict(path))
    except InputError as error:
        text = str(error)
        return "\n" not in text and (
            "matched" in text or "not finite" in text or text.startswith(f"'{path}'") or str(path) in text
        )
    return False


def all_cases() -> list[tuple[str, Content]]:
    plain = [*bombs(), *others(), *unfit()]
    return [*calls(), *((name, lambda canary, raw=raw: made(raw)) for name, raw in plain)]


def made(raw: bytes | Callable[[], bytes]) -> bytes:
    """Large ones are made only when their turn comes."""
    return raw if isinstance(raw, bytes) else raw()


def holds(content: Content, folder: Path) -> bool:
    canary, place = folder / "canary", folder / "file"
    canary.mkdir(parents=True)
    place.mkdir()
    path = gadgets.write(place / "w.pt", content(canary / "ran"))
    before, base = tree(folder), resident()
    reset_peak()
    with watched() as seen:
        held = is_refused(path)
    return held and tree(folder) == before and not seen and peak() - base < ROOM


def test_foreign_files(
    tmp_path: Path,
    chosen: Callable[[Sequence[object]], list[tuple[str, Content]]],
    count: Callable[..., None],
) -> None:
    cases = chosen(every := all_cases())
    for _, content in every[:8]:  # whatever is imported late
        is_refused(gadgets.write(tmp_path / "first", content(tmp_path / "ran")))
    assert not (tmp_path / "ran").exists()
    failed = [name for i, (name, content) in enumerate(cases) if not holds(content, tmp_path / str(i))]
    count("S2", tried=len(cases), held=len(cases) - len(failed), note=", ".join(failed))


def test_every_gadget_works_where_pickles_are_opened(tmp_path: Path) -> None:
    """A harness of gadgets that do nothing would prove nothing."""
    import pickle

    for number, how in enumerate(("REDUCE", "STACK_GLOBAL", "NEWOBJ", "OBJ", "INST")[:2]):
        target = tmp_path / str(number)
        with watched() as seen:
            pickle.loads(gadgets.calling(("os", "system"), f"mkdir {target}", how))  # noqa: S301 - that is the point
        assert target.exists()
        assert "os.system" in seen


def mutated(number: int) -> bytes:
    rng = random.Random(number)
    raw = bytearray(saved(("zip", "legacy", "safetensors")[number % 3]))
    for _ in range(rng.choice((1, 3, 20))):
        # Most of a file is numbers; what steers the reading stands at its ends.
        at = rng.randrange(len(raw)) if rng.random() < 0.3 else rng.randrange(-2500, 2500) % len(raw)
        raw[at] = rng.randrange(256)
    return bytes(raw[: rng.randrange(len(raw))] if number % 10 == 0 else raw)


def test_mutated_files(
    tmp_path: Path, chosen: Callable[[Sequence[int]], list[int]], count: Callable[..., None]
) -> None:
    """Whatever happened to a sound file: it gives tensors or is refused, and nothing else."""
    cases, held = chosen(range(MUTATIONS)), 0
    for number in cases:
        path = gadgets.write(tmp_path / "w.pt", mutated(number))
        reset_peak()
        base = resident()
        try:
            with watched() as seen:
                found = read_state_dict(path)
            held += all(isinstance(value, Tensor) for value in found.values()) and not seen
        except InputError as error:
            held += "\n" not in str(error) and peak() - base < ROOM
    count("S2", tried=len(cases), held=held, note="mutated")


def test_an_import_says_how_much_matched(
    tmp_path: Path, chosen: Callable[[Sequence[object]], list[tuple[str, bytes]]], count: Callable[..., None]
) -> None:
    """By the command line: start from the file, and measure it. Nothing is written."""
    cases, held = [*unfit(), *list(others())[::4], *list(bombs())[::4]], 0
    due = chosen(cases)
    for _, raw in due:
        path = gadgets.write(tmp_path / "w.pt", made(raw))
        out = tmp_path / "run"
        named = ("--model", "preact_resnet8_cifar", "--data", "digits")
        begun = refused(["train", "--init", str(path), *named, "--out", str(out), "--no-tensorboard"], "w.pt")
        held += begun and not out.exists() and refused(["evaluate", str(path), *named], "w.pt")
    count("S2", tried=len(due), held=held, note="the command line")


def test_prefixed_files_of_ours_match_whole(tmp_path: Path) -> None:
    for prefix in ("module.", "_orig_mod.", "module._orig_mod."):
        path = gadgets.write(
            tmp_path / "w.pt", of({f"{prefix}{key}": value for key, value in good().items()})
        )
        found = match_weights(build(network()), read_state_dict(path))
        assert str(found) == f"matched {len(good())} of {len(good())} tensors"


@pytest.mark.parametrize("fault", ["weights_only off", "no look at the opcodes", "sizes unchecked"])
def test_the_harness_sees_seeded_faults(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_refused(gadgets.write(tmp_path / "first", saved("zip")))
    if fault == "sizes unchecked":
        monkeypatch.setattr(pickle_scanner, "scan_pickle", lambda *rest, **named: None)
        monkeypatch.setattr("kilolayer.weights.state_dicts._check_size", lambda path, state: None)
        assert not holds(lambda canary: of({"w": torch.zeros(1).expand(10**8)}), tmp_path / "a")
        return
    monkeypatch.setattr(pickle_scanner, "scan_pickle", lambda *rest, **named: None)
    if fault == "weights_only off":
        real = torch.load
        monkeypatch.setattr(
            torch, "load", lambda *rest, **named: real(*rest, **{**named, "weights_only": False})
        )
        target = tmp_path / "ran"
        body = gadgets.calling(("posix", "system"), f"mkdir {target}")
        assert not holds(lambda canary: gadgets.zipped(body), tmp_path / "b")
        assert target.exists()
    else:
        bomb = b"\x80\x02cbuiltins\nbytearray\n(" + gadgets.long(4 * 10**8) + b"tR."
        assert not holds(lambda canary: gadgets.zipped(bomb), tmp_path / "c")
