"""R10: a number that is none, in a loss, a gradient, a running average, a momentum or a logit, at step k."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from harness import Ended, Lab

from kilolayer.runs import Run

NAMED = {
    "model.stem.conv1.weight": "stem.conv1.weight",
    "model.stem.bn1.running_var": "stem.bn1.running_var",
    "momentum.classifier.weight": "momentum.classifier.weight",
    "gradient": "the training loss|stem.conv1.weight",
    "logit": "the training loss|stem.conv1.weight",
    "pixel": "the training loss|stem.bn1.running_mean|stem.conv1.weight",
    "evaluation": "the validation loss",
}
"""What is poisoned, and what may be named for it."""

CASES = [
    (what, step, value, every)
    for every, step, value, what in product(("0", "300"), (1, 3, 5, 8), ("nan", "inf"), NAMED)
]


def wrong_with(ended: Ended, run: Run, what: str, step: int, every: str) -> str:
    """What is wrong, or "": one line with the step and the tensor, and nothing bad kept."""
    said = re.fullmatch(
        r"kilolayer: (.*) is not finite at iteration (\d+) "
        r"\(learning rate [^;]*; all was finite at iteration (\d+)\); try [^\n]*\n",
        ended.err,
    )
    if ended.status != 2 or said is None:
        return f"status {ended.status}: {ended.said}"
    # Where nothing is saved after every step, what no loss shows is seen at the end of its epoch.
    last = step if every == "0" and what != "evaluation" else min(e for e in (3, 6, 8) if e >= step)
    seen = int(said[2])
    named = every != "0" or re.search(NAMED[what], said[1])
    before = what == "evaluation" or int(said[3]) <= step
    if not (named and before and step <= seen <= last):
        return ended.said
    kept = run.latest_checkpoint()
    if kept is not None and not all(bool(tensor.isfinite().all()) for tensor in kept.tensors.values()):
        return "a bad state is kept"
    if kept is not None and kept.counters["iteration"] >= step and what != "evaluation":
        return "a state of that step is kept"
    return "" if (run.result() or {}).get("status") == "diverged" else "no result says so"


def test_what_is_no_number_ends_the_run(
    lab: Lab, tmp_path: Path, chosen: Callable[..., list[Any]], count: Any
) -> None:
    tried, bad = chosen(CASES), {}
    for what, step, value, every in tried:
        run = Run(tmp_path / f"{what}-{step}-{value}-{every}")
        ended = lab.bring_back(run.path, "--save-every", every, POISON=f"{what}:{step}:{value}")
        again = lab.bring_back(run.path)
        wrong = wrong_with(ended, run, what, step, every)
        if not wrong and not (again.status == 2 and "cannot continue" in again.err):
            wrong = f"it goes on: {again.said}"
        if wrong:
            bad[what, step, value, every] = wrong
    print(bad)
    count("R10", tried=len(tried), held=len(tried) - len(bad))
