"""The device to compute on, its threads, and equal bits from equal runs there."""

from __future__ import annotations

import threading

import torch

from kilolayer.errors import InputError

MAX_THREADS = 1024


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" is the first GPU, or the CPU.

    Raises `InputError` where the machine does not have it.

    >>> choose_device("cpu")
    device(type='cpu')
    """
    _check_processor()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {name!r}; allowed: auto, cpu, cuda, cuda:0, …") from None
    num_gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= num_gpus:
        gpus = f"{num_gpus} GPUs" if num_gpus else "no GPU that PyTorch can use"
        raise InputError(f"device {name!r} is missing: this machine has {gpus}; use --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {name!r} is not supported; allowed: auto, cpu, cuda, cuda:0, …")
    return device


def _check_processor() -> None:
    """PyTorch reads the processor at the first conversion to fp16, which may come after the training."""
    try:
        torch.zeros(1).to(torch.float16)
    except RuntimeError as error:
        reason = f"PyTorch cannot read what this processor is ({error}); mount /proc and /sys"
        raise InputError(reason) from None


def check_threads(threads: int) -> None:
    """Raises `InputError` for a number of CPU threads that can only be a slip, or that cannot be started.

    OpenMP would end the process where the system refuses it a thread.
    """
    if not 1 <= threads <= MAX_THREADS:
        raise InputError(f"--threads is {threads}; allowed: a whole number from 1 to {MAX_THREADS}")
    started, end = 1, threading.Event()
    try:
        while started < threads:
            threading.Thread(target=end.wait, daemon=True).start()
            started += 1
    except RuntimeError:
        raise InputError(
            f"this machine allows {started} of {threads} threads; take --threads {started}, or allow more "
            "(ulimit -u, or the container's limit of processes)"
        ) from None
    finally:
        end.set()


def make_deterministic(device: torch.device) -> None:
    """Makes equal runs on a GPU equal bit for bit: cuDNN takes algorithms that add up in one order."""
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
