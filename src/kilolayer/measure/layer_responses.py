"""What is known of the layers of a network on a batch, and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from kilolayer.chart import Chart
from kilolayer.measure.scalars import mean_present
from kilolayer.measure.series import percent_text, stage_starts, unit_series


@dataclass(frozen=True)
class LayerResponse:
    """A convolution's output, behind the BN that reads it where there is one, before ReLU or addition.

    `std` is over all its elements on the batch; `kernel` the side of the convolution's kernel.
    `predicted`: behind a BN √(mean γ² + var β); else rms(W) · √(mean Σ x²) over the k×k windows it reads,
    for weights that are independent of x.
    """

    name: str
    kernel: int
    normalised: bool
    std: float
    predicted: float
    side: int = 0
    """Pixels a side of the output."""


@dataclass(frozen=True)
class NormStatistics:
    """A BN: root mean squares over channels of its input's batch mean and deviation, and of γ and β."""

    name: str
    mean: float
    std: float
    scale: float
    shift: float
    side: int = 0
    """Pixels a side of its input."""


@dataclass(frozen=True)
class ReluActivity:
    """A ReLU: `zeros` is the share of its elements that are 0, `dead` that of channels which are 0
    for every image and position of the batch."""

    channels: int
    zeros: float
    dead: float
    side: int = 0
    """Pixels a side."""


@dataclass(frozen=True)
class LayerResponses:
    """Every convolution, BN and ReLU of a network on one batch, in the order in which they ran."""

    network: str
    layers: tuple[LayerResponse, ...]
    norms: tuple[NormStatistics, ...]
    relus: tuple[ReluActivity, ...]

    def spatial_layers(self) -> tuple[LayerResponse, ...]:
        """The 3×3 layers, which P1's Fig. 7 shows."""
        return tuple(layer for layer in self.layers if layer.kernel == 3)

    def charts(self) -> tuple[Chart, ...]:
        return (self._stds(), self._sorted(), self._norms(), self._dead())

    def summary(self) -> tuple[tuple[str, str], ...]:
        dead = max((relu.dead for relu in self.relus), default=0.0)
        return (
            ("mean std of the 3×3 layers' responses", f"{self.mean_std:.3g}"),
            ("3×3 layers", str(len(self.spatial_layers()))),
            (
                "elements that ReLUs set to 0, mean",
                percent_text(mean_present([relu.zeros for relu in self.relus])),
            ),
            ("dead channels", percent_text(self.dead)),
            ("… in the worst ReLU", percent_text(dead)),
            ("largest batch deviation at a BN's input", f"{max((n.std for n in self.norms), default=0):.3g}"),
        )

    def finding(self) -> str:
        dead = f"{percent_text(self.dead)} of the channels are dead" if self.dead else "no channel is dead"
        layers = self.spatial_layers()
        if not layers:
            return f"no layer is 3×3; {dead}"
        low, high = min(layer.std for layer in layers), max(layer.std for layer in layers)
        spread = f"{low:.3g} to {high:.3g}, {self.mean_std:.3g} on average"
        return f"the 3×3 layers' responses have standard deviations of {spread}; {dead}"

    def tracked_metrics(self) -> tuple[tuple[str, float], ...]:
        """What is followed over training."""
        return (("mean std of responses", self.mean_std), ("dead channels", self.dead))

    @property
    def mean_std(self) -> float:
        """Over the 3×3 layers."""
        return mean_present([layer.std for layer in self.spatial_layers()])

    @property
    def dead(self) -> float:
        """The share of all channels behind ReLUs."""
        channels = sum(relu.channels for relu in self.relus)
        return sum(relu.dead * relu.channels for relu in self.relus) / channels if channels else 0.0

    def _stds(self) -> Chart:
        layers = self.spatial_layers()
        return Chart(
            "std",
            "Deviation of the 3×3 layers' responses",
            "std of BN(W x), before ReLU and addition   (P1, Fig. 7)",
            "3×3 layer, from the input",
            "standard deviation",
            (
                unit_series("response", [layer.std for layer in layers]),
                unit_series("response", [layer.predicted for layer in layers], "predicted"),
            ),
            note=f"mean {self.mean_std:.3g} over {len(layers)} layers"
            + ("" if any(layer.normalised for layer in layers) else "; no BN reads them, so they are raw"),
            stages=_stage_starts(layers),
        )

    def _sorted(self) -> Chart:
        stds = sorted((layer.std for layer in self.spatial_layers()), reverse=True)
        return Chart(
            "sorted",
            "The same, sorted",
            "std of BN(W x), in descending order   (P1, Fig. 7, below)",
            "3×3 layer, from the largest",
            "standard deviation",
            (unit_series("response", stds),),
        )

    def _norms(self) -> Chart:
        return Chart(
            "norms",
            "What BN meets and what it makes of it",
            "BN(z) = γ (z − μ) / σ + β",
            "BN, from the input",
            "RMS over channels",
            (
                unit_series("σ of the batch", [norm.std for norm in self.norms]),
                unit_series("μ of the batch", [norm.mean for norm in self.norms]),
                unit_series("γ", [norm.scale for norm in self.norms]),
                unit_series("β", [norm.shift or None for norm in self.norms]),
            ),
            log_y=True,
            stages=_stage_starts(self.norms),
        )

    def _dead(self) -> Chart:
        return Chart(
            "dead",
            "What ReLUs set to zero",
            "max(0, z)",
            "ReLU, from the input",
            "share",
            (
                unit_series("elements that are 0", [relu.zeros for relu in self.relus]),
                unit_series("dead channels", [relu.dead for relu in self.relus]),
            ),
            note=f"{percent_text(self.dead)} of all channels are dead on this batch",
            stages=_stage_starts(self.relus),
        )


LayerRecords = Sequence[LayerResponse] | Sequence[NormStatistics] | Sequence[ReluActivity]


def _stage_starts(records: LayerRecords) -> tuple[float, ...]:
    """Where the maps become smaller than all before; a shortcut's layers may run ahead of the branch's."""
    return stage_starts([*accumulate((part.side for part in records), min)])
