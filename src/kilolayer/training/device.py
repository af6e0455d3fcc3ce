"""Where and how precisely to compute: one CPU, one GPU, or one process of many under torchrun."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from kilolayer.errors import InputError
from kilolayer.training.experiment import Precision


@dataclass(frozen=True)
class Place:
    """This process's device and its rank among `world` processes."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def total(self, sums: Tensor) -> Tensor:
        """`sums` added up over all processes."""
        if self.world > 1:
            dist.all_reduce(sums)
        return sums

    def meets(self, iteration: int) -> bool:
        """Whether the processes ask one another at this iteration: now and then, for that takes time."""
        return self.world == 1 or iteration % 8 == 0

    def agree(self, flag: bool) -> bool:
        """Whether `flag` is set in any process."""
        if self.world == 1:
            return flag
        return bool(self.total(torch.tensor([float(flag)], device=self.device)).item())


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" is the first GPU, or the CPU. `InputError` where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {name!r}; allowed: auto, cpu, cuda, cuda:0, …") from None
    there = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= there:
        found = f"{there} GPUs" if there else "no GPU that PyTorch can use"
        raise InputError(f"device {name!r} is not there: this machine has {found}; use --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {name!r} is not supported; allowed: auto, cpu, cuda, cuda:0, …")
    return device


def choose_precision(name: str, device: torch.device) -> Precision:
    """ "auto" is bf16 where the hardware multiplies it natively, else fp32."""
    if name != "auto":
        if name not in ("fp32", "bf16"):
            raise InputError(f"precision is {name!r}; allowed: auto, fp32, bf16")
        return "bf16" if name == "bf16" else "fp32"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


@contextmanager
def place(device: str = "auto") -> Iterator[Place]:
    """This process's `Place`: joins the others where torchrun started it, and leaves them at the end."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Place(choose_device(device))
        return
    local = int(os.environ["LOCAL_RANK"])
    chosen = choose_device(device)
    if chosen.type == "cuda":
        # Asked of every process alike, so that all of them refuse, the one that prints among them.
        choose_device(f"cuda:{int(os.environ.get('LOCAL_WORLD_SIZE', world)) - 1}")
        chosen = choose_device(f"cuda:{local}")
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Place(chosen, dist.get_rank(), world)
    finally:
        dist.destroy_process_group()
