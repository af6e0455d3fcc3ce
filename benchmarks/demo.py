"""The demo and the second command that it proposes, with the figures that it ends with.

    python benchmarks/demo.py [--out FILE]

Runs `kilolayer demo`, then `kilolayer train` of the deepest original network with 0.3 of the learning rate.
Writes results/demo-findings.json: the command, seconds and test error of each run, and the demo's sentences.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def run(line: str, folder: Path) -> dict[str, Any]:
    """The output of a `kilolayer` command in this folder, and how long it took."""
    words = [sys.executable, "-m", *shlex.split(line)]
    began = time.monotonic()
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True)  # noqa: S603
    seconds = round(time.monotonic() - began, 1)
    # The last line of the demo names a temporary folder.
    output = [row for row in done.stdout.splitlines() if not row.startswith("report:")]
    return {"command": line, "seconds": seconds, "output": output}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("results/demo-findings.json"))
    out = parser.parse_args().out.absolute()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        demo = run("kilolayer demo --out runs/demo", folder)
        results = {path.parent.name: path for path in sorted(folder.rglob("result.json"))}
        errors = {run: json.loads(path.read_text())["test_error"] for run, path in results.items()}
        line = next(text for text in demo["output"] if "kilolayer train" in text).strip()
        slower = run(f"{line} --out runs/slower", folder)
        machine = json.loads(next(folder.rglob("environment.json")).read_text())
        slower["test_error"] = json.loads((folder / "runs/slower/result.json").read_text())["test_error"]
    found = {
        "command": "python benchmarks/demo.py",
        "environment": machine[0] | {"load": os.getloadavg()[0]},
        "demo": demo | {"test_errors": errors},
        "slower": slower,
    }
    out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
