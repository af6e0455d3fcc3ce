"""A line that fills while images are read, where a person watches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[tuple[int, T]], total: int | None, title: str) -> Iterator[T]:
    """The second of each pair; the first says how far it brings us to `total`. No line without `what`."""
    if not title:
        yield from (item for _, item in items)
        return
    from kilolayer.system.terminal import ReadingProgress

    with ReadingProgress(title, total) as line:
        for amount, item in items:
            yield item
            line.advance(line.task_id, amount)
