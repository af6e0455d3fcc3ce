"""A whole training step as one CUDA graph: captured once, then replayed with a single launch.

A step of a thousand layers launches more than ten thousand kernels, and each launch takes the processor
longer than most of the kernels take the GPU. A graph holds all of them, with the addresses that they read and
write. The captured function must therefore work on tensors that keep their addresses; what the host decides
for each step is copied into such tensors first. Shapes and other values that a graph holds fixed are its key:
when the key changes, a new graph is captured.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from kilolayer.data import BatchSpec
from kilolayer.errors import InputError

WARM_UP_STEPS = 3
"""Steps before a capture, in which libraries choose their algorithms and the optimiser makes its tensors."""

MAX_RELATIVE_DEVIATION = 0.1
"""As a share of a tensor's change. Equal kernels give equal bits; a graph with stale data errs by about 1."""

StepFunction = Callable[[], None]


class GraphRecorder(Protocol):
    """Captures a step as a graph."""

    def run_eagerly(self, step: StepFunction) -> None:
        """Takes the step without a graph, and keeps it out of what is captured next."""

    def capture(self, step: StepFunction) -> StepFunction:
        """Records the step without taking it. The returned function takes it."""


class GraphReplay:
    """A step that is taken eagerly at first and replayed as a graph from then on; every call is one step.

    state_tensors: gives the tensors that a step changes and the next one reads.
    """

    def __init__(
        self, step: StepFunction, recorder: GraphRecorder, state_tensors: Callable[[], list[Tensor]]
    ) -> None:
        self._step, self._recorder, self._state_tensors = step, recorder, state_tensors
        self._batch_spec: BatchSpec | None = None
        self._key: Hashable = None
        self._graph: StepFunction | None = None
        self._warm_up_left = WARM_UP_STEPS

    def __call__(self, key: Hashable) -> None:
        if key != self._key:
            self.forget()
            self._key = key
        if self._graph is None and self._warm_up_left:
            self._warm_up_left -= 1
            self._recorder.run_eagerly(self._step)
            return
        if self._graph is None:
            self._graph = self._recorder.capture(self._step)
            self._check_against_eager(self._graph)
        else:
            self._graph()

    def _check_against_eager(self, graph: StepFunction) -> None:
        """Takes the step eagerly, then from the same state as a graph, and compares the two new states.

        Raises `InputError` where they differ.
        """
        state = [tensor.detach() for tensor in self._state_tensors()]
        start_state = [tensor.clone() for tensor in state]
        self._recorder.run_eagerly(self._step)
        eager_state = [tensor.clone() for tensor in state]
        for tensor, start in zip(state, start_state, strict=True):
            tensor.copy_(start)
        graph()
        deviations = [
            _relative_deviation(*three) for three in zip(state, eager_state, start_state, strict=True)
        ]
        worst = float(torch.stack(deviations).max())
        if not worst <= MAX_RELATIVE_DEVIATION:
            raise InputError(
                f"the CUDA graph's first step changes a tensor differently from the step without it, by "
                f"{worst:.2g} of the change, where {MAX_RELATIVE_DEVIATION:g} is allowed; "
                "use --cuda-graph off"
            )

    def forget(self) -> None:
        """Drops the graph, because tensors that it reads or writes have been replaced."""
        self._key, self._graph, self._warm_up_left = None, None, WARM_UP_STEPS

    def copy_to_buffers(self, spec: BatchSpec) -> BatchSpec:
        """The content of `spec` in tensors that keep their addresses."""
        if self._batch_spec is None:
            self._batch_spec = spec.map_tensors(torch.clone)
        else:
            self._batch_spec.copy_(spec)
        return self._batch_spec


class CudaRecorder:
    """Captures CUDA graphs on a stream of their own, as PyTorch requires."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run_eagerly(self, step: StepFunction) -> None:
        outside = torch.cuda.current_stream()
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            step()
        outside.wait_stream(self._stream)

    def capture(self, step: StepFunction) -> StepFunction:
        outside, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
        try:
            with _garbage_collection_off(), torch.cuda.graph(graph, stream=self._stream):
                step()
        except RuntimeError as error:
            torch.cuda.set_stream(outside)
            # The end of a failed capture raises an error of its own, which hides the reason.
            first = str(error.__context__ or error).partition("\n")[0]
            raise InputError(f"a CUDA graph cannot hold the step ({first}); use --cuda-graph off") from error
        return graph.replay


@contextmanager
def _garbage_collection_off() -> Iterator[None]:
    """Stops garbage collection within the block: a dead graph cannot free its memory during a capture."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _relative_deviation(actual: Tensor, expected: Tensor, before: Tensor) -> Tensor:
    """|actual − expected| / |expected − before|, and 0 where both are the same bits."""
    deviation = (actual - expected).double().norm()
    return torch.where(deviation == 0, deviation, deviation / (expected - before).double().norm())


def choose_graph(name: str, device: torch.device) -> bool:
    """Whether a training on `device` replays a CUDA graph; "auto" is no, until it has been measured on a GPU.

    Raises `InputError` for an unknown name, and for "on" without a GPU.

    >>> choose_graph("auto", torch.device("cpu"))
    False
    """
    if name not in ("auto", "off", "on"):
        raise InputError(f"graph is {name!r}; allowed: auto, off, on")
    if name == "on" and device.type != "cuda":
        raise InputError(f"--cuda-graph on needs a GPU, and the device is {device}; use --cuda-graph off")
    return name == "on"


def graph_unavailable_reason(device: torch.device, *, has_dropout: bool, world_size: int) -> str | None:
    """Why a step cannot be captured as a graph; None where it can."""
    if device.type != "cuda":
        return "the device is no GPU"
    if has_dropout:
        return "dropout draws new random numbers at every step, and a graph would repeat them"
    return "the ranks exchange gradients, which is not captured" if world_size > 1 else None
