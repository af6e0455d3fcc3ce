"""S10: the cache of native code: planted, foreign, damaged libraries; odd compilers; killed builds."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from kilolayer.kernels import native_build, native_cache
from kilolayer.kernels.native_cache import NativeUnavailable
from kilolayer.system import folders
from tiny_library import ANSWER, TINY, compiler, has_ended, needs_compiler, use_tiny_source

pytestmark = needs_compiler
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
T = TypeVar("T")
Chosen = Callable[[Sequence[T]], list[T]]
Count = Callable[..., None]
SOMEBODY = 1234


class Cache:
    """A cache folder with `TINY` in it, and a library that leaves a mark when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mark = folder, folder / "mark"
        self.native = folder / "cache/kilolayer/native"
        self.library = self.native / f"{native_build.cache_key(TINY)}.so"
        self.good = b""
        self.planted = b""

    def fill(self) -> None:
        """Compiles `TINY` once, and the other library."""
        assert native_build.load_library(TINY).answer() == ANSWER
        self.good = self.library.read_bytes()
        source = self.folder / "planted.c"
        source.write_text(
            "#include <fcntl.h>\n__attribute__((constructor)) void run(void) "
            f'{{ creat("{self.mark}", 0600); }}\nint answer(void) {{ return 0; }}\n'
        )
        subprocess.run(["gcc", "-shared", "-fPIC", source, "-o", source.with_suffix(".so")], check=True)
        self.planted = source.with_suffix(".so").read_bytes()

    def sealed(self, content: bytes, name: str = "") -> bytes:
        """As whoever can write into the folder would seal it."""
        return content + native_cache.SEAL + native_cache._digest(name or self.library.name, content)

    def reset(self) -> None:
        for path in (self.folder / "cache", self.folder / "tmp"):
            if path.is_symlink():
                path.unlink()
            shutil.rmtree(path, ignore_errors=True)
        (self.folder / "tmp").mkdir()
        self.native.mkdir(parents=True)
        self.library.write_bytes(self.good)
        native_cache.warn.cache_clear()

    def fault(self) -> str:
        """What is wrong with the library that is loaded now; "" if nothing."""
        answer = native_build.load_library(TINY).answer()
        if self.mark.exists():
            self.mark.unlink()
            return "the planted library ran"
        if answer != ANSWER:
            return f"the library answers {answer}"
        left = [path.name for path in self.folder.rglob(f"{native_cache.BUILD_PREFIX}*")]
        return f"left: {left}" if left else ""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cache]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.delenv("CXX", raising=False)
    (tmp_path / "tmp").mkdir()
    use_tiny_source(monkeypatch, tmp_path / "source")
    native_build._unusable.clear()
    made = Cache(tmp_path)
    made.fill()
    yield made
    native_build._unusable.clear()


def counted(count: Count, faults: dict[str, str], note: str) -> None:
    count("S10", tried=len(faults), held=sum(not fault for fault in faults.values()), note=note)


def damages(content: bytes) -> list[tuple[str, bytes]]:
    """Truncated, flipped, zeroed, lengthened, exchanged."""
    size = len(content)
    flipped = [
        (f"bit {at}", content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        for at in range(0, size, 97)
    ]
    return [
        *((f"cut to {length}", content[:length]) for length in (*range(0, size, 131), size - 1)),
        *flipped,
        *(
            (f"page {at}", content[:at] + bytes(min(512, size - at)) + content[at + 512 :])
            for at in range(0, size, 512)
        ),
        ("longer", content + b"\0"),
        ("twice", content * 2),
        ("text", b"not a library\n"),
        ("seal alone", native_cache.SEAL),
    ]


def test_damage(cache: Cache, chosen: Chosen[Any], count: Count) -> None:
    """Compiled anew, never a bus error: half a library that is mapped would be one."""
    faults = {}
    for name, content in chosen(damages(cache.good)):
        cache.reset()
        cache.library.write_bytes(content)
        faults[name] = cache.fault() or ("" if cache.library.read_bytes() == cache.good else "not made anew")
    assert not [f"{name}: {fault}" for name, fault in faults.items() if fault]
    counted(count, faults, "damaged libraries")


def test_damage_while_it_is_used(cache: Cache, count: Count) -> None:
    library = native_build.load_library(TINY)
    for content in (b"", cache.good[:4096], bytes(len(cache.good))):
        cache.library.write_bytes(content)
        assert library.answer() == ANSWER
        assert native_build.load_library(TINY).answer() == ANSWER
    count("S10", tried=3, held=3, note="damage between two loads")


def patched(content: bytes, at: int, value: bytes) -> bytes:
    return content[:at] + value + content[at + len(value) :]


def test_foreign_libraries_whose_seal_fits(cache: Cache, count: Count) -> None:
    """Of another architecture, class or C library: the system refuses them, and they are made anew."""
    content = cache.good.rpartition(native_cache.SEAL)[0]
    foreign = {
        "another architecture": patched(content, 18, struct.pack("<H", 183)),
        "32 bits": patched(content, 4, b"\x01"),
        "another byte order": patched(content, 5, b"\x02"),
        "an executable": Path("/bin/sh").read_bytes(),
        "a newer C library": content.replace(b"GLIBC_2.2.5", b"GLIBC_9.9.9"),
        "a text": b"text",
        "cut": content[: len(content) // 2],
        "cut in its first page": content[:1000],
        "empty": b"",
    }
    faults = {}
    for name, library in foreign.items():
        cache.reset()
        cache.library.write_bytes(cache.sealed(library))
        faults[name] = cache.fault()
    cache.reset()
    cache.library.write_bytes(cache.sealed(cache.planted, "answer-0123456789abcdef.so"))
    faults["renamed"] = cache.fault()
    cache.library.write_bytes(cache.planted)
    faults["no seal"] = cache.fault()
    assert not [f"{name}: {fault}" for name, fault in faults.items() if fault]
    counted(count, faults, "foreign libraries")


def test_another_processor_or_system_has_another_file(cache: Cache, monkeypatch, count: Count) -> None:
    keys = {native_build.cache_key(TINY)}
    with monkeypatch.context() as patch:
        patch.setattr(native_build, "cpu_flags", lambda: frozenset({"sse2"}))
        keys.add(native_build.cache_key(TINY))
    with monkeypatch.context() as patch:
        patch.setattr(native_build, "_c_library", lambda: "glibc 9.9")
        keys.add(native_build.cache_key(TINY))
    monkeypatch.setenv("CXX", "g++ -g")
    keys.add(native_build.cache_key(TINY))
    count("S10", tried=4, held=len(keys), note="names of libraries")


def acl(path: Path) -> None:
    """An access control list by which user 1234 may write; it shows as the rights of the group."""
    entries = (
        (0x01, 7, 0xFFFFFFFF),
        (0x02, 7, SOMEBODY),
        (0x04, 5, 0xFFFFFFFF),
        (0x10, 7, 0xFFFFFFFF),
        (0x20, 5, 0xFFFFFFFF),
    )
    packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    with suppress(OSError):  # a file system without such lists
        os.setxattr(path, "system.posix_acl_access", packed)
        path.chmod(path.stat().st_mode | 0o020)


def plants(cache: Cache) -> dict[str, Callable[[], object]]:
    """How somebody else gets a library of theirs, with a fitting seal, to where ours is looked for."""
    library, native = cache.library, cache.native

    def with_file(change: Callable[[Path], object]) -> Callable[[], object]:
        def plant() -> None:
            library.write_bytes(cache.sealed(cache.planted))
            change(library)

        return plant

    def with_folder(folder: Path, change: Callable[[Path], object]) -> Callable[[], object]:
        def plant() -> None:
            library.write_bytes(cache.sealed(cache.planted))
            change(folder)

        return plant

    def linked(path: Path) -> None:
        other = cache.folder / "other"
        shutil.rmtree(other, ignore_errors=True)
        other.mkdir()
        shutil.move(path, other / path.name)
        other.chmod(0o777)
        path.symlink_to(other / path.name)

    def instead(make: Callable[[Path], object]) -> Callable[[], object]:
        def plant() -> None:
            library.unlink()
            make(library)

        return plant

    def listening(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as one, suppress(OSError):
            one.bind(str(path))

    changes: dict[str, Callable[[Path], object]] = {
        "another user's": lambda path: os.chown(path, SOMEBODY, SOMEBODY),
        "another user's, closed": lambda path: (os.chown(path, SOMEBODY, SOMEBODY), path.chmod(0o700)),
        "open to all": lambda path: path.chmod(0o777),
        "open to others alone": lambda path: path.chmod(0o702),
        "open to a group": lambda path: (os.chown(path, 0, SOMEBODY), path.chmod(0o770)),
        "a link into an open folder": linked,
        "a list names a user": acl,
    }
    kinds: dict[str, Callable[[Path], object]] = {
        "FIFO": os.mkfifo,
        "folder": lambda path: path.mkdir(),
        "full folder": lambda path: (path / "x").mkdir(parents=True),
        "loop": lambda path: path.symlink_to(path),
        "link to a device": lambda path: path.symlink_to("/dev/zero"),
        "device": lambda path: os.mknod(path, 0o020600, os.makedev(1, 5)),
        "socket": listening,
        "endless": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 40),
    }
    levels = [native, native.parent, native.parent.parent]
    return {
        **{f"file: {name}": with_file(change) for name, change in changes.items() if "list" not in name},
        **{
            f"{folder.name}: {name}": with_folder(folder, change)
            for folder in levels
            for name, change in changes.items()
        },
        **{f"file: {name}": instead(make) for name, make in kinds.items()},
    }


@needs_root
def test_planted(cache: Cache, chosen: Chosen[Any], count: Count, caplog) -> None:
    """Nothing of another user's runs; where the folder is the fault, one line says what to do."""
    faults = {}
    for name, plant in chosen(list(plants(cache).items())):
        cache.reset()
        caplog.clear()
        plant()
        faults[name] = cache.fault()
        lines = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
        moved = not name.startswith("file: ") or name.endswith((": folder", ": full folder"))
        if "list" not in name and len(lines) != moved:
            faults[name] = faults[name] or f"said {lines}"
    assert not [f"{name}: {fault}" for name, fault in faults.items() if fault]
    counted(count, faults, "planted libraries")


@pytest.mark.parametrize("plant", [os.symlink, os.link], ids=["link", "hard link"])
def test_a_lock_that_somebody_planted_changes_no_other_file(plant, cache: Cache, count: Count) -> None:
    """While the folder was open to them; it is closed now."""
    victim = cache.folder / "victim"
    victim.write_text("precious")
    (cache.native / ".lock").unlink()
    plant(victim, cache.native / ".lock")
    (cache.native / f"{native_cache.BUILD_PREFIX}1").symlink_to(victim)
    cache.library.unlink()
    held = not cache.fault() and victim.read_text() == "precious" and victim.stat().st_nlink == 1
    count("S10", tried=1, held=held, note="planted locks")


@needs_root
def test_the_row_sees_seeded_faults(cache: Cache, monkeypatch) -> None:
    """With a guard taken away, the same plants run."""
    cache.library.write_bytes(cache.sealed(cache.planted))
    cache.native.chmod(0o777)
    with monkeypatch.context() as patch:
        patch.setattr(folders, "_check_trusted", lambda *_, **__: None)
        assert cache.fault() == "the planted library ran"
    cache.reset()
    cache.library.write_bytes(cache.planted + native_cache.SEAL)
    with monkeypatch.context() as patch:
        patch.setattr(native_cache, "_digest", lambda *_: b"")
        assert cache.fault() == "the planted library ran"


@needs_root
def test_no_place_at_all(cache: Cache, count: Count, caplog) -> None:
    cache.native.chmod(0o777)
    (cache.folder / "tmp").chmod(0o777)
    with pytest.raises(NativeUnavailable, match="no folder for compiled kernels can be used"):
        native_build.load_library(TINY)
    (line,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    held = (
        f"chmod go-w {cache.native}" in line and "PyTorch's own layers" in line and "XDG_CACHE_HOME" in line
    )
    count("S10", tried=1, held=held, note="no place")


def in_child(work: Callable[[], object], user: int | None = None) -> str:
    """What goes wrong in a process of its own, of another user."""
    reader, writer = os.pipe()
    if not (child := os.fork()):
        try:
            if user is not None:
                os.setgroups([])
                os.setresgid(user, user, user)
                os.setresuid(user, user, user)
            work()
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as said:
        text = said.read()
    _, status = os.waitpid(child, 0)
    return text or (f"status {status}" if status else "")


@needs_root
def test_a_cache_of_root_s_serves_others(cache: Cache, monkeypatch, count: Count) -> None:
    """As in a container: they can read it, and compile nothing."""
    monkeypatch.setattr(native_build, "_compile", lambda *_: pytest.fail("compiled"))

    def work() -> None:
        assert native_build.load_library(TINY).answer() == ANSWER

    for folder in (cache.folder, *cache.folder.parents):
        if folder.stat().st_mode & 0o055 != 0o055:
            folder.chmod(0o755)
    faults = {str(user): in_child(work, user) for user in (SOMEBODY, 12345, 65534)}
    assert not [fault for fault in faults.values() if fault]
    counted(count, faults, "a cache of root's")


HANG = "sleep 1000"
COMPILERS: dict[str, tuple[str, str]] = {
    "open quote": ('g++ "-O2', "is not a command"),
    "lone quote": ("'", "is not a command"),
    "backslash": ("\\", "is not a command"),
    "empty word": ("''", "is not installed"),
    "not there": ("no-such-g++", "is not installed"),
    "a path that is not there": ("/no/such/g++ -O2", "is not installed"),
    "a folder": ("/etc", "is not installed"),
    "no program": ("/etc/passwd", "is not installed"),
    "another program": ("echo", "cannot compile answer.cpp.*made no library"),
    "a shell": ("sh", "--version"),
    "cat": ("cat", "cannot compile answer.cpp"),
    "true": ("true", "says nothing|made no library"),
    "false": ("false", "ended with status 1"),
    "a flag it does not know": ("g++ --no-such-flag", "ended with status 1|no-such-flag"),
    "an option first": ("-O2", "is not installed"),
    "32 bits": ("g++ -m32", "cannot compile answer.cpp|cannot be loaded"),
    "preprocessed": ("g++ -E", "cannot compile answer.cpp|cannot be loaded"),
    "syntax": ("g++ -fsyntax-only", "cannot compile answer.cpp"),
    "the name of a command": ("$(touch RAN)", "is not installed"),
    "a command behind it": ("g++; touch RAN", "is not installed"),
    "bytes": (os.fsdecode(b"g++ \xff\xfe"), "cannot compile answer.cpp|ended with status"),
}
SCRIPTS: dict[str, tuple[str, str, str]] = {
    "hangs when asked": ("true", HANG, "did not finish within 1 s"),
    "hangs at work": (HANG, "exec echo 1", "answer.cpp.*did not finish within 1 s"),
    "prints without end when asked": ("true", "exec yes", "prints without end"),
    "prints without end at work": ("exec yes error >&2", "exec echo 1", "answer.cpp.*prints without end"),
    "says bytes": (
        "printf 'error: \\377\\033[31m' >&2; exit 1",
        "printf '\\377'; exit 0",
        "answer.cpp.*error: ",
    ),
    "crashes": ("kill -SEGV $$", "exec echo 1", "answer.cpp.*ended with status 139"),
    "is killed for memory": ("kill -KILL $$", "exec echo 1", "answer.cpp.*ended with status 137|illed"),
    "writes half": (
        'while [ "$1" != -o ]; do shift; done; head -c 3000 /bin/sh >"$2"; exit 0',
        "exec echo 1",
        "loaded",
    ),
    "writes nothing": (
        'while [ "$1" != -o ]; do shift; done; : >"$2"; exit 0',
        "exec echo 1",
        "cannot be loaded",
    ),
    "writes a folder": (
        'while [ "$1" != -o ]; do shift; done; mkdir "$2"; exit 0',
        "exec echo 1",
        "made no library|Is a dir",
    ),
}


def refusal(pattern: str) -> str:
    import re

    try:
        native_build.load_library(TINY)
    except NativeUnavailable as error:
        text = str(error)
        held = re.search(pattern, text) and "\n" not in text and ("CXX" in text or "loaded" in text)
        return "" if held else f"said {text!r}"
    return "it compiled"


def test_compilers(cache: Cache, monkeypatch, tmp_path, chosen: Chosen[Any], count: Count) -> None:
    """One line that names $CXX, nothing left lying about and nothing run."""
    monkeypatch.setattr(native_build, "VERSION_SECONDS", 1)
    monkeypatch.setattr(native_build, "COMPILE_SECONDS", 1)
    monkeypatch.chdir(tmp_path)
    given = {name: (words, pattern) for name, (words, pattern) in COMPILERS.items()}
    for number, (name, (step, version, pattern)) in enumerate(SCRIPTS.items()):
        given[name] = (compiler(tmp_path / f"c++ {number}", step, version), pattern)
    faults = {}
    for name, (words, pattern) in chosen(list(given.items())):
        cache.reset()
        cache.library.unlink()
        monkeypatch.setenv("CXX", words)
        faults[name] = refusal(pattern)
        if left := [
            path.name for path in cache.folder.rglob("*") if path.name.startswith(("build-", "cc", "RAN"))
        ]:
            faults[name] = f"left {left}"
    assert not [f"{name}: {fault}" for name, fault in faults.items() if fault]
    counted(count, faults, "compilers")


def test_a_compiler_of_many_words(cache: Cache, monkeypatch, tmp_path, count: Count) -> None:
    for words in ("env g++", "  g++  -O1 ", "'g++'", "g++ '-DA=\"b c\"'", ""):
        monkeypatch.setenv("CXX", words)
        assert native_build.load_library(TINY).answer() == ANSWER
    count("S10", tried=5, held=5, note="compilers of several words")


BUILD = """
import os, sys, tempfile
from pathlib import Path
from kilolayer.kernels import native_build
from kilolayer.system.stopping import interruptible
native_build.SOURCE_FOLDER = Path(sys.argv[1])
with interruptible():
    native_build.load_library(native_build.NativeLibrary("answer"))
"""
GRANDCHILD = "sleep 1000 & echo $! $$ >{0}.new; mv {0}.new {0}; wait"


@pytest.mark.parametrize("moment", ["asked", "at work"])
@pytest.mark.parametrize("how", ["KILL", "TERM", "INT", "HUP"])
def test_a_build_that_is_killed(
    how: str, moment: str, cache: Cache, monkeypatch, tmp_path, count: Count
) -> None:
    """No process of it goes on, and the next start finds nothing of it."""
    cache.library.unlink()
    note = tmp_path / "note"
    step = GRANDCHILD.format(shlex.quote(str(note)))
    # At work a compiler has files of its own in the folder that it is given for them.
    steps = ("true", step) if moment == "asked" else (f"touch $TMPDIR/ccXXXX.s; {step}", "exec echo 1")
    environment = {
        **os.environ,
        "CXX": compiler(tmp_path / "c++", *steps),
        "TMPDIR": str(tmp_path / "tmp"),
    }
    started = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(tmp_path / "source")], env=environment, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not note.exists():
        assert started.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    started.send_signal(getattr(signal, f"SIG{how}"))
    started.communicate(timeout=60)
    assert all(has_ended(int(number)) for number in note.read_text().split())
    left = [path.name for path in tmp_path.rglob("*") if path.name.startswith(("build-", "cc"))]
    assert how == "KILL" or not left
    monkeypatch.setenv("CXX", "")
    assert native_build.load_library(TINY).answer() == ANSWER
    count("S10", tried=1, held=not cache.fault(), note="killed builds")


def test_builds_that_live_are_left_alone(cache: Cache, monkeypatch, tmp_path, count: Count) -> None:
    """Many starts at once: one compiles, the others wait for it and have its library."""
    cache.library.unlink()
    log = tmp_path / "log"
    environment = {
        **os.environ,
        "CXX": compiler(tmp_path / "c++", f"echo compiled >>{log}; sleep 0.3"),
        "TMPDIR": str(tmp_path / "tmp"),
    }
    words = [sys.executable, "-c", BUILD, str(tmp_path / "source")]
    started = [subprocess.Popen(words, env=environment, stderr=subprocess.PIPE) for _ in range(6)]
    ended = [process.communicate(timeout=200)[1] for process in started]
    assert [process.returncode for process in started] == [0] * 6, ended
    assert log.read_text().count("compiled") == 2  # the object, and the library
    assert not list(tmp_path.rglob("build-*"))
    count("S10", tried=6, held=6, note="starts at once")


@needs_root
def test_a_disk_that_is_full(cache: Cache, monkeypatch, tmp_path, count: Count) -> None:
    """The next folder takes it; where that is full too, one line says so."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", small], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no small file system can be made: {mounted.stderr!r}")
    try:
        monkeypatch.setenv("XDG_CACHE_HOME", str(small))
        assert native_build.load_library(TINY).answer() == ANSWER
        assert not [path for path in small.rglob("*") if path.name.startswith("build-")]
        shutil.rmtree(tmp_path / "tmp")
        (tmp_path / "tmp").symlink_to(small)
        with pytest.raises(NativeUnavailable, match="No space left on device"):
            native_build.load_library(TINY)
    finally:
        subprocess.run(["umount", small], check=True)
    count("S10", tried=2, held=2, note="full disks")
