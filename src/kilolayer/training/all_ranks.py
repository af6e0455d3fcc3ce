"""Calls that all ranks make together: an error in one rank ends all of them with the same message."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from kilolayer.errors import InputError
from kilolayer.training.device import DistributedContext

T = TypeVar("T")


def on_all_ranks(context: DistributedContext, act: Callable[[], T]) -> T:
    """Calls `act` on every rank. An `InputError` on one rank is raised on all, so that none waits."""
    result: T | None = None
    failure: str | None = None
    try:
        result = act()
    except InputError as error:
        if context.world_size == 1:
            raise
        failure = str(error)
    for reason in _gather(context, failure):
        if reason is not None:
            raise InputError(reason)
    return result  # type: ignore[return-value]


def on_main_rank(context: DistributedContext, act: Callable[[], str]) -> str:
    """Calls `act` on the main rank only, and returns its text on all ranks."""
    text = on_all_ranks(context, lambda: act() if context.is_main else "")
    return str(_gather(context, text)[0])


def _gather(context: DistributedContext, text: str | None) -> list[str | None]:
    if context.world_size == 1:
        return [text]
    import torch.distributed as dist

    texts: list[str | None] = [None] * context.world_size
    dist.all_gather_object(texts, text)
    return texts
