"""A stage of a residual network as a PyTorch module."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kilolayer.networks.recompute import Segments, through


class ResidualStage(nn.Sequential):
    """Residual units, applied in turn. Two things hold in training alone:

    `working` of them, the first, are at work, and the others are identities (`kilolayer.networks.growth`).
    `segments` say which are computed again in the backward pass; () is none (`kilolayer.networks.recompute`).
    """

    def __init__(self, units: Iterable[nn.Module]) -> None:
        super().__init__(*units)
        self.working = len(self)
        self.segments: Segments = ()

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not torch.jit.is_scripting():  # type: ignore[attr-defined]
            return through(self._at_work(), x, self.segments)
        for unit in self:
            x = unit(x)
        return x

    def _at_work(self) -> list[nn.Module]:
        units = list(self)
        return [*units[: self.working], *[nn.Identity()] * (len(units) - self.working)]
