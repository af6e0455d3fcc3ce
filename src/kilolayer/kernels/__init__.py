"""The fast path: fused operations beside their plain references, and which of them a network can use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kilolayer.lazy import lazily

if TYPE_CHECKING:
    from kilolayer.kernels.fused import Explanation, fuse, fused_share, kept_by_units, unfuse
    from kilolayer.kernels.ways import refusal

_HOMES = {
    "Explanation": "fused",
    "fuse": "fused",
    "fused_share": "fused",
    "kept_by_units": "fused",
    "refusal": "ways",
    "unfuse": "fused",
}

__getattr__, __dir__ = lazily(__name__, _HOMES)

__all__ = ["Explanation", "fuse", "fused_share", "kept_by_units", "refusal", "unfuse"]
