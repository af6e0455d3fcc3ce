"""The results as JSON that explains itself: it needs no run folder beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from kilolayer.sweep.image_errors import ImageErrors, image_errors
from kilolayer.sweep.looks import RegisteredResult
from kilolayer.sweep.reproduction import Reproduction
from kilolayer.sweep.results import CellResult, TableResult
from kilolayer.sweep.run_spec import RunSpec
from kilolayer.values import to_json_value


def results_as_json(
    reproduction: Reproduction,
    results: tuple[TableResult, ...],
    command: str,
    registered: RegisteredResult | None = None,
) -> str:
    """The request, the command, the environments of the runs, and the result of every run, as JSON text.

    registered: the registration, its amendments and its decisions; null where the sweep has none.
    """
    starts = read_provenance(reproduction.runs)
    recipes = dict.fromkeys(run.experiment.recipe for run in reproduction.runs)
    value = {
        "command": command,
        "scale": reproduction.request.size.scale.describe(),
        "request": to_json_value(reproduction.request),
        "registered": _registered(registered) if registered else None,
        "recipes": list(map(to_json_value, recipes)),
        "measured": asdict(starts) if starts else None,
        "tables": [_table(item) for item in results],
    }
    return json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False)


def _registered(registered: RegisteredResult) -> dict[str, Any]:
    return {
        "entries": [
            {
                "sha256": entry.sha256,
                "reason": entry.reason,
                "differences": [asdict(difference) for difference in entry.differences],
                "registration": to_json_value(entry.registration),
            }
            for entry in registered.entries
        ],
        "decisions": {
            family.table: [asdict(decision) for decision in family.decisions]
            for family in registered.families
        },
    }


def _table(table: TableResult) -> dict[str, Any]:
    return {
        "table": table.table.name,
        "paper": f"{table.table.paper.label}, {table.table.source}",
        "title": table.table.title,
        "proxy": table.proxy or None,
        "cells": [_cell(finding, table.same_as(finding)) for finding in table.cells],
        "images": _images(image_errors(table)),
        "comparisons": {name: asdict(compared) for name, compared in table.comparisons.items()},
    }


def _images(found: ImageErrors) -> dict[str, Any]:
    """The spread of each row and each pair, image by image."""
    return {
        "spreads": {label: asdict(spread) for label, spread in found.spreads.items()},
        "pairs": [{"a": a, "b": b, **asdict(pair)} for (a, b), pair in found.pairs.items()],
    }


def _cell(finding: CellResult, same_as: str) -> dict[str, Any]:
    cell = finding.cell
    return {
        "row": cell.row,
        "column": cell.column,
        "metric": cell.metric,
        "reported": "fail" if cell.failed else cell.reported,
        "in_paper": cell.in_paper,
        "statistic": str(cell.published.statistic),
        "counted": cell.counted,
        "not_yet": cell.not_yet or None,
        "plan_of": cell.plan.origin if cell.plan else None,
        "replications": [
            {
                "laboratory": entry.laboratory,
                "value": entry.result.value,
                "statistic": str(entry.result.statistic),
            }
            for entry in cell.replications
        ],
        "same_network_as": same_as or None,
        "runs": [
            {
                "run": trial.spec.key,
                "setting": cell.plans[trial.setting].setting or None,
                "seed": trial.seed,
                "result": state.result,
            }
            for trial, state in finding.states
        ],
        "summary": asdict(finding.summary) if finding.summary else None,
        "verdict": asdict(finding.verdict),
    }


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: a missing figure becomes null."""
    match value:
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case float() if not math.isfinite(value):
            return None
        case _:
            return value


OF_A_START = ("date", "command")
"""The fields that differ from start to start; the others describe the environment."""


@dataclass(frozen=True)
class Provenance:
    """Where and when the runs were computed.

    environments: every combination of versions and machine once. first, last: the dates of the first and last
        start.
    """

    starts: int
    first: str
    last: str
    commands: tuple[str, ...]
    environments: tuple[dict[str, Any], ...]


def read_provenance(runs: Iterable[RunSpec]) -> Provenance | None:
    """The provenance from environment.json in the folders of the runs; None where no run has begun."""
    starts = sorted(
        (start for item in runs for start in item.run.environments()), key=lambda start: start["date"]
    )
    if not starts:
        return None
    environments = [{key: value for key, value in start.items() if key not in OF_A_START} for start in starts]
    distinct = {json.dumps(item, sort_keys=True): item for item in environments}
    return Provenance(
        starts=len(starts),
        first=starts[0]["date"],
        last=starts[-1]["date"],
        commands=tuple(dict.fromkeys(start["command"] for start in starts)),
        environments=tuple(distinct.values()),
    )
