"""Versions, devices and limits for a bug report. It names no user, no host and no folder."""

from __future__ import annotations

import re
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from kilolayer.data.pictures import inspection_cache
from kilolayer.kernels import mul_dtype, unavailable_reason
from kilolayer.runs.start_environment import environment_record
from kilolayer.system.memory_limit import available_memory
from kilolayer.system.message_text import gigabytes
from kilolayer.system.ranks import is_distributed
from kilolayer.training import DistributedContext, choose_precision

LEFT_OUT = (
    *("command", "format", "device", "gpu", "precision", "processes", "memory format", "cudnn"),
    *("kernels", "products"),
)
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - looked at only


def describe_environment() -> dict[str, Any]:
    """Everything that can affect a run, by topic."""
    cpu = DistributedContext(torch.device("cpu"))
    environment_facts = environment_record(cpu, choose_precision("auto", cpu.device))
    return {
        "versions and machine": {
            name: value for name, value in environment_facts.items() if name not in LEFT_OUT
        },
        "devices": [_cpu(), *map(_gpu, range(torch.cuda.device_count()))],
        "limits": _limits(),
        "required": _packages(optional=False),
        "optional": _packages(optional=True),
    }


def _cpu() -> dict[str, Any]:
    cpu = torch.device("cpu")
    return {
        "device": "cpu",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "native_bf16": choose_precision("auto", cpu) == "bf16",
        "kernels": f"none: {why}"
        if (why := unavailable_reason(cpu))
        else f"of whole units, in {mul_dtype()}",
        "onednn": torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
        "deterministic": "bit for bit, with the same number of threads",
    }


def _gpu(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    return {
        "device": f"cuda:{index}",
        "name": properties.name,
        "memory": gigabytes(properties.total_memory),
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "native_bf16": torch.cuda.is_bf16_supported(including_emulation=False),
        "nccl": torch.distributed.is_nccl_available(),
        "deterministic": "where PyTorch has a deterministic kernel",
    }


def _limits() -> dict[str, Any]:
    memory = available_memory()
    return {
        "memory_available": gigabytes(memory) if memory is not None else None,
        "shared_memory_free": _free(lambda: SHARED_MEMORY) if SHARED_MEMORY.exists() else None,
        "disk_free_here": _free(Path.cwd),
        "disk_free_temporary": _free(lambda: Path(tempfile.gettempdir())),
        "disk_free_cache": _free(lambda: inspection_cache.cache_path().parent),
        "open_files": _most(resource.RLIMIT_NOFILE),
        "file_size": _most(resource.RLIMIT_FSIZE),
        "processes": _most(resource.RLIMIT_NPROC),
        "gloo": torch.distributed.is_available() and torch.distributed.is_gloo_available(),
        "encoding": f"{sys.getfilesystemencoding()}, output {sys.stdout.encoding}",
        "torchrun": is_distributed(),
    }


def _free(folder: Callable[[], Path]) -> str:
    """The free space of a folder, or why it is unknown."""
    try:
        return gigabytes(shutil.disk_usage(folder()).free)
    except OSError as error:
        return f"none: {error.strerror}"


def _most(limit: int) -> str:
    most = resource.getrlimit(limit)[0]
    return "unlimited" if most == resource.RLIM_INFINITY else f"{most:,}"


def _packages(*, optional: bool) -> dict[str, str]:
    """The versions of kilolayer's required packages, or of its optional ones, from its metadata."""
    versions = {}
    for requirement in _requirements():
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        group = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", requirement)
        if (group is not None) == optional and name != "kilolayer":
            versions[name] = _version(name) + (f" ({group[1]})" if group else "")
    return versions


def _requirements() -> list[str]:
    try:
        return metadata.requires("kilolayer") or []
    except metadata.PackageNotFoundError:  # not installed, but run from its source
        return []


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"
