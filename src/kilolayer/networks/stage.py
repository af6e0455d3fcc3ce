"""A stage of a residual network as a PyTorch module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kilolayer.networks.recompute import Segments, run_segments


class ResidualStage(nn.Sequential):
    """Residual units, applied in turn. In training mode alone:

    - the last `num_inactive` units are identities (`kilolayer.networks.progressive_depth`);
    - the backward pass recomputes the units in `segments` (`kilolayer.networks.recompute`).
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
        # An inactive unit is replaced and not removed, since segments count units.
        units = list(self)
        return [*units[: len(units) - self.num_inactive], *[nn.Identity()] * self.num_inactive]
