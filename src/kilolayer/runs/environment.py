"""What a figure was measured on: versions, machine, command, date."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from contextlib import suppress
from typing import Any

import numpy
import torch

import kilolayer
from kilolayer.kernels.arithmetic import products
from kilolayer.runs.checkpoints import FORMAT
from kilolayer.training.device import Place
from kilolayer.training.experiment import Kernels, Precision

MUST_AGREE = (
    "kilolayer", "torch", "torch build", "cudnn", "processor", "device", "gpu", "threads",
    "memory format", "precision", "kernels", "products", "processes",
)  # fmt: skip
"""Where these are the same, a resumed run repeats an uninterrupted one bit for bit."""


def environment(
    place: Place, precision: Precision, *, channels_last: bool = False, kernels: Kernels = "plain"
) -> dict[str, Any]:
    """Versions, machine and command, as JSON can hold it. No user or host name: reports are shared."""
    on_gpu = place.device.type == "cuda"
    return {
        "format": FORMAT,
        "kilolayer": kilolayer.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch build": _build(),
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,  # type: ignore[no-untyped-call]
        "numpy": numpy.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(place.device),
        "gpu": torch.cuda.get_device_name(place.device) if on_gpu else None,
        "memory format": "channels last" if channels_last else "channels first",
        "precision": precision,
        "kernels": kernels,
        "products": products() if kernels == "fused" and not on_gpu else None,
        "processes": place.world,
        "command": command(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
    }


def differences(starts: list[dict[str, Any]], now: dict[str, Any]) -> list[str]:
    """In words, which of `MUST_AGREE` an earlier start had otherwise than this one has."""
    found = []
    for name in MUST_AGREE:
        others = [one[name] for one in starts if name in one and _kind(one[name]) != _kind(now[name])]
        if others:
            found.append(f"{name} {now[name]} (was {others[0]})")
    return found


def _kind(value: Any) -> Any:
    """Of a device its type: equal GPUs compute alike."""
    return value.split(":")[0] if isinstance(value, str) and value.startswith("cuda") else value


def command() -> str:
    """The command line, with the program by its name."""
    program = os.path.basename(sys.argv[0])
    name = "kilolayer" if program == "__main__.py" else program
    return " ".join([name, *sys.argv[1:]])


def _build() -> str:
    """PyTorch's commit, and the instructions that it uses on this processor."""
    return f"{str(torch.version.git_version)[:12]} {torch.backends.cpu.get_cpu_capability()}"


def processor() -> str:
    """The processor's name, as the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor()


def peak_memory(place: Place) -> int:
    """Bytes: the most that PyTorch held on the GPU, or the process's largest resident size."""
    if place.device.type == "cuda":
        return torch.cuda.max_memory_allocated(place.device)
    # Where Linux tells it so: in getrusage a process begins with what its parent held.
    with suppress(OSError, StopIteration), open("/proc/self/status", encoding="utf-8") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
    try:
        import resource
    except ImportError:  # no such module on Windows
        return 0
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024
