"""The trials by hand: a line of JSON for each, and those that did not hold on standard error."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from injection.scenarios import SCENARIOS
from injection.strace import FAULTS
from injection.trial import Bench, Verdict, counted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), required=True)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every N-th trial")
    parser.add_argument("--from", dest="first", type=int, default=0, metavar="K", help="leave out K trials")
    parser.add_argument("--limit", type=float, default=float("inf"), metavar="SECONDS")
    parser.add_argument("--call", nargs="+", help="only calls of these kinds")
    parser.add_argument("--fault", choices=FAULTS, help="only this fault")
    parser.add_argument("--path", default="", help="only calls whose path holds this text")
    parser.add_argument("--list", action="store_true", help="list the points")
    parser.add_argument("--out", type=Path, help="append a line of JSON for each trial")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="injection-") as folder:
        return run(options, Path(folder).resolve())


def run(options: argparse.Namespace, folder: Path) -> int:
    started = time.monotonic()
    bench = Bench(SCENARIOS[options.scenario], folder)
    if options.list:
        for point in bench.ended.points:
            print(point.tracee, point.call, point.ordinal, point.path, "failed" if point.failed else "")
    chosen = [
        trial
        for trial in bench.trials
        if options.call is None
        or (
            trial.point.call in options.call
            and options.fault in (None, trial.fault)
            and options.path in trial.point.path
        )
    ][options.first :: options.every]
    print(f"{len(bench.ended.points)} points, {len(bench.trials)} trials, {len(chosen)} chosen", flush=True)
    verdicts: list[Verdict] = []
    for trial in () if options.list else chosen:
        if time.monotonic() - started > options.limit:
            break
        verdicts.append(verdict := bench.try_one(trial))
        if verdict.wrong or verdict.missed:
            print(f"{verdict.trial}: {verdict.wrong or verdict.said}", flush=True)
        if options.out:
            with options.out.open("a", encoding="utf-8") as file:
                row = {
                    "scenario": options.scenario,
                    "trial": str(trial),
                    "status": verdict.status,
                    "said": verdict.said,
                    "wrong": verdict.wrong,
                    "missed": verdict.missed,
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{options.scenario}: {counted(verdicts)}; {time.monotonic() - started:.0f} s")
    return int(any(verdict.wrong for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
