"""The fast path behind one small protocol: the names below are all that the other rooms import.

`fuse` turns a network's units into single operations where a kernel exists, and reports the choices; `unfuse`
turns them back. `fused_saved_activations` says what the units then save for the backward pass, and
`unavailable_reason` why there are no kernels here. `fold` makes a network for inference. `fastest_precision`,
`mul_dtype` and `fp16_peak_flops` state what this machine multiplies fastest; `use_cpu_pool` replaces malloc.
Everything has a plain reference: the network's own layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kilolayer.lazy import lazy_attributes

if TYPE_CHECKING:
    from kilolayer.kernels.backend import unavailable_reason
    from kilolayer.kernels.compute_dtype import fp16_peak_flops, mul_dtype
    from kilolayer.kernels.cpu_pool import use_cpu_pool
    from kilolayer.kernels.folding import fold
    from kilolayer.kernels.fusion import (
        FusionReport,
        fastest_precision,
        fuse,
        fused_saved_activations,
        unfuse,
    )

_HOMES = {
    "FusionReport": "fusion",
    "fastest_precision": "fusion",
    "fold": "folding",
    "fp16_peak_flops": "compute_dtype",
    "fuse": "fusion",
    "fused_saved_activations": "fusion",
    "mul_dtype": "compute_dtype",
    "unavailable_reason": "backend",
    "unfuse": "fusion",
    "use_cpu_pool": "cpu_pool",
}

__getattr__, __dir__ = lazy_attributes(__name__, _HOMES)

__all__ = [
    "FusionReport",
    "fastest_precision",
    "fold",
    "fp16_peak_flops",
    "fuse",
    "fused_saved_activations",
    "mul_dtype",
    "unavailable_reason",
    "unfuse",
    "use_cpu_pool",
]
