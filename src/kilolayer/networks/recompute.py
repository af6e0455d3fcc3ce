"""Rematerialisation: the backward pass recomputes units, which saves memory and changes no number.

A stage is divided into segments. For a recomputed segment only its input is saved; when the backward pass
reaches the segment, its units run forward once more (Chen et al., arXiv 1604.06174). A segment can be divided
into parts, which do the same within that second pass: first the input of every part is computed, then the
parts are recomputed from the last to the first.

A recomputed part begins with the buffers and the random state of its first pass, and leaves every buffer as
the first pass left it (`kilolayer.networks.module_state`).

`torch.utils.checkpoint` does this too. Unlike it, this code keeps the whole autograd graph, recomputes the
parts of a segment one by one, keeps the attributes that kernels attach to a tensor, and saves only an integer
for each saved tensor. A compiler cannot trace that, so compiled code uses PyTorch's checkpoint, without
parts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from kilolayer.errors import InputError
from kilolayer.networks.module_state import ModuleState, changing_modules, restored
from kilolayer.units.batch_norm_module import preserve_running_statistics
from kilolayer.units.layer_modules import draws_random_numbers


@dataclass(frozen=True)
class Segment:
    """A number of consecutive `units` of a stage, recomputed or not, and the sizes of its `parts`.

    Raises `InputError` where the parts do not add up to `units`.
    """

    units: int
    recomputed: bool = True
    parts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.units < 1 or (self.parts and sum(self.parts) != self.units):
            inside = sum(self.parts)
            raise InputError(
                f"a segment of {self.units} units has parts of {inside} units; allowed: at least 1 unit, "
                f"and parts that add up to it"
            )

    @property
    def recomputations(self) -> int:
        """The number of unit computations beyond the first forward pass."""
        if not self.recomputed:
            return 0
        return self.units + (self.units - self.parts[-1] if self.parts else 0)


Segments = tuple[Segment, ...]


def run_segments(units: Sequence[nn.Module], x: Tensor, segments: Segments) -> Tensor:
    """Apply `units` to `x` in turn, in `segments`; the units after the last segment are not recomputed."""
    start = 0
    # The transforms of torch.func have no backward pass in which units could run again.
    keeps_all = not torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
    for segment in segments:
        segment_units = units[start : start + segment.units]
        if keeps_all or not segment.recomputed:
            x = _run_units(segment_units, x)
        elif torch.compiler.is_compiling():
            x = _run_checkpointed(segment_units, x)
        else:
            x = _RecomputedSegment(segment_units, segment.parts or (segment.units,)).forward(x)
        start += segment.units
    return _run_units(units[start:], x)


def _run_checkpointed(units: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Recompute `units` by PyTorch's checkpoint, for a compiler.

    Every unit becomes a function of its buffers, so that BN's running statistics change once and not twice.
    """
    for unit in units:
        before = {name: buffer.clone() for name, buffer in unit.named_buffers()}
        x, after = checkpoint(_with_buffers, unit, before, x, use_reentrant=False)
        for name, buffer in unit.named_buffers():
            buffer.copy_(after[name])
    return x


def _with_buffers(unit: nn.Module, before: dict[str, Tensor], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    after = {name: buffer.clone() for name, buffer in before.items()}
    return functional_call(unit, after, (x,)), after


def _run_units(units: Sequence[nn.Module], x: Tensor) -> Tensor:
    for unit in units:
        x = unit(x)
    return x


class _AllTensorsComputed(Exception):
    """All needed tensors are computed; the rest of the forward pass is not needed."""


class _RecomputedSegment:
    """One segment, between its forward and its backward pass.

    Autograd holds a number in place of each saved tensor. When the backward pass asks for a number, the part
    of the segment that saved this tensor is recomputed. Every tensor is dropped when it is handed out.
    """

    def __init__(self, units: Sequence[nn.Module], parts: Sequence[int]) -> None:
        bounds = [0, *accumulate(parts)]
        self.parts = [units[start:end] for start, end in pairwise(bounds)]
        self.changing = [changing_modules(*part) for part in self.parts]
        self.states: list[list[ModuleState]] = []
        """The state of each part's modules before its forward pass."""
        self.first_tensors: list[int] = []
        """The number of each part's first tensor."""
        self.count = 0
        self.inputs: list[_PartInput] = []
        """The inputs of the parts that are known so far; the forward pass stores the first."""
        self.tensors: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        modules = chain(*(unit.modules() for unit in chain(*self.parts)))
        self.inputs = [_PartInput.of(x, draws=any(map(draws_random_numbers, modules)))]
        with saved_tensors_hooks(self._number, self._tensor):
            for units, (to_copy, _) in zip(self.parts, self.changing, strict=True):
                self.first_tensors.append(self.count)
                self.states.append([ModuleState.of(module) for module in to_copy])
                x = _run_units(units, x)
        return x

    def _number(self, _: Tensor) -> int:
        self.count += 1
        return self.count - 1

    def _tensor(self, number: int) -> Tensor:
        if number not in self.tensors:
            part = bisect_right(self.first_tensors, number) - 1
            norms = chain(*(norms for _, norms in self.changing))
            with self.inputs[0].conditions(), preserve_running_statistics(*dict.fromkeys(norms)):
                self._find_input(part)
                self._recompute(part)
        return self.tensors.pop(number)

    def _find_input(self, part: int) -> None:
        """Compute the input of `part`: the parts before it run once, without saving tensors."""
        del self.inputs[max(1, part + 1) :]
        while len(self.inputs) <= part:
            last = self.inputs[-1]
            last.restore_random_state()
            previous = len(self.inputs) - 1
            with torch.no_grad(), restored(self.states[previous]):
                x = _run_units(self.parts[previous], last.x)
            self.inputs.append(_PartInput.of(x.requires_grad_(last.x.requires_grad), last.is_random))

    def _recompute(self, part: int) -> None:
        """Run `part` and collect the tensors that its units save."""
        begin, index = self.inputs[part], self.first_tensors[part]
        end = self.first_tensors[part + 1] if part + 1 < len(self.parts) else self.count

        def take(tensor: Tensor) -> None:
            nonlocal index
            self.tensors[index] = tensor
            index += 1
            if index == end:
                raise _AllTensorsComputed

        begin.restore_random_state()
        try:
            with (
                torch.enable_grad(),
                saved_tensors_hooks(take, _no_backward),
                restored(self.states[part]),
            ):
                _run_units(self.parts[part], begin.x)
        except _AllTensorsComputed:
            return
        if index != end:
            raise RuntimeError("A recomputed unit saved tensors that differ from those of the forward pass.")


def _no_backward(_: object) -> Tensor:
    raise RuntimeError("a recomputed part has no backward pass of its own")


@dataclass(frozen=True)
class _PartInput:
    """The input of a part, with the random state and the autocast settings of its forward pass."""

    x: Tensor
    is_random: bool
    random_state: tuple[Tensor, ...]
    autocast: tuple[bool, torch.dtype]

    @classmethod
    def of(cls, x: Tensor, draws: bool) -> _PartInput:
        kind = x.device.type
        autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        # The input is a leaf, so that the second backward pass ends here.
        begin = x.detach().requires_grad_(x.requires_grad)
        # Kernels attach attributes to a tensor, such as its channel sums; the detached tensor has them too.
        vars(begin).update(vars(x))
        return cls(begin, draws, _random_state(x) if draws else (), autocast)

    def restore_random_state(self) -> None:
        """Restore the random state of the forward pass, if a unit draws random numbers."""
        if self.is_random:
            torch.set_rng_state(self.random_state[0])
            if len(self.random_state) > 1:
                torch.cuda.set_rng_state(self.random_state[1], self.x.device)

    @contextmanager
    def conditions(self) -> Iterator[None]:
        """The autocast settings of the forward pass; afterwards the outer random state is restored."""
        outer_state = _random_state(self.x) if self.is_random else ()
        enabled, dtype = self.autocast
        with torch.autocast(self.x.device.type, dtype, enabled, cache_enabled=False):
            try:
                yield
            finally:
                _PartInput(self.x, self.is_random, outer_state, self.autocast).restore_random_state()


def _random_state(x: Tensor) -> tuple[Tensor, ...]:
    if x.device.type == "cuda":
        return torch.get_rng_state(), torch.cuda.get_rng_state(x.device)
    return (torch.get_rng_state(),)
