"""The findings as JSON that explains itself: copied anywhere, it needs no run folder beside it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from kilolayer.sweep.cell_result import CellResult
from kilolayer.sweep.provenance import read_provenance
from kilolayer.sweep.reproduction import Reproduction
from kilolayer.sweep.table_result import TableResult
from kilolayer.values import to_json


def results_as_json(reproduction: Reproduction, results: tuple[TableResult, ...], command: str) -> str:
    """What was asked, by which command, on what it ran, and every run's own result."""
    starts = read_provenance(reproduction.runs)
    recipes = dict.fromkeys(to_json(item.experiment.recipe) for item in reproduction.runs)
    value = {
        "command": command,
        "scale": reproduction.request.size.scale.describe(),
        "request": json.loads(to_json(reproduction.request)),
        "recipes": [json.loads(text) for text in recipes],
        "measured": asdict(starts) if starts else None,
        "tables": [_table(item) for item in results],
    }
    return json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False)


def _table(table: TableResult) -> dict[str, Any]:
    return {
        "table": table.table.name,
        "paper": f"{table.table.paper.label}, {table.table.source}",
        "title": table.table.title,
        "proxy": table.proxy or None,
        "cells": [_cell(finding, table.same_as(finding)) for finding in table.cells],
        "comparisons": {name: asdict(compared) for name, compared in table.comparisons.items()},
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
    """JSON has no NaN and no infinity: what was not measured is null."""
    match value:
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case float() if not math.isfinite(value):
            return None
        case _:
            return value
