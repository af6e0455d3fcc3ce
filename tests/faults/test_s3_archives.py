"""S3: an archive of a stranger writes nothing outside its folder, and takes no more than its cap."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hostile import peak, reset_peak, resident, status, tree, watched
from small_cifar import archive, binary, member

from kilolayer.data import Data, load
from kilolayer.data.registry import DATASETS
from kilolayer.data.sources import archive as archives
from kilolayer.data.sources import download
from kilolayer.data.sources.cifar_files import CIFAR_FORMATS
from kilolayer.errors import InputError

ROOM = 150_000_000
CAP = 30_000_000
NAME = "cifar-10-binary.tar.gz"
INSIDE = "cifar-10-batches-bin"
OURS = ("os.remove", "os.rmdir", "shutil.rmtree", "exec")  # a temporary folder; dataclasses made by tyro
Route = Callable[[Path, pytest.MonkeyPatch], object]


def names() -> Iterator[str]:
    yield from (".../evil", "....//evil", "%2e%2e/evil", "..%2fevil", "a//../../evil", "/../evil", "\\evil")
    yield from ("con", "nul.txt", "evil:stream", "evil\t", "..\u2215evil", "-rf", "$(id)", "|id")
    for depth in (1, 2, 5, 20):
        yield "../" * depth + "evil"
    yield from ("/evil", "//evil", "/var/evil", "a/../../evil", "./../evil", "..", ".", "a/..", "~/evil")
    yield from ("C:\\evil", "..\\evil", "\\\\host\\share\\evil", "evil\n", "\x1b[2Jevil", "evil ", ".evil")
    yield from (
        "a/" * 200 + "evil",
        "e" * 5000,
        "\u202elive",
        "\udcff".encode("utf-8", "surrogateescape").hex(),
    )
    yield from (
        f"../{INSIDE}/evil",
        f"{INSIDE}/../../evil",
        f"/{INSIDE}/data_batch_1.bin",
        "../data_batch_1.bin",
    )


def links() -> Iterator[list[tuple[tarfile.TarInfo, bytes]]]:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        for target in ("/etc/passwd", "../../../../etc/passwd", "/", "..", ".", "evil", "\udcff"):
            yield [
                member("link", type=kind, linkname=target),
                member("link/evil", b"x"),
                member("link", b"x"),
            ]
            yield [member("data_batch_1.bin", type=kind, linkname=target)]
        yield [
            member("a", type=kind, linkname="b"),
            member("b", type=kind, linkname="a"),
            member("a/evil", b"x"),
        ]
        yield [member(INSIDE, type=kind, linkname="/var"), member(f"{INSIDE}/evil", b"x")]
    for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE, b"Z"):
        for name in ("device", "test_batch.bin"):
            yield [member(name, type=kind, devmajor=1, devminor=3)]
    yield [member("evil", b"x", mode=0o6777, uid=0, gid=0)]
    yield [member("evil", b"x", pax_headers={"path": "../../evil"})]
    yield [member("evil", b"x", pax_headers={"path": "/evil", "linkpath": "/etc", "size": "99999999999"})]
    yield [member("evil", b"x", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.realsize": str(2**40)})]
    yield [member("evil", b"x", pax_headers={"mtime": "nan", "hdrcharset": "BINARY"})]


def sound() -> list[tuple[tarfile.TarInfo, bytes]]:
    return [member(f"{INSIDE}/{name}", content) for name, content in binary().items()]


def bombs() -> Iterator[bytes]:
    zeros = bytes(CAP + 10_000_000)
    yield archive([member("data_batch_1.bin", zeros), *sound()])
    yield archive([*sound(), member("evil", zeros)])
    yield archive([member(f"evil{i}", b"") for i in range(2000)])
    yield archive([member("e" * (CAP + 10), b"")])
    yield archive([member("evil", b"", pax_headers={"comment": "c" * (CAP + 10)})])
    yield gzip.compress(zeros, 1)
    yield gzip.compress(gzip.compress(zeros, 1), 1)
    yield gzip.compress(bytes(512), 1) * 5000
    yield archive([member("data_batch_1.bin", bytes(3073 * 5000)), *sound()])


def odd() -> Iterator[bytes]:
    plain = archive(sound(), "w")
    yield from (
        b"",
        b"\x1f\x8b",
        b"\x1f\x8b\x08" + bytes(20),
        b"PK\x05\x06" + bytes(18),
        bytes(10_240),
        b"x" * 2000,
    )
    yield from (archive(sound())[:-200], archive(sound())[:3000], plain[:5000], plain[:1000])
    yield from (archive(sound(), "w:bz2"), archive(sound(), "w:xz"))
    yield plain[:124] + b"77777777777\0" + plain[136:]
    yield plain[:124] + b"\x80" + b"\xff" * 11 + plain[136:]
    yield plain[:124] + b"-0000000001\0" + plain[136:]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        for info, content in sound():
            zipped.writestr(f"../../{info.name}", content)
    yield file.getvalue()


def cases() -> list[Callable[[], bytes]]:
    extra = [*([member(name, b"x")] for name in names()), *links()]
    found = [lambda one=one: archive([*one, *sound()]) for one in extra]
    found += [lambda one=one: archive([*sound(), *one], "w") for one in extra]
    return [*found, *(lambda raw=raw: raw for raw in (*bombs(), *odd()))]


def by_load(path: Path, patch: pytest.MonkeyPatch) -> object:
    return load(Data(str(path))).test


def by_check(path: Path, patch: pytest.MonkeyPatch) -> object:
    code, _, err = status(["check-data", str(path)])
    assert code in (0, 1) or (code == 2 and err.count("\n") == 1)
    return code


def by_download(path: Path, patch: pytest.MonkeyPatch) -> object:
    """As if it had come from the author's site, with the hash check passed over."""
    raw = path.read_bytes()
    entry = DATASETS["cifar10"]
    assert entry.archive is not None
    described = replace(entry.archive, md5=hashlib.md5(raw, usedforsecurity=False).hexdigest())
    files = CIFAR_FORMATS[0]
    patch.setattr(download, "_save", lambda url, archive: archive.write_bytes(raw))
    home = path.parent / "home"
    return download.download_archive(described, home, (*files.record_sizes, files.meta), files.record_sizes)


ROUTES: tuple[Route, ...] = (by_load, by_check, by_download)


def allowed(name: str) -> bool:
    """What may lie there afterwards: the archive, and behind a download the files that we know."""
    known = {INSIDE, *(f"{INSIDE}/{file}" for file in binary()), f".{INSIDE}.lock"}
    return name in ("place", f"place/{NAME}", "place/home") or name.removeprefix("place/home/") in known


def holds(raw: bytes, route: Route, root: Path, patch: pytest.MonkeyPatch) -> bool:
    place = root / "place"
    place.mkdir(parents=True)
    path = place / NAME
    path.write_bytes(raw)
    reset_peak()
    base = resident()
    try:
        with watched() as seen:
            route(path, patch)
    except InputError as error:
        if "\n" in str(error):
            return False
    # A temporary folder of our own is removed again.
    done = [event for event in seen if event not in OURS]
    links = any(path.is_symlink() for path in root.rglob("*"))
    return all(map(allowed, tree(root))) and not links and not done and peak() - base < ROOM


@pytest.fixture
def capped(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A smaller cap, so that bombs are quickly made; the cap's place is what is tested."""
    monkeypatch.setattr(archives, "MOST_BYTES", CAP)
    return monkeypatch


def test_archives(
    tmp_path: Path, capped: pytest.MonkeyPatch, chosen: Callable[[Sequence[object]], list[int]],
    count: Callable[..., None],
) -> None:  # fmt: skip
    every = cases()
    by_load(sound_file(tmp_path), capped)
    due = chosen(range(len(every)))
    failed = [i for i in due if not holds(every[i](), ROUTES[(i + i // 3) % 3], tmp_path / str(i), capped)]
    count("S3", tried=len(due), held=len(due) - len(failed), note=", ".join(map(str, failed)))


def sound_file(folder: Path) -> Path:
    path = folder / NAME
    path.write_bytes(archive(sound()))
    return path


def test_a_sound_archive_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nothing would be shown by refusing everything."""
    path = sound_file(tmp_path)
    assert len(load(Data(str(path))).train) == 100
    assert (by_download(path, monkeypatch) / "test_batch.bin").stat().st_size == 20 * 3073


def test_the_cap_as_it_is(tmp_path: Path) -> None:
    assert 185_000_000 < archives.MOST_BYTES <= 2**30


@pytest.mark.parametrize("fault", ["extracted without a filter", "no cap"])
def test_the_harness_sees_seeded_faults(fault: str, tmp_path: Path, capped: pytest.MonkeyPatch) -> None:
    def extracted(path: Path, patch: pytest.MonkeyPatch) -> None:
        (path.parent / "home").mkdir()
        with tarfile.open(path) as tar:
            tar.extractall(path.parent / "home", filter="fully_trusted")  # noqa: S202 - the fault

    if fault == "no cap":
        capped.setattr(archives, "MOST_BYTES", 2**40)
        raw = archive([member("data_batch_1.bin", bytes(200_000_000)), *sound()])
        assert not holds(raw, by_load, tmp_path / "x", capped)
    else:
        assert not holds(archive([member("../../evil", b"x"), *sound()]), extracted, tmp_path / "x", capped)
        assert (tmp_path / "x/evil").exists()
