"""Units computed again in the backward pass: time for memory, and nothing else changes.

A stage is divided into segments. Of a recomputed segment only the input is kept; when the backward pass
reaches it, its units run forward once more, and all that they need for their gradients is there (Chen et
al., arXiv 1604.06174). Parts of a segment do the same within that second pass: first their inputs are
computed, then part after part from the last on.

This does what `torch.utils.checkpoint` does, with the whole autograd graph in place. Beside that it computes
parts of a segment one by one, hands on what kernels noted on a tensor, and keeps a number and no record of
each saved tensor. Compilers cannot see through that, and get PyTorch's checkpoint, without the parts.
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
from kilolayer.units.batch_norm_module import preserve_running_statistics
from kilolayer.units.modules import draws_random_numbers


@dataclass(frozen=True)
class Segment:
    """`units` consecutive units of a stage, recomputed or kept; `parts` say in how many units each a
    recomputed one is computed again.

    Raises `InputError` where the parts are not together as many units.
    """

    units: int
    recomputed: bool = True
    parts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.units < 1 or (self.parts and sum(self.parts) != self.units):
            inside = sum(self.parts)
            raise InputError(f"a segment of {self.units} units has parts of {inside}; allowed: equal, from 1")

    @property
    def recomputations(self) -> int:
        """Computations of a unit beyond the first, over all units."""
        if not self.recomputed:
            return 0
        return self.units + (self.units - self.parts[-1] if self.parts else 0)


Segments = tuple[Segment, ...]


def run_segments(units: Sequence[nn.Module], x: Tensor, segments: Segments) -> Tensor:
    """`units` applied to `x` in turn, the first in the `segments` that they are divided into."""
    start = 0
    # A transform of torch.func has no backward pass of autograd's in which units could run again.
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
    """The same for a compiler: PyTorch's checkpoint, which runs `units` again as they are.

    So they become a function of their buffers, and BN's running figures change once and not twice.
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
    """Every tensor that is needed has been computed; what follows would be for nothing."""


class _RecomputedSegment:
    """One segment between its forward and its backward pass.

    Autograd keeps a number in place of each tensor that the units save. The first number that is asked for
    computes the part of the segment that the tensor belongs to, and each tensor goes as it is handed out.
    """

    def __init__(self, units: Sequence[nn.Module], parts: Sequence[int]) -> None:
        bounds = [0, *accumulate(parts)]
        self.parts = [units[start:end] for start, end in pairwise(bounds)]
        self.first_tensors: list[int] = []
        """Of each part the number of its first tensor."""
        self.count = 0
        self.inputs: list[_PartInput] = []
        """What the parts computed so far begin with; the first from the forward pass on."""
        self.tensors: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        modules = chain(*(unit.modules() for unit in chain(*self.parts)))
        self.inputs = [_PartInput.of(x, draws=any(map(draws_random_numbers, modules)))]
        with saved_tensors_hooks(self._number, self._tensor):
            for units in self.parts:
                self.first_tensors.append(self.count)
                x = _run_units(units, x)
        return x

    def _number(self, _: Tensor) -> int:
        self.count += 1
        return self.count - 1

    def _tensor(self, number: int) -> Tensor:
        if number not in self.tensors:
            part = bisect_right(self.first_tensors, number) - 1
            with self.inputs[0].conditions(), preserve_running_statistics(*chain(*self.parts)):
                self._find_input(part)
                self._recompute(part)
        return self.tensors.pop(number)

    def _find_input(self, part: int) -> None:
        """Finds what `part` begins with: the parts before it run once, and keep nothing."""
        del self.inputs[max(1, part + 1) :]
        while len(self.inputs) <= part:
            last = self.inputs[-1]
            last.restore_random_state()
            with torch.no_grad():
                x = _run_units(self.parts[len(self.inputs) - 1], last.x)
            self.inputs.append(_PartInput.of(x.requires_grad_(last.x.requires_grad), last.is_random))

    def _recompute(self, part: int) -> None:
        """Runs `part` and takes the tensors that its units save."""
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
            with torch.enable_grad(), saved_tensors_hooks(take, _no_backward):
                _run_units(self.parts[part], begin.x)
        except _AllTensorsComputed:
            return
        if index != end:
            raise RuntimeError("a unit saved other tensors when it was computed again than at first")


def _no_backward(_: object) -> Tensor:
    raise RuntimeError("a recomputed part has no backward pass of its own")


@dataclass(frozen=True)
class _PartInput:
    """What a part reads, and the conditions under which it ran."""

    x: Tensor
    is_random: bool
    random_state: tuple[Tensor, ...]
    autocast: tuple[bool, torch.dtype]

    @classmethod
    def of(cls, x: Tensor, draws: bool) -> _PartInput:
        kind = x.device.type
        autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        # A leaf, so that the second pass ends here.
        begin = x.detach().requires_grad_(x.requires_grad)
        # What was noted on the tensor, as the sums of its channels are, holds for its other name too.
        vars(begin).update(vars(x))
        return cls(begin, draws, _random_state(x) if draws else (), autocast)

    def restore_random_state(self) -> None:
        """Sets the random state to what it was, where dropout draws from it."""
        if self.is_random:
            torch.set_rng_state(self.random_state[0])
            if len(self.random_state) > 1:
                torch.cuda.set_rng_state(self.random_state[1], self.x.device)

    @contextmanager
    def conditions(self) -> Iterator[None]:
        """As in the forward pass; the random state of outside comes back afterwards."""
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
