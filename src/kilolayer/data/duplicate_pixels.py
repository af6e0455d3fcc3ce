"""Pictures that are there more than once, by the names of their pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kilolayer.system.message_text import listing

Member = tuple["PixelDigests", int]


@dataclass(frozen=True)
class PixelDigests:
    """The training or the test images: of each the number of its class and the name of its pixels.

    An unreadable one has None for a name.
    """

    name: str
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    digests: tuple[str | None, ...]
    locate: Callable[[int], str]


def find_duplicates(parts: Sequence[PixelDigests]) -> Iterator[tuple[str, str]]:
    """For every picture that is there more than once: what is wrong with that, and where it stands."""
    for members in _groups(parts):
        places = listing([part.locate(i) for part, i in members], 5)
        names = {part.name for part, _ in members}
        if len(names) > 1:
            yield "train_and_test", places
        if len({part.classes[part.labels[i]] for part, i in members}) > 1:
            yield "labels_differ", places
        if len(members) > len(names):
            yield "twice", places


def _groups(parts: Sequence[PixelDigests]) -> Iterator[list[Member]]:
    by_digest: dict[str, list[Member]] = {}
    for part in parts:
        for i, digest in enumerate(part.digests):
            if digest is not None:
                by_digest.setdefault(digest, []).append((part, i))
    return (members for members in by_digest.values() if len(members) > 1)
