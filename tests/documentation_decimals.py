"""Finds every decimal of the documentation in the result file that its sentence, table or page names.

A decimal is found if a number of such a file, rounded to the decimal's digits, is the decimal, as it is or in
a unit that its block names (`UNITS`). Files are named by a path under results/: the nearest ones count,
those of the sentence before those of the paragraph or table, those before the page's `File` line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import ROUND_HALF_DOWN, ROUND_HALF_UP, Decimal
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
NUMBER = re.compile(r"(?<![\w.,/−-])[+−-]?(\d[\d,]*\.\d+)(?![\d.]*\.\d)(?!\w*[A-Za-z_/])")
FILE = re.compile(r"[`\[](?:results/)?([\w.-]+(?:/[\w.-]+)*)/?[`\]]")
UNITS: dict[str, tuple[Decimal, ...]] = {
    r"%|percent": (Decimal(100),),
    r"\bms\b|ms a": (Decimal(1000),),
    r"minute": (Decimal(1) / 60,),
    r"PFLOP": (Decimal("1e-15"),),
    r"µs": (Decimal(10) ** 6,),
    r"\bGB\b|GiB|billion|10⁹|GFLOP": (Decimal("1e-9"), Decimal(2) ** -30),
    r"\bMB\b|MiB|million": (Decimal("1e-6"), Decimal(2) ** -20),
}
"""Words of a block, and the factors by which they may change a file's numbers."""


@dataclass(frozen=True)
class Found:
    """A decimal, the line it stands in, and the result files that are named nearest to it."""

    page: str
    line: int
    text: str
    decimal: str
    files: tuple[str, ...]
    scales: tuple[Decimal, ...]
    exponent: int = 0
    before: str = ""
    block: str = ""


POWER = re.compile(r"·10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)")
DIGITS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def named_files(text: str) -> tuple[str, ...]:
    """The files under results/ that a text names in code quotes."""
    found = dict.fromkeys(name for name in FILE.findall(text) if (RESULTS / name).exists())
    for name in FILE.findall(text):
        found |= dict.fromkeys(str(p) for p in (f"analyses/{name}",) if (RESULTS / p).is_dir())
    return tuple(found)


def _paragraphs(text: str) -> Iterator[tuple[int, list[str]]]:
    """Blocks of lines between blank lines, with the number of their first line; code blocks left out."""
    block: list[str] = []
    start, fenced = 1, False
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if re.match(r"\s*(```|:::)", line):
            fenced = not fenced if "```" in line else fenced
            line = ""
        elif fenced:
            line = ""
        if line.strip():
            if not block:
                start = number
            block.append(line)
        elif block:
            yield start, block
            block = []


def _sentences(line: str) -> list[str]:
    return re.split(r"(?<=[.;:])\s+(?=[A-Z*`(])", line)


def decimals(page: Path) -> Iterator[Found]:
    """Every decimal outside code, with the files that are named nearest to it."""
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(ROOT).as_posix()
    files_line = "\n".join(line for line in text.splitlines() if re.match(r"- \*\*Files?\*\*: ", line))
    of_page = named_files(files_line) or named_files(text.partition("\n## ")[0])
    of_section: tuple[str, ...] = ()
    before = ""
    for start, block in _paragraphs(text):
        if block[0].startswith("#"):
            of_section = ()
        whole = "\n".join(block)
        own = named_files(whole)
        table = block[0].lstrip().startswith("|")
        words = before + whole if table else whole
        before = whole
        scales = (
            Decimal(1),
            *(scale for word, some in UNITS.items() if re.search(word, words) for scale in some),
        )
        of_block = () if table else own
        for number, line in enumerate(block, start):
            for sentence in _sentences(line) if not table else [line]:
                near = named_files(sentence) or of_block or of_section or of_page
                plain = re.sub(r"`[^`]*`|\]\([^)]*\)|<[^>]*>|https?://\S+", " ", sentence)
                for match in NUMBER.finditer(plain):
                    power = POWER.match(plain, match.end())
                    exponent = int(power.group(1).translate(DIGITS)) if power else 0
                    yield Found(
                        name,
                        number,
                        sentence.strip(),
                        match.group(1),
                        near,
                        scales,
                        exponent,
                        plain[: match.start()],
                        whole,
                    )
        of_section = own if own and not table else of_section


@cache
def numbers(name: str) -> frozenset[Decimal]:
    """Every number in a result file, or in all files of a folder."""
    path = RESULTS / name
    files = (
        [each for each in sorted(path.rglob("*")) if each.suffix in (".json", ".csv", ".md")]
        if path.is_dir()
        else [path]
    )
    found: set[Decimal] = set()
    for file in files:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".json":
            found |= set(_values(json.loads(text, parse_float=Decimal, parse_int=Decimal)))
            continue
        found |= {Decimal(each) for each in IN_TEXT.findall(text)}
    return frozenset(found)


IN_TEXT = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?(?![\w]|\.\d)")
CURVES = ("curve", "metrics")
"""Keys of a run's curve: of a long one, only the end can be a figure."""
NOT_FIGURES = ("environment", "experiment", "load")
"""Keys of what is no measurement."""
SERIES = 8
"""A longer list of numbers is a series, such as a step's times: of it, only the ends can be a figure."""


def _values(value: object) -> Iterator[Decimal]:
    match value:
        case Decimal():
            yield value
        case str():
            yield from map(Decimal, IN_TEXT.findall(value))
        case dict():
            for key, each in value.items():
                if key not in NOT_FIGURES:
                    yield from _values(each[-1:] if key in CURVES and len(each) > SERIES else each)
        case list():
            series = len(value) > SERIES and all(isinstance(each, Decimal) for each in value)
            for each in (value[0], value[-1]) if series else value:
                yield from _values(each)


@cache
def rounded(name: str, digits: int, scale: Decimal) -> frozenset[Decimal]:
    """The magnitudes of a file's numbers times `scale`, rounded to `digits`, halves up and down."""
    unit = Decimal(1).scaleb(-digits)
    found: set[Decimal] = set()
    for value in numbers(name):
        scaled = abs(value * scale)
        if scaled < Decimal("1e7"):
            found |= {scaled.quantize(unit, rule) for rule in (ROUND_HALF_UP, ROUND_HALF_DOWN)}
    return frozenset(found)


def on_file(found: Found) -> bool:
    """Whether a file that is named nearest to the decimal holds it."""
    value = Decimal(found.decimal.replace(",", ""))
    digits = -int(value.as_tuple().exponent)
    return any(
        value in rounded(name, digits, scale.scaleb(-found.exponent))
        for name in found.files
        for scale in found.scales
    )


@cache
def _fields(name: str) -> dict[str, frozenset[Decimal]]:
    """The numbers of a result file, or of a folder's, by the last key on their way."""
    path = RESULTS / name
    found: dict[str, set[Decimal]] = {}

    def walk(value: object, key: str) -> None:
        match value:
            case dict():
                for name, each in value.items():
                    if name not in NOT_FIGURES:
                        walk(each, name)
            case list():
                for each in value:
                    walk(each, key)
            case _:
                found.setdefault(key, set()).update(_values(value))

    for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
        if file.suffix == ".json":
            walk(json.loads(file.read_text(encoding="utf-8"), parse_float=Decimal, parse_int=Decimal), "")
    return {key: frozenset(values) for key, values in found.items()}


@cache
def _fields_of(name: str, digits: int, scale: Decimal) -> dict[Decimal, set[str]]:
    """The fields that hold a number, by its magnitude times `scale`, rounded as `rounded` does."""
    unit, found = Decimal(1).scaleb(-digits), dict[Decimal, set[str]]()
    for field, values in _fields(name).items():
        for scaled in (abs(value * scale) for value in values):
            if scaled < Decimal("1e7"):
                for rule in (ROUND_HALF_UP, ROUND_HALF_DOWN):
                    found.setdefault(scaled.quantize(unit, rule), set()).add(field)
    return found


def fields(found: Found) -> set[str]:
    """The fields of the files named for a decimal that hold it."""
    value = Decimal(found.decimal.replace(",", ""))
    digits = -int(value.as_tuple().exponent)
    return {
        field
        for name in found.files
        for scale in found.scales
        for field in _fields_of(name, digits, scale.scaleb(-found.exponent)).get(value, ())
    }


def of_one_field(decimals: list[Found]) -> set[tuple[str, int, str]]:
    """(page, line, decimal) of those whose column, or row, of a table is one field of the files throughout.

    A short number stands somewhere in any file; a whole column of them does not stand in one field by chance.
    """
    columns: dict[tuple[str, str, int], list[Found]] = {}
    rows: dict[tuple[str, int], list[Found]] = {}
    for each in decimals:
        if each.text.startswith("|"):
            columns.setdefault((each.page, each.block, each.before.count("|")), []).append(each)
            rows.setdefault((each.page, each.line), []).append(each)
    return {
        (each.page, each.line, each.decimal)
        for group in (*columns.values(), *rows.values())
        if len(group) > 1 and set.intersection(*map(fields, group))
        for each in group
    }
