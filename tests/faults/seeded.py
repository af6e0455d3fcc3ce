"""What is planted into a command before it runs: known faults that the suite must see, and harm at a step.

SEEDED=NAME               one of `FAULTS`
SIGNAL_AT_STEP=K:S        signal S as soon as step K is done
POISON=WHAT:K:VALUE       VALUE (nan or inf) into WHAT at step K: a tensor's name, or gradient, logit, pixel,
                          evaluation
RANK_FAULT=R:K:HOW        in rank R at step K (0: before anything else): kill, halt, raise, memory or a signal
                          such as SIGHUP; with FAULT_ONCE=FILE only in the process that can make this file
LIMIT_FSIZE, LIMIT_AS     bytes: the largest file; how much more address space than now
SHORT=STAGE:BYTES         the same from a stage on: step, evaluation, save or end
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any


def no_fsync() -> None:
    os.fsync = lambda descriptor: None


def no_folder_fsync() -> None:
    from kilolayer.system.opened_folder import OpenedFolder

    OpenedFolder.sync = lambda self: None


def in_place() -> None:
    from kilolayer.system.opened_folder import OpenedFolder

    def replaced(folder: Any, name: str, content: bytes) -> None:
        with open(os.open(**folder._at(name), flags=os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        folder.sync()

    OpenedFolder.write = replaced


def generators_not_restored() -> None:
    """The order comes from a generator that begins anew with every start."""
    import numpy as np
    import torch

    from kilolayer.training import trainer

    generator, keyed = np.random.default_rng(0), trainer.batch_spec

    def drawn(*args: Any) -> Any:
        n, *rest, positions, device = args
        return keyed(n, *rest, torch.from_numpy(generator.permutation(n)[: len(positions)]), device)

    trainer.batch_spec = drawn


def metrics_not_cut() -> None:
    """A state is taken to belong to whatever metrics lie there."""
    from kilolayer.runs import checkpoints

    checkpoints._metrics_of = lambda path, manifest, metrics: metrics


def seal_not_checked() -> None:
    from kilolayer.runs import checkpoints

    checkpoints._sha256 = lambda content: "0" * 64


def tensors_after_the_seal() -> None:
    """The seal is written first, so a state can be sealed whose tensors are not there."""
    from kilolayer.system.opened_folder import OpenedFolder

    write, held = OpenedFolder.write, dict[str, bytes]()

    def turned(folder: Any, name: str, content: bytes) -> None:
        if folder.path.name == "checkpoints" and name.endswith(".safetensors"):
            held[name] = content
            return
        write(folder, name, content)
        if folder.path.name == "checkpoints":
            for each in list(held):
                write(folder, each, held.pop(each))

    OpenedFolder.write = turned


def signal_forgotten() -> None:
    """The handler does nothing: the run goes on to its end."""
    from kilolayer.system import stopping

    stopping.StopRequest.handle_signal = lambda self, number, frame: None


def no_lock() -> None:
    from kilolayer.system.opened_folder import OpenedFolder

    OpenedFolder.lock = lambda self: None


def not_checked_for_numbers() -> None:
    from kilolayer.training.trainer import Trainer

    Trainer.check_finite = Trainer.check_loss = lambda self: None


# Harm at a step


def at_step(step: int, before: Callable[[Any], None], after: Callable[[Any], None]) -> None:
    """Calls `before` and `after` with the training around its step number `step`, counted from 1."""
    from kilolayer.training.trainer import Trainer

    real = Trainer.take_step

    def stepped(training: Any) -> None:
        due = training.state.iteration + 1 == step
        if due:
            before(training)
        real(training)
        if due:
            after(training)

    Trainer.take_step = stepped


def nothing(training: Any) -> None:
    pass


def signal_at_step(step: int, number: int) -> None:
    at_step(step, nothing, lambda training: os.kill(os.getpid(), number))


def poison(what: str, step: int, value: float) -> None:
    """One entry of a tensor; of the gradient of the first weight; of the logits or the images of a batch."""
    import torch

    from kilolayer.training import trainer

    def fill(tensor: torch.Tensor) -> None:
        with torch.no_grad():
            tensor.view(-1)[0] = value

    def gradient(training: Any) -> None:
        weight = next(training.model.parameters())
        weight.register_hook(lambda found: found.index_fill(0, torch.tensor(0), value))

    def pixel(training: Any) -> None:
        real = trainer.make_batch

        def poisoned_batch(*args: Any) -> Any:
            trainer.make_batch = real
            images, labels = real(*args)
            fill(images)
            return images, labels

        trainer.make_batch = poisoned_batch

    def first_logits(in_training: bool) -> Callable[[Any], None]:
        def change(training: Any) -> None:
            def hook(module: Any, args: Any, logits: torch.Tensor) -> None:
                if module.training is in_training:
                    handle.remove()
                    fill(logits)

            handle = training.model.register_forward_hook(hook)

        return change

    places = {"gradient": gradient, "logit": first_logits(in_training=True), "pixel": pixel}
    if what in places:
        at_step(step, places[what], nothing)
    elif what == "evaluation":
        at_step(step, nothing, first_logits(in_training=False))
    else:
        at_step(step, nothing, lambda training: fill(training.tensors()[what]))


def harm_rank(rank: int, step: int, how: str) -> None:
    if os.environ.get("RANK") != str(rank):
        return
    if step == 0:
        harm(how)
    else:
        at_step(step, lambda training: harm(how), nothing)


def harm(how: str) -> None:
    try:
        os.close(os.open(os.environ["FAULT_ONCE"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    if how in ("kill", "halt"):
        os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSTOP)
    elif how.startswith("SIG"):
        os.kill(os.getpid(), signal.Signals[how])
    elif how == "memory":
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")
    else:
        raise RuntimeError("a fault of ours")


def limit(kind: str, amount: int) -> None:
    import resource

    if kind == "AS":
        amount += int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (amount, amount))


def short_from(stage: str, amount: int) -> None:
    """Limits the address space when this method is called for the third time, or at the end."""
    from kilolayer.runs import Run
    from kilolayer.training.trainer import Trainer

    kind, name, due = {
        "step": (Trainer, "take_step", 3),
        "evaluation": (Trainer, "evaluate", 2),
        "save": (Run, "save", 3),
        "end": (Trainer, "conclude", 1),
    }[stage]
    real, calls = getattr(kind, name), [0]

    def limited(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == due:
            limit("AS", amount)
        return real(*args, **options)

    setattr(kind, name, limited)


def prepare(env: dict[str, str]) -> None:
    if "SEEDED" in env:
        FAULTS[env["SEEDED"]]()
    if "SIGNAL_AT_STEP" in env:
        signal_at_step(*map(int, env["SIGNAL_AT_STEP"].split(":")))
    if "POISON" in env:
        what, step, value = env["POISON"].split(":")
        poison(what, int(step), float(value))
    if "RANK_FAULT" in env:
        rank, at, how = env["RANK_FAULT"].split(":")
        harm_rank(int(rank), int(at), how)
    if "SHORT" in env:
        stage, amount = env["SHORT"].split(":")
        short_from(stage, int(amount))
    for kind in ("FSIZE", "AS"):
        if f"LIMIT_{kind}" in env:
            limit(kind, int(env[f"LIMIT_{kind}"]))


FAULTS: dict[str, Callable[[], None]] = {
    fault.__name__: fault
    for fault in (
        no_fsync, in_place, no_folder_fsync, generators_not_restored, metrics_not_cut, seal_not_checked,
        tensors_after_the_seal, signal_forgotten, no_lock, not_checked_for_numbers,
    )
}  # fmt: skip
