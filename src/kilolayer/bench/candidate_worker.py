"""The process of one candidate: it builds the network, and takes a step when asked to.

It reads one JSON object per line and answers with one. `python -m kilolayer.bench.candidate_worker`
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
from kilolayer.system.json_text import parse_json

if TYPE_CHECKING:
    from kilolayer.bench.candidate_module import BatchShape

LABELS = 10


class CandidateWorker:
    """The requests that a process answers, one method each."""

    def __init__(self) -> None:
        self.take: Callable[[], object] = lambda: None

    def ceilings(self, device: str, threads: int) -> dict[str, Any]:
        """The ceilings of the machine, measured before the candidates are built."""
        from kilolayer.bench.machine import measure_ceilings

        return measure_ceilings(_device(device, threads))

    def machine(self) -> dict[str, Any]:
        """The processor that the figures belong to."""
        from kilolayer.bench.machine import describe_machine

        return describe_machine()

    def build(
        self,
        candidate: dict[str, Any],
        batch_size: int,
        threads: int,
        device: str,
        infer: bool,
        weights: str,
        image_size: int | None,
        first: dict[str, Any] | None,
    ) -> dict[str, Any]:
        """Builds the candidate, with the weights at `weights` if they fit; reports its size and loss."""
        # Optimisers and the counter import these; their memory counts for every candidate.
        import torch._dynamo
        import torch.utils.flop_counter  # noqa: F401

        from kilolayer.bench.candidate_module import BatchShape, attribute_errors, build_candidate, count_work
        from kilolayer.bench.equivalence import reference_loss, share_weights
        from kilolayer.bench.workload import inference_workload, random_batch, training_workload
        from kilolayer.networks import ResidualNetwork

        parsed, torch_device = Candidate(**candidate), _device(device, threads)
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
        """The peak memory of this process, imports included: resident on a CPU, allocated on a GPU."""
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
    """The number of classes in the labels: ten, or all that the first candidate has."""
    labels = min(LABELS, first.classes if first else classes)
    if classes < labels:
        raise InputError(
            f"it has {classes} classes, but the labels have {labels}; allowed: at least {labels}"
        )
    return labels


def _device(name: str, threads: int) -> Any:
    import torch

    from kilolayer.training import choose_device

    torch.set_num_threads(threads)
    return choose_device(name)


def serve_requests() -> None:
    """Answers requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a candidate prints must not mix with the answers
    worker = CandidateWorker()
    for line in sys.stdin:
        request: Any = parse_json(line, allow_nan=True)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except ValueError as error:
            refusal = error if isinstance(error, KilolayerError) else single_value_error(error)
            if refusal is None:
                raise
            answer = {"refused": str(refusal)}
        answers.write(f"{json.dumps(answer)}\n")
        answers.flush()


if __name__ == "__main__":
    serve_requests()
