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

from kilolayer.bench.candidate import Candidate
from kilolayer.bench.timing import time_work
from kilolayer.errors import InputError, KilolayerError, single_value_error

if TYPE_CHECKING:
    from kilolayer.bench.candidate_module import BatchShape

LABELS = 10


class CandidateWorker:
    """What the other side of the pipe can ask for, a method each."""

    def __init__(self) -> None:
        self.take: Callable[[], object] = lambda: None

    def ceilings(self, device: str, threads: int) -> dict[str, Any]:
        """The machine's, before anybody competes."""
        from kilolayer.bench.machine import measure_ceilings

        return measure_ceilings(_device(device, threads))

    def machine(self) -> dict[str, Any]:
        """The processor that these figures are of."""
        from kilolayer.bench.machine import describe_machine

        return describe_machine()

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

        from kilolayer.bench.candidate_module import BatchShape, attribute_errors, build_candidate, count_work
        from kilolayer.bench.equivalence import reference_loss, share_weights
        from kilolayer.bench.workload import inference_workload, random_batch, training_workload
        from kilolayer.networks import ResidualNetwork

        parsed, torch_device = Candidate(**contestant), _device(device, threads)
        before = self.memory()["peak_memory_bytes"]
        batch_shape = BatchShape(**first) if first else None
        built = build_candidate(
            parsed, torch_device, batch_size, infer=infer, image_size=image_size, first=batch_shape
        )
        attributed = partial(attribute_errors, parsed.name, ours=isinstance(built.module, ResidualNetwork))
        x, labels = random_batch(built, batch_size, torch_device)
        with attributed("its forward pass"):
            parameters, multiply_adds, classes = count_work(built.module, x)
            labels %= _label_count(classes, batch_shape)
        equal = share_weights(built.module, weights, x)
        with attributed("its forward pass"):
            loss = reference_loss(built.module, x, labels, training=not infer)
        work_is = "inference" if infer else "a training step"
        with attributed(work_is):
            work = (inference_workload if infer else training_workload)(parsed, built, x, labels)

        def take() -> None:
            with attributed(work_is):
                work.step()

        self.take = take
        plan = built.plan
        return {
            "parameters": parameters,
            "multiply_adds": multiply_adds,
            "image_side": built.image_side,
            "channels": built.channels,
            "classes": classes,
            "precision": built.precision,
            "choices": list(built.choices),
            "loss_with_equal_weights": loss if equal else None,
            "loss_as_run": work.loss if equal else None,
            "memory_bytes_before": before,
            "predicted_memory_bytes": plan.peak.total_bytes if plan else None,
            "recomputed": plan.recomputed_share if plan else 0.0,
        }

    def step(self) -> dict[str, Any]:
        sample = time_work(self.take)
        return {**asdict(sample), "disturbed": sample.is_disturbed}

    def memory(self) -> dict[str, Any]:
        """The most it has held, imports and all: resident on a CPU, allocated on a GPU."""
        import torch

        if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
            return {"peak_memory_bytes": torch.cuda.max_memory_allocated()}
        from kilolayer.runs.start_environment import peak_memory_bytes
        from kilolayer.training import DistributedContext

        return {"peak_memory_bytes": peak_memory_bytes(DistributedContext(torch.device("cpu")))}

    def environment(self, device: str, threads: int, precision: Any) -> dict[str, Any]:
        from kilolayer.runs.start_environment import environment_record
        from kilolayer.training import DistributedContext

        return environment_record(DistributedContext(_device(device, threads)), precision)


def _label_count(classes: int, first: BatchShape | None) -> int:
    """Of how many classes the labels are: ten, or all that the first contestant has."""
    labels = min(LABELS, first.classes if first else classes)
    if classes < labels:
        raise InputError(
            f"it has {classes} classes, and the labels are of {labels}; allowed: at least {labels}"
        )
    return labels


def _device(name: str, threads: int) -> Any:
    import torch

    from kilolayer.training import choose_device

    torch.set_num_threads(threads)
    return choose_device(name)


def serve_requests() -> None:
    """Answers until its standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a peer prints is no answer
    worker = CandidateWorker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except ValueError as error:
            refusal = error if isinstance(error, KilolayerError) else single_value_error(error)
            if refusal is None:
                raise
            answer = {"refused": str(refusal)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve_requests()
