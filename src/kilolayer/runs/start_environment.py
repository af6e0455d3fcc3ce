"""The environment of a run's start: versions, machine, command, date."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy
import torch

import kilolayer
from kilolayer.kernels import mul_dtype
from kilolayer.runs.checkpoints import FORMAT
from kilolayer.training.distributed import DistributedContext
from kilolayer.training.experiment import Kernels, Precision

BITWISE_RELEVANT = (
    "kilolayer", "torch", "torch build", "cudnn", "processor", "device", "gpu", "threads",
    "memory format", "precision", "kernels", "products", "processes", "limited to",
)  # fmt: skip
"""If these are equal, a resumed run gives the same bits as an uninterrupted one."""
_LIMITING_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")
"""Variables that hide instructions of the processor from PyTorch's libraries, which then add up otherwise."""


def environment_record(
    context: DistributedContext,
    precision: Precision,
    *,
    channels_last: bool = False,
    kernels: Kernels = "plain",
) -> dict[str, Any]:
    """Versions, machine and command, as JSON can hold them. Reports are shared: no user or host name.

    >>> context = DistributedContext(torch.device("cpu"))
    >>> environment_record(context, "fp32")["memory format"]
    'channels first'
    """
    on_gpu = context.device.type == "cuda"
    return {
        "format": FORMAT,
        "kilolayer": kilolayer.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch build": _torch_build(),
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,  # type: ignore[no-untyped-call]
        "numpy": numpy.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(context.device),
        "gpu": torch.cuda.get_device_name(context.device) if on_gpu else None,
        "memory format": "channels last" if channels_last else "channels first",
        "precision": precision,
        "kernels": kernels,
        "products": mul_dtype() if kernels == "fused" and not on_gpu else None,
        "processes": context.world_size,
        "limited to": _limits_of_processor(),
        "command": current_command(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
    }


def environment_differences(starts: Sequence[Mapping[str, Any]], environment: Mapping[str, Any]) -> list[str]:
    """The entries of `BITWISE_RELEVANT` in which an earlier start differs from this one, in words.

    >>> start = dict.fromkeys(BITWISE_RELEVANT) | {"threads": 1}
    >>> environment_differences([start], start | {"threads": 2})
    ['threads 2 (was 1)']
    """
    differences = []
    for name in BITWISE_RELEVANT:
        earlier = [
            start[name]
            for start in starts
            if name in start
            and _without_device_index(start[name]) != _without_device_index(environment[name])
        ]
        if earlier:
            differences.append(f"{name} {environment[name] or 'nothing'} (was {earlier[0] or 'nothing'})")
    return differences


def _without_device_index(value: Any) -> Any:
    """A device's type without its index: GPUs of one machine give the same bits."""
    return value.split(":")[0] if isinstance(value, str) and value.startswith("cuda") else value


def current_command() -> str:
    """The command line of this process, with the program's name in place of its path."""
    program = os.path.basename(sys.argv[0])
    name = "kilolayer" if program == "__main__.py" else program
    return " ".join([name, *sys.argv[1:]])


def _torch_build() -> str:
    """PyTorch's commit, and the instruction set that it uses on this processor."""
    return f"{str(torch.version.git_version)[:12]} {torch.backends.cpu.get_cpu_capability()}"


def _limits_of_processor() -> str:
    """The settings in the environment that hide instructions of the processor."""
    return " ".join(f"{name}={os.environ[name]}" for name in _LIMITING_VARIABLES if os.environ.get(name))


def processor_name() -> str:
    """The processor's name, as the system reports it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor()


def peak_memory_bytes(context: DistributedContext) -> int:
    """Bytes: the most that PyTorch held on the GPU, or the process's largest resident size."""
    if context.device.type == "cuda":
        return torch.cuda.max_memory_allocated(context.device)
    # Linux; getrusage would begin with the peak of the parent process.
    with suppress(OSError, StopIteration), open("/proc/self/status", encoding="utf-8") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
    try:
        import resource
    except ImportError:  # no such module on Windows
        return 0
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024
