"""Docstrings are plain text, not reStructuredText: this turns each into markup that autodoc can parse.

`Code` stands in single backquotes. An indented block is code, or below a line such as "Raises:" a list.
"""

from __future__ import annotations

import ast
import re
import sys
from importlib import import_module
from typing import Any

from docutils import nodes

QUOTED = re.compile(r"(`+[^`]*`+)")
CODE = re.compile(r"\s*((import|from|with|for) |[\w., ()\[\]]+ = |[\w.]+\(|>>>)")


def process(app: Any, what: str, name: str, found: object, options: object, lines: list[str]) -> None:
    blocks = re.split(r"\n\s*\n", "\n".join(lines).strip("\n"))
    kinds = ["", *(what for _ in blocks[1:])]
    lines[:] = [
        line
        for block, kind in zip(blocks, kinds, strict=True)
        for line in [*_markup(block.splitlines(), kind), ""]
    ]


def _markup(rows: list[str], what: str) -> list[str]:
    """A paragraph; or a paragraph and the indented block below it."""
    if not rows or rows[0].lstrip().startswith((":", ".. ", ">>>")):
        return rows
    if rows[0].startswith(" ") or (what == "module" and CODE.match(rows[0])):
        return _code(rows)
    flush = next(
        (n for n, row in enumerate(rows) if row.startswith("  ") and _is_new(rows[n - 1])), len(rows)
    )
    text, below = rows[:flush], rows[flush:]
    head = [_escaped(row.strip() if not row.startswith("- ") else row) for row in text]
    if not below:
        return head
    end = next((n for n, row in enumerate(below) if not row.startswith("  ")), len(below))
    block = _items(below[:end]) if _is_section(text[-1]) else _code(below[:end])
    return [*head, "", *block, "", *_markup(below[end:], what)]


def _items(rows: list[str]) -> list[str]:
    """A list of `name: text`; a row that is indented further continues the item above it."""
    indent = min(len(row) - len(row.lstrip()) for row in rows)
    items: list[str] = []
    for row in rows:
        if items and row[indent:].startswith(" "):
            items[-1] += f" {row.strip()}"
        else:
            items.append(row.strip())
    named = (re.fullmatch(r"(\*{0,2}\w+): (.*)", item) for item in items)
    return [
        f"- ``{match[1]}``: {_escaped(match[2])}" if match else f"- {_escaped(item)}"
        for item, match in zip(items, named, strict=True)
    ]


def _is_new(row: str) -> bool:
    """Whether an indented row below this one begins a block; below a list's item it goes on with the item."""
    return not row.startswith(("- ", "  "))


def _is_section(row: str) -> bool:
    return re.fullmatch(r"[A-Z]\w+:", row) is not None


def _code(rows: list[str]) -> list[str]:
    indent = min(len(row) - len(row.lstrip()) for row in rows)
    code = [row[indent:] for row in rows]
    return [f".. code-block:: {_language(code)}", "", *("   " + row for row in code)]


def _language(code: list[str]) -> str:
    """Equations stand in docstrings as Python does."""
    try:
        ast.parse("\n".join(code))
    except SyntaxError:
        return "text"
    return "python"


def _escaped(line: str) -> str:
    parts = QUOTED.split(line)
    return "".join(
        part if part.startswith("`") else re.sub(r"([*|\\]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts
    )


def skip(app: Any, what: str, name: str, found: object, skipped: bool, options: object) -> bool | None:
    """A name that two packages export is described where it is defined."""
    here = app.env.current_document.autodoc_module if what == "module" else ""
    home = _home(found, name)
    return True if here and home and home != here else None


def bases(app: Any, name: str, found: object, options: object, parents: list[Any]) -> None:
    """Names the base classes that a reader of this site finds here."""
    parents[:] = [parent for parent in parents if _home(parent, parent.__name__)] or [object]


def tidy(app: Any, tree: nodes.document) -> None:
    """Removes the line that says that a class extends `object`."""
    for paragraph in list(tree.findall(nodes.paragraph)):
        if paragraph.astext() == "Bases: object":
            paragraph.parent.remove(paragraph)


def _home(found: object, name: str) -> str | None:
    """The innermost package that defines and exports this object."""
    module = getattr(found, "__module__", None) or ""
    while module.startswith("kilolayer."):
        module = module.rpartition(".")[0]
        if name in getattr(sys.modules.get(module) or import_module(module), "__all__", ()):
            return module
    return None


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-bases", bases)
    app.connect("doctree-read", tidy)
    return {"parallel_read_safe": True}
