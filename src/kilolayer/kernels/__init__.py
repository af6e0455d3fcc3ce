"""The fast path: fused operations beside their plain references, and which of them a network can use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kilolayer.lazy import lazy_attributes

if TYPE_CHECKING:
    from kilolayer.kernels.backend import unavailable_reason
    from kilolayer.kernels.fusion import FusionReport, fuse, fused_saved_activations, fused_share, unfuse

_HOMES = {
    "FusionReport": "fusion",
    "fuse": "fusion",
    "fused_share": "fusion",
    "fused_saved_activations": "fusion",
    "unfuse": "fusion",
    "unavailable_reason": "backend",
}

__getattr__, __dir__ = lazy_attributes(__name__, _HOMES)

__all__ = ["FusionReport", "fuse", "fused_saved_activations", "fused_share", "unavailable_reason", "unfuse"]
