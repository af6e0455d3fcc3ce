"""The input of an analysis: a network at one moment of its training, and images to send through it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from kilolayer.measure.unit_chain import UnitChain
from kilolayer.networks import Network


@dataclass(frozen=True)
class AnalysisInput:
    """A network with a normalised batch `x`, (N, C, H, W), and its `labels`, (N,), all on one device.

    >>> import torch
    >>> from kilolayer.measure import ANALYSES
    >>> from kilolayer.networks import build, describe
    >>> network = describe("preact_resnet8_cifar")
    >>> x, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    >>> given = AnalysisInput(
    ...     "net", build(network), x, labels, lambda seed: build(network), lambda count: (x, labels), network
    ... )
    >>> ANALYSES["gradient"].run(given).network
    'net'
    """

    name: str
    model: nn.Module
    x: Tensor
    labels: Tensor
    build_fresh: Callable[[int], nn.Module]
    """Builds the same network newly initialised from a seed."""
    held_out: Callable[[int], tuple[Tensor, Tensor]]
    """Returns so many test images, normalised, and their labels."""
    description: Network | None = None
    """None for a model that is not Kilolayer's; then `units` names the modules that are its units."""
    units: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    """The initialisations to measure, where an analysis takes several."""
    snapshots: tuple[tuple[int, Callable[[], nn.Module]], ...] = ()
    """(iteration, function that loads the network of that time), from the initialisation on."""
    trained: bool = False

    def chain(self, *, training: bool = True) -> UnitChain:
        """The network as a chain of its units."""
        return UnitChain(self.model, self.units, training=training)

    def at_snapshot(self, index: int) -> AnalysisInput:
        """The input with the network as it was at snapshot number `index`."""
        _, network = self.snapshots[index]
        return replace(self, model=network(), snapshots=())
