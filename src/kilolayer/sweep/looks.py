"""A registered sweep look by look: which comparisons are decided, and which runs the next look needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kilolayer.statistics import Decision, decide
from kilolayer.sweep.comparable import cell_label
from kilolayer.sweep.registration import Entry, Registration, check_runs, read_entries
from kilolayer.sweep.reproduction import Reproduction
from kilolayer.sweep.results import CellResult, TableResult, table_results
from kilolayer.sweep.run_spec import RunSpec


@dataclass(frozen=True)
class FamilyDecisions:
    """The decisions on the comparisons of a table, as its runs stand."""

    table: str
    decisions: tuple[Decision, ...]


def family_decisions(
    registration: Registration, results: tuple[TableResult, ...]
) -> tuple[FamilyDecisions, ...]:
    """What the registered rule says of each comparison, from the runs that have ended."""
    by_table = {result.table.name: _by_label(result) for result in results}
    return tuple(
        FamilyDecisions(
            family.table,
            decide(
                registration.rule,
                {label: result.by_seed for label, result in by_table[family.table].items()},
                family.pairs,
                seeds=registration.request.seeds,
                chance=next(iter(by_table[family.table].values())).chance,
            ),
        )
        for family in registration.families
    )


def _by_label(result: TableResult) -> Mapping[str, CellResult]:
    return {cell_label(result.table, cell.cell): cell for cell in result.cells}


def next_runs(reproduction: Reproduction, registration: Registration) -> tuple[RunSpec, ...]:
    """The runs that have not ended and that the next look of an undecided comparison needs, seed by seed.

    A cell whose runs are compared with none has all of its seeds run. Nothing is left when every comparison
    is decided, or at its last look.
    """
    results = table_results(reproduction)
    seeds_of = _seeds_by_cell(registration, results)
    labelled = [
        ((result.table.name, label), cell) for result in results for label, cell in _by_label(result).items()
    ]
    compared = frozenset[str]().union(*(cell.keys for name, cell in labelled if name in seeds_of))
    unfinished: dict[str, tuple[int, RunSpec]] = {}
    for name, cell in labelled:
        for trial, state in cell.states:
            is_needed = trial.seed in seeds_of[name] if name in seeds_of else trial.spec.key not in compared
            if is_needed and not state.is_finished:
                unfinished[trial.spec.key] = (registration.request.seeds.index(trial.seed), trial.spec)
    return tuple(spec for _, spec in sorted(unfinished.values(), key=lambda item: item[0]))


def _seeds_by_cell(
    registration: Registration, results: tuple[TableResult, ...]
) -> dict[tuple[str, str], set[int]]:
    """By table and label, the seeds that the undecided comparisons need; none where all are decided."""
    seeds, looks = registration.request.seeds, registration.rule.looks
    seeds_of: dict[tuple[str, str], set[int]] = {}
    for family in family_decisions(registration, results):
        for decision in family.decisions:
            later = [] if decision.final else [look for look in looks if look > decision.n]
            for label in (decision.a, decision.b):
                seeds_of.setdefault((family.table, label), set()).update(seeds[: later[0]] if later else ())
    return seeds_of


@dataclass(frozen=True)
class RegisteredResult:
    """A registered sweep's registration with its amendments, and its decisions as its runs stand."""

    entries: tuple[Entry, ...]
    families: tuple[FamilyDecisions, ...]

    @property
    def registration(self) -> Registration:
        """The registration that holds now."""
        return self.entries[-1].registration

    def of_table(self, name: str) -> tuple[Decision, ...]:
        """The decisions on the comparisons of one table."""
        return tuple(
            decision for family in self.families if family.table == name for decision in family.decisions
        )


def registered_result(
    reproduction: Reproduction, results: tuple[TableResult, ...]
) -> RegisteredResult | None:
    """The registration and the decisions of a sweep; None where it is not registered.

    Raises `InputError` where the registration was changed by another hand.
    """
    check_runs(reproduction)
    entries = read_entries(reproduction.folder)
    if not entries:
        return None
    return RegisteredResult(entries, family_decisions(entries[-1].registration, results))
