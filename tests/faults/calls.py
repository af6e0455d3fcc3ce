"""The calls that a run makes to last, as faults.c recorded them, and what a power cut leaves of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

SEAL = re.compile(r".*/checkpoints/(\d{9})-\d{6}\.json")
Tree = dict[str, bytes | None]
"""Files by their paths; a folder is None."""


@dataclass(frozen=True)
class Call:
    what: str
    path: str
    other: str = ""
    at: int = 0
    content: bytes = b""


def read(trace: Path) -> list[Call]:
    """The calls in their order."""
    calls, rest = [], trace.read_bytes()
    while rest:
        head, _, rest = rest.partition(b"\n")
        what, path, other, at, length = head.decode().split("\t")
        calls.append(Call(what, path, other, int(at), rest[: int(length)]))
        rest = rest[int(length) :]
    return calls


def acknowledged(calls: Sequence[Call], number: int) -> int:
    """The last step whose state was reported as saved when call `number` came, or would have come.

    That is when its seal has its name, and the folder is synchronised, should the program do so at all.
    """
    lasting = 0
    for at, call in enumerate(calls[:number]):
        seal = SEAL.fullmatch(call.other) if call.what == "rename" else None
        follows = calls[at + 1] if seal and at + 1 < len(calls) else call
        if seal and (follows.what != "fsync" or at + 1 < number):
            lasting = int(seal[1])
    return lasting


@dataclass
class File:
    """A file's content now, and what of it a power cut cannot take."""

    now: bytes = b""
    lasting: bytes = b""

    def write(self, at: int, content: bytes) -> None:
        self.now = self.now[:at].ljust(at, b"\0") + content + self.now[at + len(content) :]

    def zeroed(self) -> bytes:
        """The length has reached the disk, what came since has not."""
        return self.lasting[: len(self.now)].ljust(len(self.now), b"\0")

    def half(self) -> bytes:
        """Of what came since, half has."""
        return self.now[: (len(self.lasting) + len(self.now) + 1) // 2]


Entry = File | None
Change = tuple[str, str, Entry]


@dataclass
class Disk:
    """Names and contents, each now and lasting. A name lasts once its folder is synchronised."""

    top: str
    now: dict[str, Entry] = field(default_factory=dict)
    lasting: dict[str, Entry] = field(default_factory=dict)
    pending: list[tuple[Change, ...]] = field(default_factory=list)

    @classmethod
    def holding(cls, top: Path, tree: Tree) -> Disk:
        """A disk on which the folder `top` and all of `tree` last."""
        names: dict[str, Entry] = {
            path: None if content is None else File(content, content) for path, content in tree.items()
        }
        return cls(str(top), dict(names), dict(names))

    def do(self, call: Call) -> None:
        match call.what:
            case "create":
                self._name(call.path, File())
            case "mkdir":
                self._name(call.path, None)
            case "write":
                self._file(call.path).write(call.at, call.content)
            case "truncate":
                file = self._file(call.path)
                file.now = file.now[: call.at]
            case "rename":
                self.now[call.other] = entry = self.now.pop(call.path)
                # File systems take both names at once.
                self.pending.append((("name", call.other, entry), ("drop", call.path, None)))
            case "unlink":
                del self.now[call.path]
                self.pending.append((("drop", call.path, None),))
            case "fsync":
                self._synchronise(call.path)

    def _name(self, path: str, entry: Entry) -> None:
        self.now[path] = entry
        self.pending.append((("name", path, entry),))

    def _file(self, path: str) -> File:
        file = self.now[path]
        assert file is not None
        return file

    def _synchronise(self, path: str) -> None:
        file = self.now.get(path)
        if file is not None:
            file.lasting = file.now
            return
        self.lasting = _applied(self.lasting, [one for one in self.pending if _folder(one[0][1]) == path])
        self.pending = [one for one in self.pending if _folder(one[0][1]) != path]

    def after_power_cut(self) -> Iterator[tuple[str, Tree]]:
        """What can be found afterwards, by what was kept of that which was not synchronised yet."""
        yield "nothing", self._tree(self.lasting, _lasting)
        yield "data, no names", self._tree(self.lasting, _now)
        yield "names, no data", self._tree(self.now, _lasting)
        yield "names, zeros for data", self._tree(self.now, File.zeroed)
        yield "names, half of the data", self._tree(self.now, File.half)
        yield "all", self._tree(self.now, _now)
        for number in range(1, len(self.pending)):
            first, last = self.pending[:number], self.pending[number:]
            yield f"the first {number} names", self._tree(_applied(self.lasting, first), _lasting)
            yield f"all but {number} names", self._tree(_applied(self.lasting, last), _lasting)

    def _tree(self, names: dict[str, Entry], content: Callable[[File], bytes]) -> Tree:
        """Without what lies in folders whose own name is lost."""
        kept: Tree = {}
        for path in sorted(names, key=len):
            if _folder(path) == self.top or _folder(path) in kept:
                file = names[path]
                kept[path] = None if file is None else content(file)
        return kept


def _applied(names: dict[str, Entry], changes: Sequence[tuple[Change, ...]]) -> dict[str, Entry]:
    after = dict(names)
    for what, path, entry in chain.from_iterable(changes):
        if what == "name":
            after[path] = entry
        else:
            after.pop(path, None)
    return after


def _now(file: File) -> bytes:
    return file.now


def _lasting(file: File) -> bytes:
    return file.lasting


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def found(folder: Path) -> Tree:
    """A folder as it is, its own name too."""
    paths = [folder, *sorted(folder.rglob("*"))]
    return {str(path): None if path.is_dir() else path.read_bytes() for path in paths}


def lay_out(tree: Tree, source: Path, target: Path) -> None:
    """Makes `target` what `tree` says of `source`."""
    target.mkdir(parents=True)
    for name in sorted(tree, key=len):
        path, content = target / Path(name).relative_to(source), tree[name]
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)
