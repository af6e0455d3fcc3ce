"""A mutation pass: one small change at a time in a copy of src, and whether a test notices it.

    python benchmarks/mutations.py map [TEST FILE …]           # once: which test runs which line
    python benchmarks/mutations.py run [--each 24] [--seed 0] [--rooms units,networks] [--limit 40]
    python benchmarks/mutations.py again [--limit 300]          # survivors, with every test of the line
    python benchmarks/mutations.py try FILE 'OLD' 'NEW' [TEST …]

`map` needs `pip install coverage` and runs the quick suite once, in one process. `run` draws `--each` mutants
a room, the same ones for the same seed and source, and writes results/mutations.json after each. A mutant
runs in a forked process that has PyTorch imported already, with the tests of its line, until one fails. A
reason that you write into the file for a survivor stays there when the same mutant is run again.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCE = REPOSITORY / "src" / "kilolayer"
RESULTS = REPOSITORY / "results" / "mutations.json"
MAP = Path(os.environ.get("KILOLAYER_LINE_MAP", Path(tempfile.gettempdir()) / "kilolayer-line-map.json"))
ROOMS = (
    "units", "networks", "training", "runs", "data", "kernels",
    "measure", "theory", "statistics", "papers", "audit", "sweep",
)  # fmt: skip
TESTS_AT_ONCE, FILES_AT_ONCE = 60, 10
"""A file of tests takes its time to import; `again` asks those that are left out."""
OPERATORS: dict[type[ast.AST], tuple[str, ...]] = {
    ast.Add: ("-",), ast.Sub: ("+",), ast.Mult: ("/",), ast.Div: ("*",), ast.FloorDiv: ("/",),
    ast.Mod: ("//",), ast.Pow: ("*",), ast.BitOr: ("&",), ast.BitAnd: ("|",),
    ast.Lt: ("<=", ">="), ast.LtE: ("<", ">"), ast.Gt: (">=", "<="), ast.GtE: (">", "<"),
    ast.Eq: ("!=",), ast.NotEq: ("==",), ast.In: ("not in",), ast.NotIn: ("in",),
    ast.Is: ("is not",), ast.IsNot: ("is",),
}  # fmt: skip
SIGNS = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**",
    ast.BitOr: "|", ast.BitAnd: "&", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==",
    ast.NotEq: "!=", ast.In: "in", ast.NotIn: "not in", ast.Is: "is", ast.IsNot: "is not",
}  # fmt: skip
OPPOSITES = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutant:
    """One change: the bytes from `start` to `end` of `file` become `after`."""

    file: str
    line: int
    kind: str
    before: str
    after: str
    start: int
    end: int
    inside: bool
    """Whether the line stands in a function; the others run once, at import."""

    @property
    def room(self) -> str:
        return self.file.split("/")[0].removesuffix(".py")

    @property
    def key(self) -> tuple[str, ...]:
        """The mutant without its line number, which moves."""
        return self.file, self.kind, self.before, self.after, self.context

    @property
    def context(self) -> str:
        return (SOURCE / self.file).read_text(encoding="utf-8").splitlines()[self.line - 1].strip()

    def text(self, source: bytes) -> bytes:
        return source[: self.start] + self.after.encode() + source[self.end :]


class Mutator:
    """Every mutant of one file, in the order of the source."""

    def __init__(self, file: str) -> None:
        self.file, self.source = file, (SOURCE / file).read_bytes()
        self.lines = [0]
        for line in self.source.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line))
        self.random = random.Random(file)
        self.found: list[Mutant] = []

    def mutants(self) -> list[Mutant]:
        self._visit(ast.parse(self.source), inside=False)
        return self.found

    def _place(self, node: Any) -> tuple[int, int]:
        first = self.lines[node.lineno - 1] + node.col_offset
        return first, self.lines[node.end_lineno - 1] + node.end_col_offset

    def _add(
        self, node: Any, kind: str, after: str, inside: bool, place: tuple[int, int] | None = None
    ) -> None:
        start, end = place or self._place(node)
        before = self.source[start:end].decode()
        if before != after:
            line = self.source.count(b"\n", 0, start) + 1
            self.found.append(Mutant(self.file, line, kind, before, after, start, end, inside))

    def _visit(self, node: ast.AST, inside: bool) -> None:
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")) | ast.Import() | ast.ImportFrom():
                return
            case ast.Assign(targets=[ast.Name(id="__all__" | "_HOMES")]) | ast.JoinedStr() | ast.Raise():
                if isinstance(node, ast.Raise):
                    self._add(node, "statement removed", "pass", inside)
                return  # what a message says is another test's matter
            case ast.Expr(value=ast.Constant()):
                return  # a docstring
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                for part in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
                    self._visit(part, inside)
                for part in node.body:
                    self._visit(part, True)
                return
            case ast.ClassDef():
                for part in node.body:
                    self._visit(part, inside)
                return
            case ast.AnnAssign():
                if node.value:
                    self._visit(node.value, inside)
                return
            case ast.Assert() | ast.keyword(arg="strict" | "slots" | "frozen" | "flush" | "encoding"):
                return  # guards, and what no figure depends on
        self._mutate(node, inside)
        for child in ast.iter_child_nodes(node):
            self._visit(child, inside)

    def _mutate(self, node: ast.AST, inside: bool) -> None:
        match node:
            case ast.Constant(value=bool()):
                self._add(node, "constant", str(not node.value), inside)
            case ast.Constant(value=int()):
                step = 1 if node.value == 0 else self.random.choice((-1, 1))
                self._add(node, "number", str(node.value + step), inside)
            case ast.Constant(value=float()):
                self._add(node, "number", repr(node.value * self.random.choice((0.5, 1.5)) or 1.0), inside)
            case ast.Constant(value=str()) if node.value:
                # A part of a text in several lines has no place of its own.
                if self.source[self._place(node)[0] : self._place(node)[1]].count(b'"') == 2:
                    self._add(node, "string", json.dumps(f"{node.value}_", ensure_ascii=False), inside)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                self._operator(node, left, op, right, "arithmetic", inside)
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in OPERATORS:
                self._operator(node, left, op, right, "comparison", inside)
            case ast.BoolOp(values=[left, right, *_]):
                sign = "and" if isinstance(node.op, ast.And) else "or"
                self._between(left, right, sign, "or" if sign == "and" else "and", "and/or", inside)
            case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
                self._add(node, "sign or not", self._source(operand), inside)
            case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
                self._add(test, "condition", f"not ({self._source(test)})", inside)
            case ast.Call(func=ast.Name(id=name)) if name in OPPOSITES:
                self._add(node.func, "opposite function", OPPOSITES[name], inside)
            case ast.Call(args=[first, second, *_]) if not isinstance(first, ast.Starred | ast.GeneratorExp):
                if not isinstance(second, ast.Starred):
                    place = self._place(first)[0], self._place(second)[1]
                    between = self.source[self._place(first)[1] : self._place(second)[0]].decode()
                    text = f"{self._source(second)}{between}{self._source(first)}"
                    self._add(node, "arguments swapped", text, inside, place)
            case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Continue() | ast.Break():
                self._add(node, "statement removed", "pass", inside)
            case ast.For(iter=iterable) | ast.comprehension(iter=iterable):
                self._add(iterable, "first left out", f"list({self._source(iterable)})[1:]", inside)
        for name in ("body", "orelse"):
            block = getattr(node, name, None)
            if isinstance(block, list) and block and isinstance(block[-1], ast.Return) and inside:
                self._add(block[-1], "early return removed", "pass", inside)
        if isinstance(node, ast.comprehension) and node.ifs:
            self._add(node.ifs[0], "condition", "True", inside)

    def _operator(
        self, node: ast.AST, left: ast.AST, op: ast.AST, right: ast.AST, kind: str, inside: bool
    ) -> None:
        after = self.random.choice(OPERATORS[type(op)])
        self._between(left, right, SIGNS[type(op)], after, kind, inside)

    def _between(self, left: ast.AST, right: ast.AST, sign: str, after: str, kind: str, inside: bool) -> None:
        first, last = self._place(left)[1], self._place(right)[0]
        at = self.source.find(sign.encode(), first, last)
        if at >= 0:
            self._add(left, kind, after, inside, (at, at + len(sign)))

    def _source(self, node: ast.AST) -> str:
        start, end = self._place(node)
        return self.source[start:end].decode()


def files_of(room: str) -> list[str]:
    place = SOURCE / room
    names = [path.relative_to(SOURCE).as_posix() for path in sorted(place.rglob("*.py"))]
    return [name for name in names if not name.startswith("kernels/gpu/")]  # tested on a GPU


def sample(room: str, count: int, seed: int) -> list[Mutant]:
    """`count` mutants of a room: a kind at random, then a place at random, each at most once."""
    draw = random.Random(f"{room} {seed}")
    by_kind: dict[str, list[Mutant]] = {}
    for file in files_of(room):
        for mutant in Mutator(file).mutants():
            by_kind.setdefault(mutant.kind, []).append(mutant)
    chosen: list[Mutant] = []
    while len(chosen) < count and by_kind:
        kind = draw.choice(sorted(by_kind))
        mutant = by_kind[kind].pop(draw.randrange(len(by_kind[kind])))
        if _compiles(mutant):
            chosen.append(mutant)
        by_kind = {name: left for name, left in by_kind.items() if left}
    return chosen


def _compiles(mutant: Mutant) -> bool:
    try:
        compile(mutant.text((SOURCE / mutant.file).read_bytes()), mutant.file, "exec")
    except SyntaxError:
        return False
    return True


# Which test runs which line


class LineRecorder:
    """A pytest plugin that notes the lines of src that each test runs, and its seconds."""

    def __init__(self) -> None:
        import coverage

        self.coverage = coverage.Coverage(data_file=None, source=[str(SOURCE)], messages=False)
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()
        self.coverage.start()

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.failed.add(report.nodeid)

    def pytest_runtest_logstart(self, nodeid: str, location: Any) -> None:
        self.coverage.switch_context(nodeid)

    def write(self) -> None:
        self.coverage.stop()
        data, tests = self.coverage.get_data(), sorted(set(self.seconds) - self.failed)
        index = {name: i for i, name in enumerate(tests)}
        lines = {
            Path(file).relative_to(SOURCE).as_posix(): {
                str(line): sorted(index[name] for name in names if name in index)
                for line, names in data.contexts_by_lineno(file).items()
            }
            for file in data.measured_files()
        }
        seconds = [round(self.seconds[name], 3) for name in tests]
        MAP.write_text(json.dumps({"tests": tests, "seconds": seconds, "lines": lines}), encoding="utf-8")


class LineMap:
    """The tests of a mutant's line, the nearest and quickest first."""

    def __init__(self) -> None:
        found = json.loads(MAP.read_text(encoding="utf-8"))
        self.tests, self.lines = found["tests"], found["lines"]
        self.seconds = dict(zip(self.tests, found["seconds"], strict=True))

    def tests_of(self, mutant: Mutant, limit: float, *, everything: bool = False) -> tuple[list[str], int]:
        """The tests to run within `limit` seconds, and the number of tests that run the line."""
        by_line = self.lines.get(mutant.file, {})
        names: set[int] = set(by_line.get(str(mutant.line), ())) if mutant.inside else set()
        if not names:
            names = {name for line in by_line.values() for name in line}
        covering = [self.tests[name] for name in names]
        if not mutant.inside or not covering:
            covering = sorted({*covering, *self._by_words(mutant)})
        return self._in_turn(covering, mutant, limit, everything=everything), len(covering)

    def _by_words(self, mutant: Mutant) -> list[str]:
        """The tests whose file names the module."""
        stem = Path(mutant.file).stem if not mutant.file.endswith("__init__.py") else mutant.room
        files = {test.split("::")[0] for test in self.tests}
        naming = {
            file
            for file in files
            if (path := REPOSITORY / file).exists()
            and re.search(rf"\b{mutant.room}\b.*\b{stem}\b|kilolayer\.{mutant.room} ", path.read_text())
        }
        return [test for test in self.tests if test.split("::")[0] in naming]

    def _in_turn(
        self, covering: list[str], mutant: Mutant, limit: float, *, everything: bool = False
    ) -> list[str]:
        """File by file in turn, so that no file's many cases stand before all others."""
        by_file: dict[str, list[str]] = {}
        for test in sorted(covering, key=lambda test: (self.seconds[test], test)):
            by_file.setdefault(test.split("::")[0], []).append(test)
        words = set(re.split(r"[/_.]", mutant.file)) - {"py"}
        order = sorted(by_file, key=lambda file: (-len(words & set(re.split(r"[/_.]", file))), file))
        most, files = (10**6, 10**6) if everything else (TESTS_AT_ONCE, FILES_AT_ONCE)
        order, chosen, seconds = order[:files], list[str](), 0.0
        for turn in range(max((len(by_file[file]) for file in order), default=0)):
            for file in order:
                if turn < len(by_file[file]):
                    seconds += self.seconds[by_file[file][turn]]
                    if (seconds > limit and chosen) or len(chosen) >= most:
                        return chosen
                    chosen.append(by_file[file][turn])
        return chosen


# One mutant at a time


class Laboratory:
    """A copy of src, and forked processes that test it with one change."""

    def __init__(self, folder: Path) -> None:
        self.source, self.output = folder / "src", folder / "output.txt"
        shutil.copytree(SOURCE.parent, self.source, ignore=shutil.ignore_patterns("__pycache__"))
        os.environ.update(
            PYTHONPATH=str(self.source),
            PYTHONDONTWRITEBYTECODE="1",  # a change within one second would be taken for the old file
            HYPOTHESIS_STORAGE_DIRECTORY=str(folder / "hypothesis"),
            KILOLAYER_TEST="1",
        )
        sys.dont_write_bytecode = True
        sys.path[:0] = [str(self.source), str(REPOSITORY / "tests")]
        os.chdir(REPOSITORY)
        import hypothesis  # noqa: F401 - what every fork needs is imported once
        import numpy  # noqa: F401
        import pytest  # noqa: F401
        import torch

        torch.set_num_threads(1)

    def killer(self, mutant: Mutant, tests: Sequence[str], limit: float) -> str | None:
        """The test that fails with this change, "time limit", or None."""
        path = self.source / "kilolayer" / mutant.file
        whole = path.read_bytes()
        path.write_bytes(mutant.text(whole))
        try:
            return self._failing(tests, limit)
        finally:
            path.write_bytes(whole)

    def _failing(self, tests: Sequence[str], limit: float) -> str | None:
        child = os.fork()
        if child == 0:
            os.setsid()
            self._child(tests)
        ends, status = time.monotonic() + 20 + 4 * limit, 0
        while time.monotonic() < ends:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            time.sleep(0.02)
        else:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "time limit"
        if os.waitstatus_to_exitcode(status) == 0:
            return None
        text = self.output.read_text(encoding="utf-8", errors="replace")
        found = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", text, re.MULTILINE)
        return found[0] if found else f"exit status {os.waitstatus_to_exitcode(status)}"

    def _child(self, tests: Sequence[str]) -> None:
        file = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        import pytest

        words = ["-q", "-x", "--tb=line", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed=0"]
        os._exit(int(pytest.main([*words, *tests])))


def passing(laboratory: Laboratory, lines: LineMap) -> None:
    """Ends where the unchanged source does not pass: then nothing would be told."""
    blank = Mutant("errors.py", 1, "none", "", "", 0, 0, True)
    tests = sorted(lines.tests, key=lambda test: (lines.seconds[test], test))[:20]
    if failed := laboratory.killer(blank, tests, 60):
        sys.exit(f"without a change {failed} fails")


def run(arguments: argparse.Namespace, folder: Path) -> None:
    lines, laboratory = LineMap(), Laboratory(folder)
    passing(laboratory, lines)
    rooms = arguments.rooms.split(",") if arguments.rooms else ROOMS
    mutants = [mutant for room in rooms for mutant in sample(room, arguments.each, arguments.seed)]
    kept = {_key(row): row for row in written()["mutants"]}
    ours = {mutant.key: mutant for mutant in mutants}
    for key, mutant in ours.items():
        known = kept.get(key)
        if known and "exit status" not in (known["killed_by"] or ""):
            continue
        kept[key] = tested(laboratory, lines, mutant, arguments.limit, everything=False) | _reason(known)
        write(list(kept.values()))
        print(line(kept[key]), flush=True)


def again(arguments: argparse.Namespace, folder: Path) -> None:
    """Runs the survivors that the source still has, with more tests; killed ones stay as they are."""
    lines, laboratory = LineMap(), Laboratory(folder)
    rows = written()["mutants"]
    for i, row in enumerate(rows):
        if not row["killed_by"]:
            match = [m for m in Mutator(row["file"]).mutants() if m.key == _key(row)]
            if match:
                rows[i] = tested(laboratory, lines, match[0], arguments.limit, everything=True) | _reason(row)
                write(rows)
                print(line(rows[i]), flush=True)


def tested(
    laboratory: Laboratory, lines: LineMap, mutant: Mutant, limit: float, *, everything: bool
) -> dict[str, Any]:
    began = time.monotonic()
    tests, covering = lines.tests_of(mutant, limit, everything=everything)
    killer = laboratory.killer(mutant, tests, limit) if tests else None
    return {
        **{key: value for key, value in asdict(mutant).items() if key not in ("start", "end", "inside")},
        "context": mutant.context,
        "tests_run": len(tests),
        "tests_of_the_line": covering,
        "killed_by": killer,
        "seconds": round(time.monotonic() - began, 1),
    }


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    return row["file"], row["kind"], row["before"], row["after"], row["context"]


def _reason(row: dict[str, Any] | None) -> dict[str, str]:
    return {"reason": row["reason"]} if row and "reason" in row else {}


def line(row: dict[str, Any]) -> str:
    verdict = f"killed by {row['killed_by']}" if row["killed_by"] else "SURVIVED"
    change = f"{row['before'][:50]!r} → {row['after'][:50]!r}"
    where = f"{row['file']}:{row['line']} {row['kind']}"
    return f"{where}: {change} in {row['context'][:90]!r}: {verdict} ({row['seconds']} s)"


def written() -> dict[str, Any]:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"mutants": []}


def write(rows: list[dict[str, Any]]) -> None:
    import torch

    rooms: dict[str, dict[str, int]] = {}
    for row in rows:
        counts = rooms.setdefault(row["room"] if "room" in row else row["file"].split("/")[0], {})
        verdict = "killed" if row["killed_by"] else row.get("reason", "not looked at").split(":")[0]
        counts[verdict] = counts.get(verdict, 0) + 1
    figures = {
        "command": " ".join(["python", "benchmarks/mutations.py", *sys.argv[1:]]),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "cores": os.cpu_count(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "count": len(rows),
        "killed": sum(bool(row["killed_by"]) for row in rows),
        "rooms": rooms,
        "by_hand": written().get("by_hand", []),
        "mutants": sorted(rows, key=lambda row: (row["file"], row["line"], row["kind"])),
    }
    RESULTS.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def try_one(arguments: argparse.Namespace, folder: Path) -> None:
    """One change by hand: the first OLD in FILE becomes NEW."""
    source = (SOURCE / arguments.file).read_bytes()
    start = source.index(arguments.old.encode())
    number = source.count(b"\n", 0, start) + 1
    end = start + len(arguments.old.encode())
    mutant = Mutant(arguments.file, number, "by hand", arguments.old, arguments.new, start, end, True)
    tests = arguments.tests or LineMap().tests_of(mutant, arguments.limit)[0]
    print(Laboratory(folder).killer(mutant, tests, arguments.limit) or "SURVIVED")


def make_map(files: Sequence[str]) -> None:
    import pytest

    sys.path.insert(0, str(REPOSITORY / "tests"))
    os.chdir(REPOSITORY)
    recorder = LineRecorder()
    pytest.main(["-q", "-p", "no:xdist", "-m", "not slow and not faults", *files], plugins=[recorder])
    recorder.write()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("map").add_argument("files", nargs="*", default=["tests"])
    for name in ("run", "again", "try"):
        commands.add_parser(name).add_argument("--limit", type=float, default=20.0, help="seconds of tests")
    running = commands.choices["run"]
    running.add_argument("--each", type=int, default=24)
    running.add_argument("--seed", type=int, default=0)
    running.add_argument("--rooms", default="")
    for name in ("file", "old", "new"):
        commands.choices["try"].add_argument(name)
    commands.choices["try"].add_argument("tests", nargs="*")
    arguments = parser.parse_args()
    if arguments.command == "map":
        make_map(arguments.files)
        return
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        {"run": run, "again": again, "try": try_one}[arguments.command](arguments, Path(folder))


if __name__ == "__main__":
    main()
