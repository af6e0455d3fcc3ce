"""x_L = x_l + Σ F(x_i): how far it holds, what each unit adds, what f cuts away (P2, Eq. 4 and Sec. 4.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kilolayer.chart import Chart, Series
from kilolayer.measure.analysis_input import AnalysisInput
from kilolayer.measure.scalars import cosine, norm, ratio
from kilolayer.measure.self_checks import check_stage, refuse, rounding
from kilolayer.measure.series import share_text, stage_starts, unit_series
from kilolayer.measure.unit_chain import UnitChain, UnitPass

EXACT = 1e-4
"""A residual below this share of ‖x_L‖ is rounding: over a thousand units fp32 stays far below it."""


@dataclass(frozen=True)
class UnitShare:
    """What unit l adds to its stage's final feature x_L, and what f takes from it.

    The unit's share of x_L is `norm` · `cosine` = ⟨F(x_l), x_L⟩ / ‖x_L‖². Where Eq. 4 holds, the shares of a
    stage's units and of its start sum to 1.
    """

    name: str
    stage: int
    norm: float
    """‖F(x_l)‖ / ‖x_L‖."""
    cosine: float
    """⟨F(x_l), x_L⟩ / ‖F(x_l)‖‖x_L‖."""
    truncated: float
    """The share of y_l's elements that f sets to zero; for f = ReLU those below 0."""
    truncation: float
    """‖f(y_l) − y_l‖ / ‖y_l‖."""


@dataclass(frozen=True)
class StageSum:
    """Eq. 4 over a stage, all relative to ‖x_L‖.

        x_L = h(x_1) + Σ F(x_i)  +  Σ (h(x_i) − x_i)  +  Σ (f(y_i) − y_i)  +  Σ (x_{i+1} − x'_i)

    The last sum is of what stands between the units; mostly nothing does, and it is 0.
    Every norm is divided by ‖x_L‖.
    """

    units: int
    """The number of units in the stage."""
    residual: float
    """‖x_L − h(x_1) − Σ F(x_i)‖: rounding, where h and f are the identity."""
    from_h: float
    """‖Σ (h(x_i) − x_i)‖."""
    from_f: float
    """‖Σ (f(y_i) − y_i)‖."""
    rounding: float
    """The norm of what remains of the residual without those sums."""
    start: float
    """‖h(x_1)‖."""
    start_cosine: float
    """⟨h(x_1), x_L⟩ / ‖h(x_1)‖‖x_L‖."""
    between: float = 0.0
    """‖Σ (x_{i+1} − x'_i)‖: what layers between the units add, where there are any."""


@dataclass(frozen=True)
class Decomposition:
    """Eq. 4 measured on a batch, for every unit and every stage (consecutive units of one shape)."""

    network: str
    units: tuple[UnitShare, ...]
    stages: tuple[StageSum, ...]

    def charts(self) -> tuple[Chart, ...]:
        return (self._share_chart(), self._truncation_chart(), self._residual_chart())

    def summary(self) -> tuple[tuple[str, str], ...]:
        largest = max(self.units, key=lambda unit: unit.norm * unit.cosine)
        return (
            ("largest residual of Eq. 4, ‖x_L − x_1 − ΣF‖ / ‖x_L‖", f"{self.residual:.3g}"),
            ("largest rounding, without the parts of f and h", f"{self.rounding:.3g}"),
            ("elements that f sets to 0, mean over units", share_text(self.truncated)),
            ("largest share of one unit in its x_L", share_text(largest.norm * largest.cosine)),
            ("… of unit", largest.name),
        )

    def finding(self) -> str:
        if self.residual < EXACT:
            return (
                f"Eq. 4 holds to {self.residual:.1g} of ‖x_L‖: between two units of a stage there are only "
                "additions, as the paper proposes"
            )
        missing = share_text(self.residual)
        return f"Eq. 4 misses x_L by {missing} in the worst stage, because {self._reason()}"

    def _reason(self) -> str:
        by_h, by_f = max(stage.from_h for stage in self.stages), max(stage.from_f for stage in self.stages)
        if max(stage.between for stage in self.stages) > max(by_h, by_f):
            return "layers between the units change the signal"
        cut = (
            f"f sets {share_text(self.truncated)} of the elements to 0"
            if self.truncated
            else "f cuts nothing"
        )
        return cut if by_f >= by_h else "the shortcut is not the identity" + (f" and {cut}" if by_f else "")

    def tracked_metrics(self) -> tuple[tuple[str, float], ...]:
        """The share of elements that f cuts, and the residual."""
        return (("elements that f sets to 0", self.truncated), ("residual of Eq. 4", self.residual))

    @property
    def residual(self) -> float:
        """The largest residual of a stage."""
        return max(stage.residual for stage in self.stages)

    @property
    def rounding(self) -> float:
        """The largest rounding of a stage."""
        return max(stage.rounding for stage in self.stages)

    @property
    def truncated(self) -> float:
        """The mean over the units of the share of elements that f sets to zero."""
        return sum(unit.truncated for unit in self.units) / len(self.units)

    @property
    def _stage_starts(self) -> tuple[float, ...]:
        return stage_starts([unit.stage for unit in self.units])

    def _share_chart(self) -> Chart:
        units, name = self.units, "share ⟨F(x_l), x_L⟩ / ‖x_L‖²"
        share = share_text(sum(unit.norm * unit.cosine for unit in units) / len(self.stages))
        # Branches at right angles to one another predict shares of x_L only where x_L is their sum.
        holds = self.residual < EXACT
        predicted = (unit_series(name, [unit.norm**2 for unit in units], "predicted"),) if holds else ()
        return Chart(
            "shares",
            "What each unit adds to its stage's final feature",
            "x_L = x_l + Σ F(x_i)   (P2, Eq. 4)",
            "residual unit, from the input",
            "share of x_L",
            (
                unit_series("‖F(x_l)‖ / ‖x_L‖", [unit.norm for unit in units]),
                unit_series(name, [unit.norm * unit.cosine for unit in units]),
                *predicted,
            ),
            note=f"the branches make up {share} of x_L, the stage's start the remainder; "
            + (
                "predicted: branches at right angles to one another"
                if holds
                else "no prediction, since Eq. 4 does not hold"
            ),
            stages=self._stage_starts,
        )

    def _truncation_chart(self) -> Chart:
        first, last = self.units[0].truncated, self.units[-1].truncated
        identity = all(unit.truncation == 0 for unit in self.units)
        predicted = (unit_series("share of y_l", [0.0] * len(self.units), "predicted"),) if identity else ()
        text = (
            "f is the identity: nothing is cut"
            if identity
            else f"{share_text(first)} at the first unit, {share_text(last)} at the last"
        )
        return Chart(
            "truncation",
            "Elements that f sets to zero",
            "x' = f(y): a ReLU cuts y_l < 0   (P2, Sec. 4.2)",
            "residual unit, from the input",
            "share of y_l's elements",
            (unit_series("share of y_l", [unit.truncated for unit in self.units]), *predicted),
            note=f"{text}; mean {share_text(self.truncated)}",
            stages=self._stage_starts,
        )

    def _residual_chart(self) -> Chart:
        x = tuple(float(number) for number, _ in enumerate(self.stages, 1))
        measured = tuple(stage.residual for stage in self.stages)
        from_f, from_h = (
            tuple(getattr(stage, name) for stage in self.stages) for name in ("from_f", "from_h")
        )
        return Chart(
            "residual",
            "The residual of Eq. 4 and its parts",
            "x_L − h(x_1) − Σ F(x_i) = Σ (h(x_i) − x_i) + Σ (f(y_i) − y_i)",
            "stage",
            "norm relative to ‖x_L‖",
            (
                Series("residual of Eq. 4", x, measured),
                Series("Σ (f(y) − y)", x, from_f),
                Series("Σ (h(x) − x)", x, from_h),
            ),
            log_y=True,
            note=f"largest {self.residual:.3g}; {self.rounding:.1g} without the parts of f and h",
        )


@torch.no_grad()
def measure_decomposition(
    model: nn.Module, x: Tensor, *, network: str = "", units: Sequence[str] = (), training: bool = True
) -> Decomposition:
    """Measures Eq. 4 on a batch, in two passes that hold one unit at a time.

        x_L = x_l + Σ_{i=l}^{L−1} F(x_i)          (P2, Eq. 4; over each stage, with h(x_l) for x_l)

    Args:
        model: any module; it is left as it was.
        x: a normalised batch, (N, C, H, W).
        network: the name to show; by default the class's.
        units: the names of its units in a foreign model (see `find_residual_units`).
        training: BN uses the batch's statistics; off, its running ones.

    Raises:
        InputError: the model has no units, or Eq. 4 with all its parts is missed by more than rounding (see
            `UnitChain`).

    >>> from kilolayer.networks import build, describe
    >>> images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> measure_decomposition(build(describe("preact_resnet14_cifar")), images).residual < EXACT
    True
    >>> measure_decomposition(build(describe("resnet14_cifar")), images).truncated > 0.2  # f = ReLU
    True
    """
    chain = UnitChain(model, units, training=training)
    finals = _stage_outputs(chain, x)
    shares: list[UnitShare] = []
    sums: list[_StageAccumulator] = []
    for unit in chain.forward(x):
        if unit.stage > len(sums):
            sums.append(_StageAccumulator(finals[len(sums)], unit))
        else:
            sums[-1].arrive(unit)
        shares.append(sums[-1].add(unit))
    stages = tuple(accumulator.stage_sum() for accumulator in sums)
    for stage, accumulator in zip(stages, sums, strict=True):
        accumulator.check(stage)
    return Decomposition(network or type(model).__name__, tuple(shares), stages)


def decomposition_of(analysis_input: AnalysisInput) -> Decomposition:
    """The analysis of an `AnalysisInput`, as the registry runs it."""
    return measure_decomposition(
        analysis_input.model, analysis_input.x, network=analysis_input.name, units=analysis_input.units
    )


def _stage_outputs(chain: UnitChain, x: Tensor) -> list[Tensor]:
    """x_L of every stage."""
    finals: dict[int, Tensor] = {}
    for unit in chain.forward(x):
        finals[unit.stage] = unit.out
    return list(finals.values())


class _StageAccumulator:
    """The sums of Eq. 4 over a stage, unit by unit."""

    def __init__(self, final: Tensor, first: UnitPass) -> None:
        # In float64, so that the rounding left over is the network's and not this sum's.
        self.final, self.size = final.double(), norm(final)
        self.start = torch.zeros_like(self.final) if first.h is None else first.h.double()
        self.total = self.start.clone()
        self.from_h, self.from_f = torch.zeros_like(self.final), torch.zeros_like(self.final)
        self.between: Tensor | None = None
        self.units, self.sizes, self.eps = 0, 0.0, 0.0
        self.last = first

    def arrive(self, unit: UnitPass) -> None:
        """Takes in how the unit's input differs from the last unit's output, and its h(x) from its input."""
        if not unit.h_is_input:
            self.from_h += (0.0 if unit.h is None else unit.h.double()) - unit.x
        if unit.x is not self.last.out:
            difference = unit.x.double() - self.last.out
            self.between = difference if self.between is None else self.between + difference

    def add(self, unit: UnitPass) -> UnitShare:
        F, y = unit.F, unit.y
        if y.shape != unit.out.shape:
            raise refuse(unit.name, f"f changes the shape of y, "
            f"{tuple(y.shape)}, to {tuple(unit.out.shape)}, so "
                         "that Eq. 4 does not hold for it in any form")  # fmt: skip
        self.last, self.eps = unit, max(self.eps, rounding(F, y, unit.out))
        self.total += F
        self.units += 1
        size, of_y = norm(F), norm(y)
        self.sizes += size + of_y
        if unit.y is unit.out:
            cut_off, cut_size = 0.0, 0.0
        else:
            cut = unit.out.double() - y
            self.from_f += cut
            cut_off, cut_size = ((unit.out == 0) & (y != 0)).double().mean().item(), norm(cut)
        return UnitShare(
            unit.name,
            unit.stage,
            ratio(size, self.size),
            cosine(F, self.final),
            cut_off,
            ratio(cut_size, of_y),
        )

    def stage_sum(self) -> StageSum:
        residual = self.final - self.total
        between = 0.0 if self.between is None else self.between
        return StageSum(
            units=self.units,
            residual=self._relative(residual),
            from_h=self._relative(self.from_h),
            from_f=self._relative(self.from_f),
            rounding=self._relative(residual - self.from_h - self.from_f - between),
            start=self._relative(self.start),
            start_cosine=cosine(self.start, self.final),
            between=0.0 if self.between is None else self._relative(self.between),
        )

    def check(self, stage: StageSum) -> None:
        """Checks Eq. 4 with all its parts. Raises `InputError`."""
        if math.isfinite(stage.rounding) and math.isfinite(self.sizes):
            missing = stage.rounding * self.size
            check_stage(self.last.name, missing, self.sizes + norm(self.start), self.eps, self.last.out.dtype)

    def _relative(self, part: Tensor) -> float:
        return ratio(norm(part), self.size)
