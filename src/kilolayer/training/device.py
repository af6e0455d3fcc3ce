"""Where and how precisely to compute: one CPU, one GPU, or one process of many under torchrun."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from kilolayer.errors import InputError
from kilolayer.kernels import fused_share, unavailable_reason
from kilolayer.kernels.compute_dtype import multiplies_bf16_faster
from kilolayer.networks import Network
from kilolayer.system.ranks import RENDEZVOUS_VARIABLES, Launch, num_separate_processes, read_launch
from kilolayer.training.experiment import EvaluationMode, Kernels, Precision

RANK_TIMEOUT_SECONDS = 600

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DistributedContext:
    """This process's device and its rank among `world` processes."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def all_reduce(self, sums: Tensor) -> Tensor:
        """`sums` added up over all processes."""
        if self.world_size > 1:
            dist.all_reduce(sums)
        return sums

    def is_sync_step(self, iteration: int) -> bool:
        """Whether the processes ask one another at this iteration: now and then, for that takes time."""
        return self.world_size == 1 or iteration % 8 == 0

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process."""
        if self.world_size == 1:
            return flag
        return bool(self.all_reduce(torch.tensor([float(flag)], device=self.device)).item())


def check_threads(threads: int) -> None:
    """Raises `InputError` for a number of CPU threads that can only be a slip."""
    if not 1 <= threads <= 1024:
        raise InputError(f"--threads is {threads}; allowed: a whole number from 1 to 1024")


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" is the first GPU, or the CPU. `InputError` where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {name!r}; allowed: auto, cpu, cuda, cuda:0, …") from None
    num_gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= num_gpus:
        gpus = f"{num_gpus} GPUs" if num_gpus else "no GPU that PyTorch can use"
        raise InputError(f"device {name!r} is not there: this machine has {gpus}; use --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {name!r} is not supported; allowed: auto, cpu, cuda, cuda:0, …")
    return device


def choose_precision(name: str, device: torch.device, network: Network | None = None) -> Precision:
    """ "auto" is bf16 where it is faster than fp32: where the hardware multiplies it faster, and for a
    `network` most of which the kernels compute on this CPU, whichever way they multiply; else fp32.
    """
    if name != "auto":
        if name not in ("fp32", "bf16"):
            raise InputError(f"precision is {name!r}; allowed: auto, fp32, bf16")
        return "bf16" if name == "bf16" else "fp32"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if network is not None and unavailable_reason(device) is None and fused_share(network) > 0.5:
        return "bf16"
    return "bf16" if multiplies_bf16_faster() else "fp32"


def make_deterministic(device: torch.device) -> None:
    """Makes equal runs on a GPU equal bit for bit: cuDNN takes algorithms that add up in one order."""
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False


def choose_kernels(
    name: str,
    device: torch.device,
    precision: Precision,
    *,
    channels_last: bool,
    is_compiled: bool = False,
    trunk_frozen: bool = False,
) -> Kernels:
    """ "auto" is fused on a CPU with kernels for it, else plain. `InputError` where "fused" cannot be."""
    if name not in ("auto", "plain", "fused"):
        raise InputError(f"kernels is {name!r}; allowed: auto, plain, fused")
    if name == "plain":
        return "plain"
    if name == "auto" and device.type == "cuda":
        return "plain"  # until Triton's kernels have been measured on a GPU
    why = kernels_unavailable_reason(device, precision, channels_last, is_compiled, trunk_frozen)
    if why and name == "fused":
        raise InputError(f"there are no fused kernels here: {why}; use --kernels plain")
    return "plain" if why else "fused"


def evaluation_mode_for(kernels: Kernels) -> EvaluationMode:
    """How a run with these kernels is evaluated: by its layers, or folded, which is faster."""
    return "folded" if kernels == "fused" else "plain"


def computation_options(
    device: torch.device, precision: str = "auto", kernels: str = "auto"
) -> dict[str, Any]:
    """The fields of an `Experiment` that say how it is computed, as `kilolayer train` chooses them."""
    chosen = choose_precision(precision, device)
    channels_last = chosen == "bf16"
    chosen_kernels = choose_kernels(kernels, device, chosen, channels_last=channels_last)
    return {
        "precision": chosen,
        "channels_last": channels_last,
        "kernels": chosen_kernels,
        "evaluation": evaluation_mode_for(chosen_kernels),
    }


def kernels_unavailable_reason(
    device: torch.device,
    precision: Precision,
    channels_last: bool,
    is_compiled: bool,
    trunk_frozen: bool = False,
) -> str | None:
    """Why no kernels can compute a training there, or None where they can.

    frozen: only the classifier learns.
    """
    if trunk_frozen:
        return "the trunk is frozen, and they compute units that learn"
    if precision != "bf16" or not channels_last:
        return "they compute in bf16 with channels last"
    return "torch.compile makes its own" if is_compiled else unavailable_reason(device)


def _is_lost_rank(error: RuntimeError) -> bool:
    """Whether it says so: gloo's words, and those of PyTorch about NCCL."""
    words = ("Connection closed by peer", "Connection reset by peer", "Timed out", "Broken pipe", "timeout")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


def _join_process_group(backend: str, launch: Launch, timeout: timedelta) -> None:
    """Meets the others. Started again by torchrun, under another name: the addresses of those that ended
    stand in its store still, and whoever reads them waits in vain (seen with torch 2.13).

    Waiting here does not hear signals, and there is nothing to save: SIGTERM ends it at once.
    """
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL) if main else None
    try:
        store, rank, world = next(rendezvous("env://", launch.rank, launch.world_size, timeout=timeout))
        attempt = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        dist.init_process_group(backend, store=attempt, rank=rank, world_size=world, timeout=timeout)
    except dist.DistError as error:
        where = ":".join(os.environ[name] for name in RENDEZVOUS_VARIABLES)
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"rank {launch.rank} of {launch.world_size} did not meet the others at {where} ({reason}); MASTER_ADDR and "
            "MASTER_PORT must name rank 0's machine and a free port there, and all processes must be started"
        ) from None
    finally:
        if main:
            signal.signal(signal.SIGTERM, handler)


def _rank_timeout() -> timedelta:
    text = os.environ.get("KILOLAYER_TIMEOUT") or str(RANK_TIMEOUT_SECONDS)
    try:
        return timedelta(seconds=float(text))
    except (ValueError, OverflowError):
        raise InputError(f"KILOLAYER_TIMEOUT is {text!r} in the environment; allowed: seconds") from None


def _local_gpu(launch: Launch) -> torch.device:
    """This rank's GPU. All refuse what one of them must, so that the one that prints does."""
    local = launch.local_rank
    if local is None and torch.cuda.device_count() > 1:
        raise InputError(
            f"WORLD_SIZE is {launch.world_size}, but LOCAL_RANK, which says which of this machine's "
            f"{torch.cuda.device_count()} GPUs is this process's, is not set; set it, or start the processes "
            "with torchrun"
        )
    choose_device(f"cuda:{(launch.local_world_size or 1) - 1}")
    return choose_device(f"cuda:{local or 0}")


def _warn_if_separate() -> None:
    processes = num_separate_processes()
    if processes is not None:
        logger.warning(
            "%d processes were started side by side, and each trains a run of its own; for one run of all of "
            "them set MASTER_ADDR and MASTER_PORT (rank 0's machine and a free port there)",
            processes,
        )


@contextmanager
def distributed_context(device: str = "auto") -> Iterator[DistributedContext]:
    """This process's `Place`: joins the others where a launcher started it, and leaves them at the end."""
    launch = read_launch()
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
        raise InputError("another process of this run has ended or does not answer; it says why") from None
    # Behind an exception the others may be gone, and taking leave of them would wait for them.
    dist.destroy_process_group()
