"""What an analysis is given: a network at one moment, and images to send through it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from kilolayer.measure.unit_chain import UnitChain
from kilolayer.networks import Network


@dataclass(frozen=True)
class AnalysisInput:
    """A network with a normalised batch `x` (N, C, H, W) and its `labels` (N,), all on one device.

    `description` is None in a model that is not ours; then `units` names the modules that are its units.
    `fresh(seed)` is the same network newly initialised. `moments` are (iteration, network then) over its
    training, from the initialisation on; empty where none were kept. `held_out(n)` gives n test images.
    """

    name: str
    model: nn.Module
    x: Tensor
    labels: Tensor
    build_fresh: Callable[[int], nn.Module]
    held_out: Callable[[int], tuple[Tensor, Tensor]]
    description: Network | None = None
    units: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    snapshots: tuple[tuple[int, Callable[[], nn.Module]], ...] = ()
    trained: bool = False

    def chain(self, *, training: bool = True) -> UnitChain:
        """The network cut at its units."""
        return UnitChain(self.model, self.units, training=training)

    def at_snapshot(self, index: int) -> AnalysisInput:
        """The same at one of its `moments`."""
        _, network = self.snapshots[index]
        return replace(self, model=network(), snapshots=())
