"""A residual unit that is one autograd operation in training."""

from __future__ import annotations

from torch import Tensor, nn

from kilolayer.kernels.backend import Backend
from kilolayer.kernels.conv_chain import ConvChain
from kilolayer.kernels.dispatch import can_run, fits_kernel, is_transformed
from kilolayer.kernels.native_unit import run_native_unit
from kilolayer.units.modules import ResidualUnit


class FusedUnit(ResidualUnit):
    """A residual unit that is one operation in training: in bf16 autocast, on a channels-last bf16 input.

    Otherwise it computes as a plain `ResidualUnit`: if it or one of its layers is in evaluation mode, on
    another device, in another precision, in a compiler, with hooks on its layers (a kernel would not call
    them), and if its layers or parameters have changed since it was fused.
    """

    chain: ConvChain
    known_modules: tuple[nn.Module, ...]
    """The modules that the chain was built from."""
    tensor_shapes: list[tuple[int, ...]]
    """The shapes of the chain's parameters, then of its running averages."""
    backend: Backend = "native"

    @staticmethod
    def convert(unit: ResidualUnit, chain: ConvChain, backend: Backend) -> None:
        """Turns `unit` into a fused one; only its class changes, so children and parameters stay."""
        unit.__class__ = FusedUnit
        assert isinstance(unit, FusedUnit)  # noqa: S101 - for the type checker
        shapes = chain.parameter_shapes()
        unit.chain, unit.backend = chain, backend
        unit.known_modules = _child_modules(unit)
        unit.tensor_shapes = [*shapes, *shapes[len(chain.convs()) :]]

    def forward(self, x: Tensor) -> Tensor:
        chain = self.chain
        if (
            self.training
            and not is_transformed()
            and can_run(self.backend, x, self.known_modules, chain.shortcut_stride)
            and _child_modules(self) == self.known_modules
        ):
            parameters = chain.parameters()
            tensors = [*parameters, *chain.running_statistics()]
            if fits_kernel(x, chain.in_channels, tensors, self.tensor_shapes):
                if self.backend == "native":
                    return run_native_unit(chain, self.p(x), parameters)
                from kilolayer.kernels.gpu.triton_unit import run_triton_unit  # Triton may be missing

                return run_triton_unit(chain, x, parameters)
        return super().forward(x)


def _child_modules(unit: ResidualUnit) -> tuple[nn.Module, ...]:
    """The paths of a unit and their layers."""
    # Read from the modules' own tables: every step asks this of every unit.
    paths = unit._modules.values()
    return (*paths, *(layer for path in paths for layer in path._modules.values()))  # type: ignore[arg-type, union-attr]
