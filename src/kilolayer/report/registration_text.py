"""A sweep's registration in words, and its decisions as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from kilolayer.report.comparison_tables import HEADER, gap_tables, pair_cells
from kilolayer.report.document import Table
from kilolayer.report.reproduction_tables import table_label
from kilolayer.statistics import Decision
from kilolayer.statistics.comparison import beside_paper
from kilolayer.sweep.comparable import cell_label
from kilolayer.sweep.looks import RegisteredResult
from kilolayer.sweep.registration import Entry, Registration, read_entries
from kilolayer.sweep.results import CellResult, TableResult
from kilolayer.system.terminal import print_text

NOT_REGISTERED = (
    "This sweep was not registered: its comparisons, its test and its number of runs were not fixed before "
    "its first run."
)
PAIRING = (
    "a seed gives every row the same order of images, the same crops and flips, and the same initial weights "
    "if its layers with weights have the same shapes in the same order; a gate or a convolution on the "
    "shortcut moves all initial weights"
)
DECISION_HEADER = (*HEADER[:-1], "failed", "decision")


def registration_rows(entries: Sequence[Entry]) -> tuple[tuple[str, str], ...]:
    """The registration as pairs of a heading and a text, its amendments last."""
    first = entries[0]
    return (
        ("registered", f"{first.registration.date}, before the first run; SHA-256 {first.sha256}"),
        *proposed_rows(entries[-1].registration),
        *(("amended", _amendment(entry)) for entry in entries[1:]),
    )


def proposed_rows(now: Registration) -> tuple[tuple[str, str], ...]:
    """A registration that was not written, as pairs of a heading and a text."""
    return (
        ("comparisons", "; ".join(_families(now))),
        ("test", _test(now)),
        ("looks", _looks(now)),
        ("failure", f"a test error above {now.fail_above:g} %"),
        ("left out", now.exclusions),
        ("runs", _runs(now)),
        ("pairing", PAIRING),
        *(("data", text) for text in _data(now)),
        ("code", _code(now)),
    )


def _families(now: Registration) -> Iterator[str]:
    for family in now.families:
        baselines = {a for a, _ in family.pairs}
        against = f", all with “{baselines.pop()}”" if len(baselines) == 1 else ""
        yield f"{len(family.pairs)} in {family.table}{against}"


def _test(now: Registration) -> str:
    rule = now.rule
    margin = (
        f"equivalent within ± {rule.margin:g} points"
        if rule.margin is not None
        else "no margin, so none can be equivalent"
    )
    level = f"{100 * rule.alpha:g} % for all comparisons of a table together (Holm)"
    return f"{rule.test}, two-sided; {level}; {margin}"


def _looks(now: Registration) -> str:
    looks, seeds = now.rule.looks, ", ".join(map(str, now.request.seeds))
    if len(looks) == 1:
        return f"one, after {looks[0]} seeds ({seeds})"
    after = f"{', '.join(map(str, looks[:-1]))} and {looks[-1]}"
    return f"after {after} seeds ({seeds}); spending: {now.rule.spending}; what is decided is not run further"


def _runs(now: Registration) -> str:
    request, recipes = now.request, _recipes(now)
    threads = "" if now.threads is None else f", {now.threads} thread{'s' * (now.threads > 1)} a run"
    return (
        f"{_scale(now)}; recipe {', '.join(recipes)}; {request.precision}, "
        f"{request.kernels} kernels{threads}; the figure is the test error after the last step"
    )


def _scale(now: Registration) -> str:
    """What the runs leave out; of the depths only those of the registered cells."""
    scale, depths = now.request.size.scale, dict(now.request.size.depths)
    ours = {experiment.network.depth for cell in now.cells for experiment in cell.experiments}
    return replace(scale, depths={a: b for a, b in depths.items() if b in ours} or None).describe()


def _recipes(now: Registration) -> dict[str, None]:
    return dict.fromkeys(
        f"{experiment.recipe.name} ({experiment.recipe.iterations:,} steps of {experiment.recipe.batch_size})"
        for cell in now.cells
        for experiment in cell.experiments
    )


def _data(now: Registration) -> Iterator[str]:
    for data in now.data:
        yield (
            f"{data.name}: {data.training_images:,} training images ({data.training_set[:12]}), "
            f"{data.test_images:,} test images ({data.test_set[:12]})"
        )


def _code(now: Registration) -> str:
    number, *changed = now.code.commit.split(" ", 1)
    commit = f", commit {' '.join((number[:12], *changed))}" if number else ""
    return f"kilolayer {now.code.release}{commit}, source {now.code.sha256[:12]}, PyTorch {now.torch}"


def _amendment(entry: Entry) -> str:
    changes = "; ".join(f"{d.field} from {d.before} to {d.after}" for d in entry.differences)
    return f"{entry.registration.date}: {entry.reason} ({changes})"


def print_registration(folder: Path, *, stderr: bool = False) -> None:
    """Prints the registration of the sweep in `folder`, a line for each part."""
    for name, text in registration_rows(read_entries(folder)):
        print_text(f"{name:<12} {text}", hanging=13, stderr=stderr)
    print_text("", stderr=stderr)


def comparison_tables(result: TableResult, registered: RegisteredResult | None) -> tuple[Table, ...]:
    """The registered decisions of a registered sweep; the gaps between rows of any other."""
    if registered is None:
        return gap_tables(result)
    table = decision_table(registered, result)
    return () if table is None else (table,)


def decision_table(registered: RegisteredResult, result: TableResult) -> Table | None:
    """The decisions on a table's comparisons, each beside the paper's gap; None where there are none."""
    decisions = registered.of_table(result.table.name)
    if not decisions:
        return None
    cells = {cell_label(result.table, cell.cell): cell for cell in result.cells}
    paper = {
        label: value
        for label, cell in cells.items()
        if cell.cell.in_paper and (value := cell.cell.published.rank_value) is not None
    }
    first = {decision.a for decision in decisions}
    baseline = all(cells[label].cell.row == result.table.baseline for label in first)
    rows = []
    for decision in decisions:
        name = decision.b if baseline else f"{decision.b} against {decision.a}"
        failed = _failed(cells[decision.b], registered.registration.fail_above)
        *figures, word = pair_cells(beside_paper(decision, paper))
        rows.append((name, *figures, failed, word if decision.final else f"not yet: {word}"))
    against = f"gaps to “{result.table.baseline}”" if baseline else "gaps between rows"
    return Table(
        f"{table_label(result)}: registered comparisons, {against} in percent of error; positive is worse.",
        DECISION_HEADER,
        tuple(rows),
        _note(registered, decisions),
    )


def _failed(cell: CellResult, above: float) -> str:
    """How many of the runs that have ended failed as registered."""
    errors = cell.by_seed.values()
    count = sum(error is None or error > above for error in errors)
    return f"{count} of {len(errors)}"


def _note(registered: RegisteredResult, decisions: Sequence[Decision]) -> str:
    now = registered.registration
    names = "; ".join(dict.fromkeys(d.interval for d in decisions if d.interval)) or "none yet"
    return (
        f"Decided as registered on {registered.entries[0].registration.date}. n: the seeds at the look that "
        f"decided, or at the last one. Failed: runs with an error above {now.fail_above:g} %. Test: "
        f"{now.rule.test}. Interval: {names}."
    )


def decision_counts(registered: RegisteredResult) -> str:
    """How many comparisons are decided, and how."""
    decisions = [decision for family in registered.families for decision in family.decisions]
    words = Counter(_kind(decision) for decision in decisions)
    counts = ", ".join(f"{count} {word}" for word, count in words.items())
    return f"{len(decisions)} registered comparisons: {counts}"


def decision_state(decision: Decision) -> str:
    """A decision in words, and whether more runs are to come."""
    return decision.text if decision.final else f"{decision.text}; more seeds to come"


def _kind(decision: Decision) -> str:
    if decision.word in ("A is better", "B is better"):
        return "decided (one is better)"
    if decision.final or decision.word == "equivalent":
        return decision.word
    return "not decided yet"
