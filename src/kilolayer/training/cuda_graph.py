"""A whole training step as one CUDA graph: captured once, then replayed with a single launch.

A network of a thousand layers takes more than ten thousand kernels a step, and launching each of them takes
the processor longer than most of them take the GPU. A graph holds them all, with the addresses of what they
read and write. So what is captured has to be a function of tensors that stay where they are; what the host
decides for each step is copied into such tensors before. The shapes and whatever else stays fixed in a graph
are its key: where the key changes, a new graph is captured.
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
"""Steps before a capture, in which libraries choose their algorithms and the optimiser makes its figures."""

MAX_RELATIVE_DEVIATION = 0.1
"""Of a tensor's change: equal kernels give equal bits; a graph that reads what is stale errs by about 1."""

StepFunction = Callable[[], None]


class GraphRecorder(Protocol):
    """What captures and replays."""

    def run_eagerly(self, step: StepFunction) -> None:
        """Takes the step as it is, where nothing of it lingers in what is captured next."""

    def capture(self, step: StepFunction) -> StepFunction:
        """Notes down the step without taking it. Calling what comes back takes it."""


class GraphReplay:
    """`step`, taken as it is at first and replayed from then on; every call is one step of the training."""

    def __init__(
        self, step: StepFunction, recorder: GraphRecorder, state_tensors: Callable[[], list[Tensor]]
    ) -> None:
        """`state`: the tensors that a step changes and the next one reads."""
        self._step, self._recorder, self._state = step, recorder, state_tensors
        self._selection: BatchSpec | None = None
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
        """Takes the step as it is, and as a graph from where it began, and compares what became of the state.

        Raises `InputError` where the graph changes a tensor otherwise.
        """
        state = [tensor.detach() for tensor in self._state()]
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
                f"the CUDA graph's first step changes a tensor otherwise than the step without it, by "
                f"{worst:.2g} of the change, where {MAX_RELATIVE_DEVIATION:g} is allowed; use --cuda-graph off"
            )

    def forget(self) -> None:
        """Lets the graph go: what it reads or writes has been replaced."""
        self._key, self._graph, self._warm_up_left = None, None, WARM_UP_STEPS

    def copy_to_buffers(self, selection: BatchSpec) -> BatchSpec:
        """The content of `selection` in tensors that stay where they are."""
        if self._selection is None:
            self._selection = selection.map_tensors(torch.clone)
        else:
            self._selection.copy_(selection)
        return self._selection


class CudaRecorder:
    """CUDA graphs on a stream of their own, as PyTorch asks for it."""

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
            # The end of a capture that failed raises an error of its own over the reason.
            first = str(error.__context__ or error).partition("\n")[0]
            raise InputError(f"a CUDA graph cannot hold the step ({first}); use --cuda-graph off") from error
        return graph.replay


@contextmanager
def _garbage_collection_off() -> Iterator[None]:
    """Within, no cycle of garbage is let go: an older graph among it cannot free its memory in a capture."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _relative_deviation(actual: Tensor, expected: Tensor, before: Tensor) -> Tensor:
    """How far a change is from the wanted one, in its length; 0 where both are the same bits."""
    deviation = (actual - expected).double().norm()
    return torch.where(deviation == 0, deviation, deviation / (expected - before).double().norm())


def choose_graph(name: str, device: torch.device) -> bool:
    """Whether a training there replays a graph; "auto" is no, until it has been measured on a GPU.

    Raises `InputError` where "on" cannot be.
    """
    if name not in ("auto", "off", "on"):
        raise InputError(f"graph is {name!r}; allowed: auto, off, on")
    if name == "on" and device.type != "cuda":
        raise InputError(f"--cuda-graph on needs a GPU, and the device is {device}; use --cuda-graph off")
    return name == "on"


def graph_unavailable_reason(device: torch.device, *, has_dropout: bool, world_size: int) -> str | None:
    """Why a training cannot be a graph, or None where it can."""
    if device.type != "cuda":
        return "the device is no GPU"
    if has_dropout:
        return "dropout draws anew at every step, from a state that a graph would hold fixed"
    return "the processes exchange gradients, which is not captured" if world_size > 1 else None
