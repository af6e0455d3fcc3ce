"""The fast path: fused operations beside their plain references, and which of them a network can use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kilolayer.lazy import lazily

if TYPE_CHECKING:
    from kilolayer.kernels.fused import Explanation, fuse, kept_by_units, refusal, unfuse

_HOMES = {
    "Explanation": "fused",
    "fuse": "fused",
    "kept_by_units": "fused",
    "refusal": "fused",
    "unfuse": "fused",
}

__getattr__ = lazily(__name__, _HOMES)

__all__ = ["Explanation", "fuse", "kept_by_units", "refusal", "unfuse"]
