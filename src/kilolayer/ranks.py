"""Which of one run's processes this one is, as torchrun, srun, mpirun or mpiexec say in the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple

from kilolayer.errors import InputError


class Variables(NamedTuple):
    """What a launcher calls the rank among all processes, their number, and both on this machine."""

    rank: str
    world: str
    local_rank: str
    local_world: str


TORCHRUN = Variables("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
LAUNCHERS = (
    Variables("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""),
    Variables("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", ""),
    Variables(
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    Variables("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
MEETING_POINT = ("MASTER_ADDR", "MASTER_PORT")
ADVICE = (
    "start the processes with torchrun --nproc_per_node N -m kilolayer train …, or set RANK, WORLD_SIZE, "
    "MASTER_ADDR and MASTER_PORT for each of them"
)


@dataclass(frozen=True)
class Launch:
    """This process's rank among `world`; the figures of this machine are None where nothing says them."""

    rank: int = 0
    world: int = 1
    local_rank: int | None = None
    local_world: int | None = None


def launch() -> Launch:
    """What the environment says. Raises `InputError` where it says a part only, or contradicts itself.

    A launcher other than torchrun is followed only where it says the same number of processes as
    WORLD_SIZE or, without WORLD_SIZE, where MASTER_ADDR says that the processes are to meet.
    """
    world = _number(TORCHRUN.world, least=1)
    if world is None and all(os.environ.get(name) for name in MEETING_POINT):
        world = next((size for size in map(_size, LAUNCHERS) if size is not None), None)
    launchers = [TORCHRUN, *(names for names in LAUNCHERS if world is not None and _size(names) == world)]
    rank = _first(launchers, 0)
    if world is None or world == 1:
        if rank:
            _refuse_rank(rank, world)
        return Launch()
    if rank is None:
        raise InputError(f"WORLD_SIZE is {world}, but RANK is not set; {ADVICE}")
    if rank >= world:
        _refuse_rank(rank, world)
    _check_meeting_point(world)
    return Launch(rank, world, _first(launchers, 2), _first(launchers, 3))


def leads() -> bool:
    """Whether this process is the one that prints; it is where the environment makes no sense, to say so."""
    try:
        return launch().rank == 0
    except InputError:
        return True


def several() -> bool:
    """Whether this process is one of many."""
    try:
        return launch().world > 1
    except InputError:
        return False


def alone_among() -> int | None:
    """How many processes srun or mpirun started of which each trains a run of its own, where it is so."""
    sizes = [size for size in map(_size, LAUNCHERS) if size is not None and size > 1]
    return sizes[0] if sizes and launch().world == 1 and not os.environ.get("WORLD_SIZE") else None


def _size(names: Variables) -> int | None:
    """The number of processes by this launcher, where it says this one's rank too."""
    return _number(names.world, least=1) if os.environ.get(names.rank) else None


def _first(launchers: list[Variables], which: int) -> int | None:
    """The first of the launchers' values that is set."""
    values = (_number(names[which]) for names in launchers)
    return next((value for value in values if value is not None), None)


def _number(name: str, least: int = 0, most: int | None = None) -> int | None:
    text = os.environ.get(name) if name else None
    if not text:
        return None
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
    if number < least or (most is not None and number > most):
        allowed = f"a whole number from {least}" + (f" to {most}" if most is not None else "")
        raise InputError(f"{name} is {text!r} in the environment; allowed: {allowed}")
    return number


def _refuse_rank(rank: int, world: int | None) -> None:
    size = "WORLD_SIZE is not set" if world is None else f"WORLD_SIZE is {world}"
    allowed = f"allowed: 0 to {world - 1}" if world else ADVICE
    raise InputError(f"RANK is {rank} in the environment, but {size}; {allowed}")


def _check_meeting_point(world: int) -> None:
    missing = [name for name in MEETING_POINT if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"WORLD_SIZE is {world}, but not set: {', '.join(missing)}; set MASTER_ADDR to rank 0's machine "
            "and MASTER_PORT to a free port there, the same for every process, or start them with torchrun"
        )
    _number("MASTER_PORT", least=1, most=65_535)
