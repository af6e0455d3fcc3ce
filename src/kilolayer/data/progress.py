"""A progress bar where a person watches: on a terminal, in the first process only."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def watched() -> bool:
    """Whether standard error is a terminal and this is the first process of a run."""
    return sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"


def follow(items: Iterable[tuple[int, T]], total: int | None, what: str) -> Iterator[T]:
    """The second of each pair; the first says how far it brings us towards `total`. No bar without `what`."""
    if not what or not watched():
        yield from (item for _, item in items)
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        for amount, item in items:
            yield item
            bar.advance(task, amount)
