"""A contestant's own process: builds it, and takes a step whenever it is told to.

Reads a JSON object per line, answers with one. `python -m kilolayer.bench.worker`
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from kilolayer.bench.clock import timed
from kilolayer.bench.contestant import Contestant
from kilolayer.errors import InputError, one_value

if TYPE_CHECKING:
    from kilolayer.bench.building import First

LABELS = 10


class Worker:
    """What the other side of the pipe can ask for, a method each."""

    def __init__(self) -> None:
        self.take: Callable[[], object] = lambda: None

    def ceilings(self, device: str, threads: int) -> dict[str, Any]:
        """The machine's, before anybody competes."""
        from kilolayer.bench.ceilings import ceilings

        return ceilings(_device(device, threads))

    def machine(self) -> dict[str, Any]:
        """The processor that these figures are of."""
        from kilolayer.bench.ceilings import machine

        return machine()

    def build(
        self,
        contestant: dict[str, Any],
        batch_size: int,
        threads: int,
        device: str,
        infer: bool,
        weights: str,
        image_size: int | None,
        first: dict[str, Any] | None,
    ) -> dict[str, Any]:
        """Builds it, on the weights at `weights` where they fit, and says what it is and what its loss."""
        # Optimisers and counting need these: everyone's memory is looked at, and predicted, with them there.
        import torch._dynamo
        import torch.utils.flop_counter  # noqa: F401

        from kilolayer.bench.building import First, blamed, built, counts
        from kilolayer.bench.checks import loss_of, share_weights
        from kilolayer.bench.stepping import inference, inputs, training
        from kilolayer.networks import ResidualNetwork

        one, place = Contestant(**contestant), _device(device, threads)
        before = self.memory()["peak_memory_bytes"]
        others = First(**first) if first else None
        found = built(one, place, batch_size, infer=infer, image_size=image_size, first=others)
        running = partial(blamed, one.name, ours=isinstance(found.module, ResidualNetwork))
        x, labels = inputs(found, batch_size, place)
        with running("its forward pass"):
            parameters, multiply_adds, classes = counts(found.module, x)
            labels %= _known(classes, others)
        equal = share_weights(found.module, weights, x)
        with running("its forward pass"):
            loss = loss_of(found.module, x, labels, training=not infer)
        work_is = "inference" if infer else "a training step"
        with running(work_is):
            work = (inference if infer else training)(one, found, x, labels)

        def take() -> None:
            with running(work_is):
                work.step()

        self.take = take
        plan = found.plan
        return {
            "parameters": parameters,
            "multiply_adds": multiply_adds,
            "image_side": found.image_side,
            "channels": found.channels,
            "classes": classes,
            "precision": found.precision,
            "choices": list(found.choices),
            "loss_with_equal_weights": loss if equal else None,
            "loss_as_run": work.loss if equal else None,
            "memory_bytes_before": before,
            "predicted_memory_bytes": plan.peak.total if plan else None,
            "recomputed": plan.recomputed if plan else 0.0,
        }

    def step(self) -> dict[str, Any]:
        sample = timed(self.take)
        return {**asdict(sample), "disturbed": sample.disturbed}

    def memory(self) -> dict[str, Any]:
        """The most it has held, imports and all: resident on a CPU, allocated on a GPU."""
        import torch

        if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
            return {"peak_memory_bytes": torch.cuda.max_memory_allocated()}
        from kilolayer.runs.environment import peak_memory
        from kilolayer.training import Place

        return {"peak_memory_bytes": peak_memory(Place(torch.device("cpu")))}

    def environment(self, device: str, threads: int, precision: Any) -> dict[str, Any]:
        from kilolayer.runs.environment import environment
        from kilolayer.training import Place

        return environment(Place(_device(device, threads)), precision)


def _known(classes: int, first: First | None) -> int:
    """Of how many classes the labels are: ten, or all that the first contestant has."""
    known = min(LABELS, first.classes if first else classes)
    if classes < known:
        raise InputError(
            f"it has {classes} classes, and the labels are of {known}; allowed: at least {known}"
        )
    return known


def _device(name: str, threads: int) -> Any:
    import torch

    from kilolayer.training import choose_device

    torch.set_num_threads(threads)
    return choose_device(name)


def serve() -> None:
    """Answers until its standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a peer prints is no answer
    worker = Worker()
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = getattr(worker, asked.pop("do"))(**asked)
        except ValueError as error:
            refusal = error if isinstance(error, InputError) else one_value(error)
            if refusal is None:
                raise
            answer = {"refused": str(refusal)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
