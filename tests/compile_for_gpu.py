"""Compiles every Triton kernel that units call, for the compute capability given, on a machine without a GPU.

Prints the kernels' names. Run by test_gpu_kernels.py in a process of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from kilolayer.kernels.conv_chain import same_shape_chain
from kilolayer.kernels.gpu import triton_unit as gpu_unit
from kilolayer.units import BASIC, BOTTLENECK, FULL_PREACT, ORIGINAL, build_unit, layout


class Device:
    """What Triton asks of a GPU's driver before it compiles."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def main() -> None:
    capability = int(sys.argv[1])
    driver.set_active(Device(capability))
    compiled: dict[str, str] = {}

    def compiling(kernel: Any, grid: object) -> Callable[..., None]:
        def call(*args: Any, **options: Any) -> None:
            code = kernel.warmup(*args, grid=grid, **options).asm
            assert code["cubin"]
            assert "max.f32" not in code["ptx"], f"{kernel.__name__} drops a NaN: PTX's max.NaN keeps it"
            compiled[kernel.__name__] = code["ptx"]

        return call

    JITFunction.__getitem__ = compiling
    for way in ("triton", "cudnn"):
        gpu_unit.CONV3X3_BACKEND = way
        for unit, channels in ((BASIC, 16), (BASIC, 64), (BOTTLENECK, 256)):
            for arrangement in (FULL_PREACT, ORIGINAL):
                width = channels // unit.branch.out_channels(1)
                chain = same_shape_chain(
                    build_unit(layout(replace(unit, arrangement=arrangement), channels, width))
                )
                x = torch.randn(4, channels, 8, 8).bfloat16().to(memory_format=torch.channels_last)
                y = gpu_unit.run_triton_unit(chain, x.requires_grad_(), chain.parameters())
                y.backward(torch.ones_like(y))
    for name in ("conv_kernel", "wgrad_kernel"):
        # Hopper's matrix instruction, or that of the generations before.
        assert ("wgmma" if capability == 90 else "mma.sync") in compiled[name], name
    print(*compiled)


if __name__ == "__main__":
    main()
