"""The rank of this process in its run, as torchrun, srun, mpirun or mpiexec set it in the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple

from kilolayer.errors import InputError


class LauncherVariables(NamedTuple):
    """A launcher's environment variables for rank and number of processes, in all and on this machine."""

    rank: str
    world_size: str
    local_rank: str
    local_world_size: str


TORCHRUN = LauncherVariables("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
LAUNCHERS = (
    LauncherVariables("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""),
    LauncherVariables("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", ""),
    LauncherVariables(
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    LauncherVariables("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
RENDEZVOUS_VARIABLES = ("MASTER_ADDR", "MASTER_PORT")
LAUNCH_ADVICE = (
    "start the processes with torchrun --nproc_per_node N -m kilolayer train …, or set RANK, WORLD_SIZE, "
    "MASTER_ADDR and MASTER_PORT for each of them"
)


@dataclass(frozen=True)
class Launch:
    """This process's rank among `world_size` processes; None for figures of this machine that are not set."""

    rank: int = 0
    world_size: int = 1
    local_rank: int | None = None
    local_world_size: int | None = None


def read_launch() -> Launch:
    """The launch that the environment describes. Raises `InputError` where it is incomplete or contradictory.

    The variables of a launcher other than torchrun count only if it has the same number of processes as
    WORLD_SIZE or, without WORLD_SIZE, if MASTER_ADDR and MASTER_PORT are set.
    """
    world = _read_number(TORCHRUN.world_size, minimum=1)
    if world is None and all(os.environ.get(name) for name in RENDEZVOUS_VARIABLES):
        world = next((size for size in map(_launcher_world_size, LAUNCHERS) if size is not None), None)
    launchers = [
        TORCHRUN,
        *(names for names in LAUNCHERS if world is not None and _launcher_world_size(names) == world),
    ]
    rank = _first_set(launchers, 0)
    if world is None or world == 1:
        if rank:
            _reject_rank(rank, world)
        return Launch()
    if rank is None:
        raise InputError(f"WORLD_SIZE is {world}, but RANK is not set; {LAUNCH_ADVICE}")
    if rank >= world:
        _reject_rank(rank, world)
    _check_rendezvous(world)
    return Launch(rank, world, _first_set(launchers, 2), _first_set(launchers, 3))


def is_main_process() -> bool:
    """Whether this process is the one that prints. In a contradictory environment every process prints."""
    try:
        return read_launch().rank == 0
    except InputError:
        return True


def is_distributed() -> bool:
    """Whether this process is one of several."""
    try:
        return read_launch().world_size > 1
    except InputError:
        return False


def num_separate_processes() -> int | None:
    """How many processes srun or mpirun started that each train a run of their own; None if they do not."""
    sizes = [size for size in map(_launcher_world_size, LAUNCHERS) if size is not None and size > 1]
    return sizes[0] if sizes and read_launch().world_size == 1 and not os.environ.get("WORLD_SIZE") else None


def _launcher_world_size(names: LauncherVariables) -> int | None:
    """The number of processes of this launcher, if it has set this one's rank too."""
    return _read_number(names.world_size, minimum=1) if os.environ.get(names.rank) else None


def _first_set(launchers: list[LauncherVariables], index: int) -> int | None:
    """The first launcher's value that is set."""
    values = (_read_number(names[index]) for names in launchers)
    return next((value for value in values if value is not None), None)


def _read_number(name: str, minimum: int = 0, maximum: int | None = None) -> int | None:
    text = os.environ.get(name) if name else None
    if not text:
        return None
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
    if number < minimum or (maximum is not None and number > maximum):
        allowed = f"a whole number from {minimum}" + (f" to {maximum}" if maximum is not None else "")
        raise InputError(f"{name} is {text!r} in the environment; allowed: {allowed}")
    return number


def _reject_rank(rank: int, world_size: int | None) -> None:
    size = "WORLD_SIZE is not set" if world_size is None else f"WORLD_SIZE is {world_size}"
    allowed = f"allowed: 0 to {world_size - 1}" if world_size else LAUNCH_ADVICE
    raise InputError(f"RANK is {rank} in the environment, but {size}; {allowed}")


def _check_rendezvous(world_size: int) -> None:
    missing = [name for name in RENDEZVOUS_VARIABLES if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"WORLD_SIZE is {world_size}, but not set: {', '.join(missing)}; set MASTER_ADDR to rank 0's "
            "machine and MASTER_PORT to a free port there, the same for every process, or start them with "
            "torchrun"
        )
    _read_number("MASTER_PORT", minimum=1, maximum=65_535)
