"""A quarter of an hour on a GPU: the measurements of gpu.py, the most telling first, each with its time.

    benchmarks/gpu_first.sh          # is it right, how fast, and ResNet-110 by the recipe to its end
    benchmarks/gpu_next.sh           # ResNet-1001 by the recipe from where it was, 164, what was wrong

Rows are in OUT/rows.jsonl, output and tracebacks in OUT/log.txt. A measurement that fails or takes too long
is ended and named in a row, and the next one begins. A training that is not done comes back in OUT.
`--rehearse` runs everything in small on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collect import collected
from gpu import WAYS
from gpu_travel import FOLDER, pack, read_pieces, unpack, write_pieces

SCRIPT = Path(__file__).parent / "gpu.py"
SECONDS = 520
"""Of a session, from the first line on; the machine lends nine minutes to a command."""
LAST_SECONDS = 15
"""Kept for writing what comes back."""
EAGER = "bf16, channels last, eager"
UNITS_AS_IN = {"preact_resnet1001_cifar": "preact_resnet164_cifar"}
"""Networks whose units have been checked in another one: the same kinds."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A call of gpu.py, ended after `seconds`."""

    part: str
    words: tuple[str, ...]
    seconds: float


CHECKS = tuple(
    Job(part, ("--networks", network), 120)
    for part, network in (
        ("check-units", "preact_resnet110_cifar"),
        ("check-units", "preact_resnet164_cifar"),
        ("check-units", "resnet110_cifar"),
        ("check-compiled", "preact_resnet110_cifar"),
        ("check-compiled", "preact_resnet164_cifar"),
        ("check-graphs", "preact_resnet20_cifar"),
    )
)
"""They run side by side, since none of them takes a time, and fill the compilers' caches for what follows."""

STEPS = (
    Job("steps", ("--networks", "preact_resnet110_cifar"), 75),
    Job("steps", ("--networks", "preact_resnet1001_cifar"), 105),
)


@dataclass
class Session:
    """One call of this script."""

    out: Path
    rehearse: bool
    deadline: float

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    @property
    def rows(self) -> list[Row]:
        path = self.out / "rows.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def write(self, row: Row) -> None:
        with open(self.out / "rows.jsonl", "ab", buffering=0) as file:
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())

    def run(self, jobs: Sequence[Job]) -> None:
        """Runs `jobs` side by side, and ends those that take longer than they may."""
        started = time.monotonic()
        with open(self.out / "log.txt", "ab") as log:
            processes = [(job, self._start(job, log)) for job in jobs if self.left > 0]
            for job, process in processes:
                self._wait(job, process, started)

    def _start(self, job: Job, log: Any) -> subprocess.Popen[bytes]:
        # The measurement begins nothing new in its last seconds, so that it ends by itself.
        seconds = max(1.0, 0.9 * min(job.seconds, self.left))
        words = [job.part, "--out", str(self.out), "--seconds", f"{seconds:.0f}", *job.words]
        command = [sys.executable, str(SCRIPT), *words, *(["--rehearse"] if self.rehearse else [])]
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)  # noqa: S603

    def _wait(self, job: Job, process: subprocess.Popen[bytes], started: float) -> None:
        try:
            status = process.wait(max(0.1, min(started + job.seconds - time.monotonic(), self.left)))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = None
        if status != 0:
            why = "it took too long and was ended" if status is None else f"it ended with status {status}"
            self.write({"part": job.part, "words": job.words, "not run": f"{why}; see log.txt"})


def is_right(way: str, network: str, rows: Sequence[Row]) -> bool:
    """Whether every check that the way needs was made on this network's units, and passed."""
    units = UNITS_AS_IN.get(network, network)
    for proof in WAYS[way].proofs:
        checked = [row for row in rows if row.get("proof") == proof and row.get("network", units) == units]
        if not checked or not all(row.get("fine") for row in checked):
            return False
    return True


def fastest(network: str, rows: Sequence[Row]) -> str:
    """The way with the most images a second among the right ones; PyTorch's eager layers where none is."""
    speeds = {
        row["way"]: row["images_per_second"]
        for row in rows
        if row.get("network") == network and "images_per_second" in row and row["way"] in WAYS
    }
    valid_speeds = {way: speed for way, speed in speeds.items() if is_right(way, network, rows)}
    return max(valid_speeds, key=lambda way: valid_speeds[way], default=EAGER)


def train(session: Session, runs: Path, trainings: Sequence[tuple[str, str, int]], seconds: float) -> None:
    """Networks by the recipe, side by side: (network, way, seed). A row has each curve, however it ended."""
    jobs = [_training(session, runs, *each, seconds) for each in trainings]
    session.run(jobs)
    for network, way, seed in trainings:
        folder = _folder(runs, network, seed)
        curve = (folder / "metrics.jsonl").exists()
        session.write({
            "part": "curve", "network": network, "way": way, "seed": seed, "side by side": len(trainings),
            **(collected(folder) if curve else {"not run": "no epoch ended"}),
        })  # fmt: skip


def _folder(runs: Path, network: str, seed: int) -> Path:
    return runs / f"{network}-{seed}"


def _training(session: Session, runs: Path, network: str, way: str, seed: int, seconds: float) -> Job:
    pictures = FOLDER / "pictures"
    words = [
        "--networks",
        network,
        "--ways",
        way,
        "--seed",
        str(seed),
        "--runs",
        str(_folder(runs, network, seed)),
    ]
    if pictures.is_dir() and not session.rehearse:
        words += ["--pictures", str(pictures)]
    return Job("recipe", tuple(words), seconds)


def first(session: Session, runs: Path) -> None:
    """Is it right; how fast is it; ResNet-110 to its end, the original unit after it, then further seeds."""
    session.run(CHECKS)
    for job in STEPS:
        session.run([job])
    ways = {name: fastest(name, session.rows) for name in ("preact_resnet110_cifar", "resnet110_cifar")}
    # The steps of the original were not timed: it takes the same way where that is right for its units.
    preferred = ways["preact_resnet110_cifar"]
    ways["resnet110_cifar"] = preferred if is_right(preferred, "resnet110_cifar", session.rows) else EAGER
    seed, took = 0, 0.0
    for name, way in ways.items():
        if session.left > LAST_SECONDS + took:
            started = time.monotonic()
            train(session, runs, [(name, way, seed)], session.left - LAST_SECONDS)
            took = time.monotonic() - started
    while session.left > LAST_SECONDS + took and not session.rehearse:
        seed, started = seed + 1, time.monotonic()
        train(session, runs, [(name, way, seed) for name, way in ways.items()], session.left - LAST_SECONDS)
        took = time.monotonic() - started
    bring_back(session, _folder(runs, "preact_resnet110_cifar", 0), keep_momentum=True)


def later(session: Session, runs: Path) -> None:
    """ResNet-1001 from where it was, ResNet-164, then again what was wrong the first time."""
    earlier = [json.loads(line) for line in _first_rows()]
    name = "preact_resnet1001_cifar"
    take_along(_folder(runs, name, 0))
    train(session, runs, [(name, fastest(name, earlier), 0)], 0.8 * session.left)
    if (_folder(runs, name, 0) / "result.json").exists():
        train(session, runs, [("preact_resnet164_cifar", fastest(name, earlier), 0)], 0.8 * session.left)
    bring_back(session, _folder(runs, name, 0), keep_momentum=False)
    session.run(
        [job for job in CHECKS if any(_is_of(job, row) for row in earlier if row.get("fine") is False)]
    )
    session.run([Job("kernels", (), 60)])


def _first_rows() -> list[str]:
    path = Path(__file__).parent.parent / "results" / "gpu-first" / "rows.jsonl"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _is_of(job: Job, row: Row) -> bool:
    return row["part"] == job.part and row.get("network", job.words[-1]) == job.words[-1]


def bring_back(session: Session, run: Path, *, keep_momentum: bool) -> None:
    """The last state of a training that is not done, in pieces that may come back.

    ResNet-1001's momentum is left out: with it the state would not fit into what travels. The row says so.
    """
    states = sorted((run / "checkpoints").glob("0*.safetensors"))
    if (run / "result.json").exists() or not states:
        return
    from safetensors.torch import load, save

    tensors = load(states[-1].read_bytes())
    stored = {
        key: value for key, value in tensors.items() if keep_momentum or not key.startswith("momentum.")
    }
    seal = json.loads(states[-1].with_suffix(".json").read_text())
    state = {
        "counters": seal["counters"],
        "config": (run / "config.json").read_text(encoding="utf-8"),
        "metrics": (run / "metrics.jsonl").read_text(encoding="utf-8"),
        "timing": (run / "timing.jsonl").read_text(encoding="utf-8"),
        "environment": (run / "environment.json").read_text(encoding="utf-8"),
    }
    (session.out / "state.json").write_text(json.dumps(state), encoding="utf-8")
    write_pieces(pack(save(stored)), session.out, "state")
    session.write(
        {
            "part": "state",
            "run": run.name,
            "iteration": seal["counters"]["iteration"],
            "momentum": keep_momentum,
        }
    )


def take_along(run: Path) -> None:
    """Makes the run's folder of what `bring_back` wrote into .gpu/state, if that is there."""
    state = FOLDER / "state"
    if not (state / "state.json").exists():
        return
    from safetensors.torch import load

    from kilolayer.runs import Run

    stored_state = json.loads((state / "state.json").read_text(encoding="utf-8"))
    pieces = unpack(read_pieces(state, "state"))
    run.mkdir(parents=True)
    for name, file in (("config", "config.json"), ("metrics", "metrics.jsonl"), ("timing", "timing.jsonl"),
                       ("environment", "environment.json")):  # fmt: skip
        (run / file).write_text(stored_state[name], encoding="utf-8")
    Run(run).save(load(pieces), stored_state["counters"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("which", choices=("first", "next"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    session = Session(options.out, options.rehearse, time.monotonic() + options.seconds)
    runs = Path(tempfile.mkdtemp())
    started = time.monotonic()
    try:
        {"first": first, "next": later}[options.which](session, runs)
    finally:
        session.write({"part": "session", "which": options.which, "seconds": time.monotonic() - started})
        shutil.rmtree(runs)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
