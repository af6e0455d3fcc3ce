"""A stage of a residual network as a PyTorch module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kilolayer.networks.recompute import Segments, run_segments


class ResidualStage(nn.Sequential):
    """Residual units, applied in turn. Two things hold in training alone:

    The last `resting` of them are identities (`kilolayer.networks.progressive_depth`).
    `segments` say which are computed again in the backward pass; () is none (`kilolayer.networks.recompute`).
    """

    def __init__(self, *units: Any) -> None:
        super().__init__(*units)
        self.num_inactive = 0
        self.segments: Segments = ()

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not torch.jit.is_scripting():  # type: ignore[attr-defined]
            return run_segments(self._active_units(), x, self.segments)
        for unit in self:
            x = unit(x)
        return x

    def _active_units(self) -> list[nn.Module]:
        # What rests keeps its place, for segments count it.
        units = list(self)
        return [*units[: len(units) - self.num_inactive], *[nn.Identity()] * self.num_inactive]
