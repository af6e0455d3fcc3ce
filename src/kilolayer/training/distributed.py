"""The ranks of one run: which device each has, how they meet, and what they do together."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from kilolayer.errors import InputError, KilolayerError, RankError
from kilolayer.system.ranks import RENDEZVOUS_VARIABLES, Launch, num_separate_processes, read_launch
from kilolayer.training.device import check_threads, choose_device

RANK_TIMEOUT_SECONDS = 600
SYNC_STEPS = 8
"""The ranks ask one another once in so many steps, since asking takes time."""

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class DistributedContext:
    """This process's device, and its rank among the `world_size` processes of the run.

    >>> context = DistributedContext(torch.device("cpu"))
    >>> context.is_main, context.any(False)
    (True, False)
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and shows progress."""
        return self.rank == 0

    def all_reduce(self, sums: Tensor) -> Tensor:
        """Adds `sums` up over all ranks, in place, and returns it."""
        if self.world_size > 1:
            dist.all_reduce(sums)
        return sums

    def is_sync_step(self, iteration: int) -> bool:
        """Whether the ranks ask one another after this iteration."""
        return self.world_size == 1 or iteration % SYNC_STEPS == 0

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank. Every rank must call it."""
        if self.world_size == 1:
            return flag
        return bool(self.all_reduce(torch.tensor([float(flag)], device=self.device)).item())


@contextmanager
def distributed_context(device: str = "auto") -> Iterator[DistributedContext]:
    """This process's context: joins the other ranks where a launcher started it, and leaves them at the end.

    Raises `RankError` where the ranks do not meet, or where one is lost on the way.
    """
    launch = read_launch()
    check_threads(torch.get_num_threads())
    if launch.world_size == 1:
        _warn_if_separate()
        yield DistributedContext(choose_device(device))
        return
    chosen = choose_device(device)
    if chosen.type == "cuda":
        chosen = _local_gpu(launch)
        torch.cuda.set_device(chosen)
    _join_process_group("nccl" if chosen.type == "cuda" else "gloo", launch, _rank_timeout())
    try:
        yield DistributedContext(chosen, launch.rank, launch.world_size)
    except RuntimeError as error:
        if not _is_lost_rank(error):
            raise
        raise RankError(
            "another rank exited or timed out; see its output for the cause; one that was killed without a "
            "word probably ran out of memory (see: dmesg): take a smaller --batch-size"
        ) from None
    # After an exception the others may be gone, and leaving them would wait for them.
    dist.destroy_process_group()


def on_all_ranks(context: DistributedContext, act: Callable[[], T]) -> T:
    """`act()` on every rank. An error on one of them is raised on all, so that none waits for it."""
    if context.world_size == 1:
        return act()
    result: T | None = None
    failure: KilolayerError | None = None
    try:
        result = act()
    except KilolayerError as error:
        failure = error
    for raised in _gather(context, failure):
        if raised is not None:
            raise raised
    return result  # type: ignore[return-value]


def on_main_rank(context: DistributedContext, act: Callable[[], str]) -> str:
    """`act()` on the main rank only; every rank gets the text that it returns."""
    text = on_all_ranks(context, lambda: act() if context.is_main else "")
    return _gather(context, text)[0]


def _gather(context: DistributedContext, value: T) -> list[T]:
    """The values of all ranks, in their order."""
    if context.world_size == 1:
        return [value]
    values: list[T | None] = [None] * context.world_size
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def _is_lost_rank(error: RuntimeError) -> bool:
    """Whether gloo or NCCL says that another rank is gone."""
    phrases = ("Connection closed by peer", "Connection reset by peer", "Timed out", "Broken pipe", "timeout")
    return isinstance(error, dist.DistError) or any(phrase in str(error) for phrase in phrases)


def _join_process_group(backend: str, launch: Launch, timeout: timedelta) -> None:
    """Meets the other ranks.

    A restart by torchrun uses a new prefix: its store still holds the addresses of the ranks that ended, and
    a rank that reads them waits in vain (seen with torch 2.13). SIGTERM ends the process at once here: the
    wait does not hear signals, and there is nothing to save yet.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL) if in_main_thread else None
    try:
        store, rank, world_size = next(rendezvous("env://", launch.rank, launch.world_size, timeout=timeout))
        attempt = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        dist.init_process_group(backend, store=attempt, rank=rank, world_size=world_size, timeout=timeout)
    except dist.DistError as error:
        where = ":".join(os.environ[name] for name in RENDEZVOUS_VARIABLES)
        reason = str(error).partition("\n")[0]
        raise RankError(
            f"rank {launch.rank} of {launch.world_size} did not meet the others at {where} ({reason}); "
            "MASTER_ADDR and MASTER_PORT must name rank 0's machine and a free port there, and all processes "
            "must be started"
        ) from None
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, handler)


def _rank_timeout() -> timedelta:
    text = os.environ.get("KILOLAYER_TIMEOUT") or str(RANK_TIMEOUT_SECONDS)
    try:
        return timedelta(seconds=float(text))
    except (ValueError, OverflowError):
        raise InputError(f"KILOLAYER_TIMEOUT is {text!r} in the environment; allowed: seconds") from None


def _local_gpu(launch: Launch) -> torch.device:
    """This rank's GPU. Every rank refuses what one of them must refuse, so that the one that prints does."""
    local_rank = launch.local_rank
    if local_rank is None and torch.cuda.device_count() > 1:
        raise InputError(
            f"WORLD_SIZE is {launch.world_size}, but LOCAL_RANK, which says which of this machine's "
            f"{torch.cuda.device_count()} GPUs is this process's, is not set; set it, or start the processes "
            "with torchrun"
        )
    choose_device(f"cuda:{(launch.local_world_size or 1) - 1}")
    return choose_device(f"cuda:{local_rank or 0}")


def _warn_if_separate() -> None:
    processes = num_separate_processes()
    if processes is not None:
        logger.warning(
            "%d processes were started side by side, and each trains a run of its own; for one run of all of "
            "them set MASTER_ADDR and MASTER_PORT (rank 0's machine and a free port there)",
            processes,
        )
