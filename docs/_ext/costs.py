"""Below a block of commands: what each takes, as benchmarks/documentation.py has measured it."""

from __future__ import annotations

import json
import re
import shlex
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes

MEASURED = Path(__file__).parents[2] / "results" / "documentation.json"


@cache
def seconds() -> dict[str, float]:
    """Processor seconds of every command that was measured."""
    if not MEASURED.exists():
        return {}
    pages = json.loads(MEASURED.read_text(encoding="utf-8"))["pages"]
    return {line: row["processor_seconds"] for page in pages.values() for line, row in page.items()}


def add(app: Any, tree: nodes.document) -> None:
    """Adds a line below each block whose commands were all measured."""
    for block in list(tree.findall(nodes.literal_block)):
        if block.get("language") not in {"sh", "bash", "console"}:
            continue
        taken = [seconds().get(line) for line in _commands(block.astext())]
        if taken and None not in taken:
            text = "; ".join(_shown(number) for number in taken if number is not None)
            block.parent.insert(
                block.parent.index(block) + 1,
                nodes.paragraph("", f"Processor time: {text}.", classes=["cost"]),
            )


def _commands(text: str) -> list[str]:
    lines = text.replace("\\\n", " ").splitlines()
    if any(line.startswith("$ ") for line in lines):
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    found = []
    for line in lines:
        with suppress(ValueError):  # part of a longer script
            found.append(" ".join(shlex.split(re.sub(r"^\s*#.*", "", line), comments=True)))
    return [line for line in found if line]


def _shown(number: float) -> str:
    return "less than 1 s" if number < 1 else f"{number:.0f} s" if number < 90 else f"{number / 60:.0f} min"


def setup(app: Any) -> dict[str, bool]:
    app.connect("doctree-read", add)
    return {"parallel_read_safe": True}
