"""The registration of a sweep: what is fixed before its first run, as a value that is hashed and kept.

registration.json in the sweep's folder holds the registration and its amendments, each with a SHA-256 over
all of it and over the one before. The folder of each run holds a copy of the entry under which it began, so
that a change of registration.json after the first run is seen, and said.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

from kilolayer.data.config import Data
from kilolayer.data.images import Splits
from kilolayer.errors import InputError
from kilolayer.runs.records import Count, check_record, read_record
from kilolayer.statistics import DecisionRule
from kilolayer.sweep.comparable import compared_pairs
from kilolayer.sweep.reproduction import Reproduction, Request
from kilolayer.sweep.run_spec import REGISTRATION_FILE, RunSpec
from kilolayer.system import durable
from kilolayer.system.code_version import CodeVersion, code_version
from kilolayer.system.folder_listing import matching_paths
from kilolayer.system.json_text import MAX_BYTES, parse_json
from kilolayer.system.opened_folder import open_folder
from kilolayer.training import Experiment
from kilolayer.values import FieldErrors, structure, to_json_value

FORMAT = 1
EXCLUSIONS = (
    "none: a run that diverges counts with the error of guessing, and no run is left out for its error; "
    "a run that this machine cannot end (memory) has no error, and its pair is not decided"
)
_SHOWN = 3
"""How many differences a message names."""


@dataclass(frozen=True)
class Family:
    """The comparisons of a table, which are corrected together: pairs of its cells' labels."""

    table: str
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class RegisteredCell:
    """A cell with its experiments, one for each setting: network, data, recipe, precision; the seed is 0."""

    table: str
    row: str
    column: str
    experiments: tuple[Experiment, ...]


@dataclass(frozen=True)
class RegisteredData:
    """The images: their name, how many, and the SHA-256 of each part's pixels and labels."""

    name: str
    training_images: int
    test_images: int
    training_set: str
    test_set: str


@dataclass(frozen=True)
class Registration:
    """What is fixed before the first run.

    request: tables, rows, seeds in their order, scale and recipe. rule: test, margin, looks, spending, level.
    families: the comparisons. fail_above: a run with a higher test error, in percent, has failed. threads:
    processor cores of a run.
    """

    date: str
    request: Request
    rule: DecisionRule
    fail_above: float
    families: tuple[Family, ...]
    cells: tuple[RegisteredCell, ...]
    data: tuple[RegisteredData, ...]
    threads: int | None
    torch: str
    code: CodeVersion
    exclusions: str = EXCLUSIONS


@dataclass(frozen=True)
class Difference:
    """A field of a registration with its values before and after, in words."""

    field: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.field} is {self.after}, registered {self.before}"


class DifferenceFields(TypedDict):
    """A difference in the file."""

    field: str
    before: str
    after: str


class EntryFields(TypedDict):
    """An entry in the file; `previous` is the SHA-256 of the entry before it."""

    reason: str
    differences: list[DifferenceFields]
    previous: str
    registration: dict[str, Any]
    sha256: str


class RegistrationFields(TypedDict):
    """registration.json in the folder of a sweep."""

    format: Count
    entries: list[EntryFields]


@dataclass(frozen=True)
class Entry:
    """A registration as it was written: the first, or an amendment with its reason and its differences."""

    registration: Registration
    sha256: str
    reason: str = ""
    differences: tuple[Difference, ...] = ()


def register(
    reproduction: Reproduction,
    rule: DecisionRule,
    fail_above: float,
    *,
    threads: int | None,
    load: Callable[[Data], Splits],
) -> Registration:
    """The registration of a sweep as it stands, with today's date. Reads its data.

    Raises `InputError` where the sweep compares nothing, where its seeds are not those of the last look, or
    where so few seeds can never decide so many comparisons.
    """
    families = tuple(
        Family(table.name, pairs)
        for table in reproduction.tables
        if (pairs := compared_pairs(table, reproduction.of_table(table.name)))
    )
    if not families:
        raise InputError("--register: no two of these cells are compared; choose at least two rows")
    if len(reproduction.request.seeds) != rule.looks[-1]:
        raise InputError(
            f"--looks ends at {rule.looks[-1]} seeds, and --seeds has {len(reproduction.request.seeds)}; "
            "leave out --seeds, or give as many"
        )
    if not 0 < fail_above < 100:
        raise InputError(f"--fail-above is {fail_above:g}; allowed: a test error between 0 and 100 percent")
    for family in families:
        rule.check(len(family.pairs))
    return Registration(
        date=_now(),
        request=reproduction.request,
        rule=rule,
        fail_above=fail_above,
        families=families,
        cells=_registered_cells(reproduction),
        data=tuple(_registered_data(reproduction, load)),
        threads=threads,
        torch=_torch_version(),
        code=code_version(),
    )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _torch_version() -> str:
    import torch

    return str(torch.__version__)


def _registered_cells(reproduction: Reproduction) -> tuple[RegisteredCell, ...]:
    return tuple(
        RegisteredCell(
            runs.cell.table,
            runs.cell.row,
            runs.cell.column,
            tuple(dict.fromkeys(replace(trial.spec.experiment, seed=0) for trial in runs.trials)),
        )
        for runs in reproduction.cells
        if runs.trials
    )


def _registered_data(reproduction: Reproduction, load: Callable[[Data], Splits]) -> Iterator[RegisteredData]:
    for data in dict.fromkeys(run.experiment.data for run in reproduction.runs):
        splits = load(data)
        yield RegisteredData(
            splits.name,
            len(splits.train),
            len(splits.test),
            splits.train.fingerprint(),
            splits.test.fingerprint(),
        )


# Differences


def differences(before: Registration, after: Registration) -> tuple[Difference, ...]:
    """The fields in which two registrations differ, but for date and commit: the code is its source files."""
    fields = [
        to_json_value(replace(value, date="", code=replace(value.code, commit="")))
        for value in (before, after)
    ]
    return tuple(_differences("", *fields))


def _differences(name: str, before: Any, after: Any) -> Iterator[Difference]:
    if before == after:
        return
    match before, after:
        case dict(), dict():
            for key in dict.fromkeys((*before, *after)):
                inner = f"{name}.{key}" if name else key
                yield from _differences(inner, before.get(key), after.get(key))
        case list(), list() if len(before) == len(after) and all(isinstance(item, dict) for item in after):
            for number, (first, second) in enumerate(zip(before, after, strict=True)):
                yield from _differences(f"{name}[{second.get('row', number)}]", first, second)
        case _:
            yield Difference(name, _word(before), _word(after))


def _word(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case str() if len(value) == 64:
            return value[:12]
        case str() | int() | float():
            return str(value)
        case list() if all(isinstance(item, (str, int, float)) for item in value):
            return ", ".join(map(str, value)) or "nothing"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


def difference_text(changes: Iterable[Difference]) -> str:
    """The first differences in a line, and how many more there are."""
    texts = list(map(str, changes))
    more = f"; and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return "; ".join(texts[:_SHOWN]) + more


def check_unchanged(folder: Path, registered: Registration, now: Registration) -> None:
    """Raises `InputError`, naming the differences, where a call is not what was registered."""
    if changes := differences(registered, now):
        raise InputError(
            f"{folder} was registered on {registered.date} otherwise: {difference_text(changes)}; continue "
            f"as registered, record the change (kilolayer reproduce --resume {folder} --amend REASON), or "
            "choose another --out"
        )


# The file


def write_registration(reproduction: Reproduction, registration: Registration) -> None:
    """Writes the first entry. Raises `InputError` where a run of the sweep has begun."""
    started = [spec for spec in reproduction.runs if spec.run.has_begun]
    if started:
        raise InputError(
            f"{reproduction.folder} has {len(started)} runs already, and a sweep is registered before its "
            "first run; choose another --out, or leave out --register"
        )
    _write(reproduction.folder, [_sealed(registration, "", (), "")])


def amend_registration(folder: Path, amended: Registration, reason: str) -> None:
    """Appends an amendment: a date, a reason, and what it changes.

    Raises `InputError` where it changes nothing, or has no reason.
    """
    entries = _read_raw(folder)
    current = read_entries(folder)[-1].registration
    changes = differences(current, amended)
    if not reason.strip():
        raise InputError("--amend has no reason; say in words why the registration is changed")
    if not changes:
        raise InputError("--amend changes nothing; leave it out")
    _write(folder, [*entries, _sealed(amended, reason, changes, entries[-1]["sha256"])])


def _sealed(
    registration: Registration, reason: str, changes: tuple[Difference, ...], previous: str
) -> EntryFields:
    entry = EntryFields(
        reason=reason,
        differences=[DifferenceFields(field=d.field, before=d.before, after=d.after) for d in changes],
        previous=previous,
        registration=to_json_value(registration),
        sha256="",
    )
    return {**entry, "sha256": _seal(entry)}


def _seal(entry: Mapping[str, Any]) -> str:
    content = {key: value for key, value in entry.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _write(folder: Path, entries: list[EntryFields]) -> None:
    text = json.dumps({"format": FORMAT, "entries": entries}, indent=1, ensure_ascii=False)
    durable.write_file(folder / REGISTRATION_FILE, text.encode())


def read_entries(folder: Path) -> tuple[Entry, ...]:
    """The registration of the sweep in `folder` and its amendments, the oldest first; empty without one.

    Raises `InputError` where the file is damaged, or was changed by another hand.
    """
    return tuple(_entry(raw, folder) for raw in _read_raw(folder))


def _entry(raw: EntryFields, folder: Path) -> Entry:
    try:
        registration = structure(raw["registration"], Registration, str(folder))
    except FieldErrors as error:
        raise InputError(f"{folder / REGISTRATION_FILE}: {error}") from None
    changes = tuple(Difference(d["field"], d["before"], d["after"]) for d in raw["differences"])
    return Entry(registration, raw["sha256"], raw["reason"], changes)


def _read_raw(folder: Path) -> list[EntryFields]:
    path = folder / REGISTRATION_FILE
    content = _read_file(folder, folder)
    if content is None:
        return []
    try:
        value = parse_json(content, str(path))
        match value:
            case {"format": int(newest)} if newest > FORMAT:
                raise InputError(f"{path} was written by a newer release (format {newest}); update kilolayer")
        entries = check_record(value, RegistrationFields, path, content=content)["entries"]
    except InputError as error:
        raise InputError(f"{error}; a copy of an entry is in the folder of each run") from None
    previous = ""
    for raw in entries:
        if raw["sha256"] != _seal(raw) or raw["previous"] != previous:
            raise InputError(_changed(path, folder, raw))
        previous = raw["sha256"]
    if not entries:
        raise InputError(f"{path} is damaged: it holds no registration")
    return entries


def _read_file(folder: Path, sweep: Path) -> bytes | None:
    try:
        with open_folder(folder, below=sweep) as opened:
            return opened.read(REGISTRATION_FILE, MAX_BYTES)
    except FileNotFoundError:
        return None


def _copies(folder: Path) -> Iterator[tuple[Path, EntryFields]]:
    """The copies in the folders of the runs, which say under what entry each began."""
    for run in matching_paths(folder / "runs", "*"):
        if not run.is_dir() or (content := _read_file(run, folder)) is None:
            continue
        path = run / REGISTRATION_FILE
        raw = read_record(content, EntryFields, path)
        if raw["sha256"] != _seal(raw):
            raise InputError(f"{path} is damaged or was changed: its checksum is not that of its content")
        yield path, raw


def _changed(path: Path, folder: Path, raw: EntryFields) -> str:
    """What to say of an entry whose seal is not that of its content."""
    copies = [copy for _, copy in _copies(folder) if copy["sha256"] == raw["sha256"]]
    changes = _differences("", copies[0]["registration"], raw["registration"]) if copies else ()
    what = difference_text(changes)
    return f"{path} was changed after it was written: {what or 'its checksum is not that of its content'}"


def check_runs(reproduction: Reproduction) -> None:
    """Raises `InputError` where a run did not begin under the registration in the sweep's folder."""
    folder = reproduction.folder
    entries = _read_raw(folder)
    hashes = {raw["sha256"] for raw in entries}
    copies = dict(_copies(folder))
    for path, raw in copies.items():
        if raw["sha256"] in hashes:
            continue
        if not entries:
            raise InputError(
                f"{folder / REGISTRATION_FILE} is missing, and {path.parent} began under a registration of "
                f"{raw['registration'].get('date', 'another date')}; restore it"
            )
        changes = difference_text(_differences("", raw["registration"], entries[0]["registration"]))
        raise InputError(
            f"{folder / REGISTRATION_FILE} is not the registration under which {path.parent} began: {changes}"
        )
    for spec in reproduction.runs if entries else ():
        if spec.run.has_begun and spec.path / REGISTRATION_FILE not in copies:
            raise InputError(f"{spec.path} began without the registration of {folder}; choose another --out")


def mark_runs(folder: Path, specs: Iterable[RunSpec]) -> None:
    """Writes the current entry into the folder of each run that has not begun."""
    entries = _read_raw(folder)
    content = json.dumps(entries[-1], ensure_ascii=False).encode()
    for spec in specs:
        if not spec.run.has_begun:
            with open_folder(spec.path, below=spec.sweep, create=True) as run:
                run.write(REGISTRATION_FILE, content)
