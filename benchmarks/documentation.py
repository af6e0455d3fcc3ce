"""What each command in README.md and docs/ takes: processor seconds, memory, and what it printed.

    python benchmarks/documentation.py [PAGE …]

Follows the pages as tests/test_documentation.py does, but each command is a process of its own. With pages,
only theirs are measured anew. Writes results/documentation.json, from which the site prints the times.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

import torch

import kilolayer
from kilolayer.bench.machine import describe_machine

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "results" / "documentation.json"
LINES = 40
sys.path.insert(0, str(ROOT / "tests"))

from documentation_blocks import PAGES, Reader, blocks  # noqa: E402


class Measuring(Reader):
    """Follows a page and writes down what each command takes."""

    rows: dict[str, object]

    def _command(self, line: str) -> tuple[int, str]:
        before, began = getrusage(RUSAGE_CHILDREN), time.monotonic()
        status, text = self._bash(line)
        after = getrusage(RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.rows[" ".join(shlex.split(line, comments=True))] = {
            "processor_seconds": round(seconds, 1),
            "wall_seconds": round(time.monotonic() - began, 1),
            "status": status,
            "output": text.replace(f"{self.folder}/", "").splitlines()[-LINES:],
        }
        return status, text


def measured(page: Path) -> dict[str, object]:
    """The page's commands with what they take."""
    with tempfile.TemporaryDirectory() as name:
        reader = Measuring.at(Path(name))
        reader.rows = {}
        os.chdir(name)
        for block in blocks(page):
            reader.follow(block)
        os.chdir(ROOT)
    return reader.rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pages", nargs="*", type=Path)
    pages = [page.absolute() for page in parser.parse_args().pages]
    found = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {"pages": {}}
    for page in pages or PAGES:
        found["pages"][str(page.relative_to(ROOT))] = measured(page)
        print(page.relative_to(ROOT), flush=True)
        head = {
            "command": "python benchmarks/documentation.py",
            "kilolayer": kilolayer.__version__,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "machine": describe_machine(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        RESULT.write_text(json.dumps(head | {"pages": found["pages"]}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
