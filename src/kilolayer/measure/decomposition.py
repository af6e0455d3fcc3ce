"""x_L = x_l + Σ F(x_i): how far it holds, what each unit adds, and what f cuts away (P2, Eq. 4, Sec. 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kilolayer.chart import Chart, Series
from kilolayer.measure.scalars import cosine, norm, ratio
from kilolayer.measure.series import percent_text, stage_starts, unit_series
from kilolayer.measure.unit_chain import UnitChain, UnitPass

EXACT = 1e-4
"""Of ‖x_L‖: what fp32 rounds away over a thousand units stays far below it."""


@dataclass(frozen=True)
class UnitShare:
    """What unit l adds to its stage's final feature x_L, and what f takes from it.

    `norm` = ‖F(x_l)‖ / ‖x_L‖ and `cosine` = ⟨F(x_l), x_L⟩ / ‖F(x_l)‖‖x_L‖; their product is the unit's
    share, and the shares of a stage's units and of its start add up to 1 where Eq. 4 holds.
    `truncated` is the share of y_l's elements that f sets to zero (those below 0, for f = ReLU), and
    `truncation` = ‖f(y_l) − y_l‖ / ‖y_l‖.
    """

    name: str
    stage: int
    norm: float
    cosine: float
    truncated: float
    truncation: float


@dataclass(frozen=True)
class StageSum:
    """Eq. 4 over a stage, all relative to ‖x_L‖.

        x_L = h(x_1) + Σ F(x_i)  +  Σ (h(x_i) − x_i)  +  Σ (f(y_i) − y_i)

    `residual` = ‖x_L − h(x_1) − Σ F(x_i)‖: 0 but for rounding where h and f are the identity.
    `from_h` and `from_f` are the norms of the two other sums, and `rounding` what remains without them.
    `start` and `start_cosine` are of h(x_1), as a unit's `norm` and `cosine`.
    """

    units: int
    residual: float
    from_h: float
    from_f: float
    rounding: float
    start: float
    start_cosine: float


@dataclass(frozen=True)
class Decomposition:
    """Eq. 4 measured on a batch, for every unit and every stage (a run of units of one shape)."""

    network: str
    units: tuple[UnitShare, ...]
    stages: tuple[StageSum, ...]

    def charts(self) -> tuple[Chart, ...]:
        return (self._shares(), self._truncation(), self._residuals())

    def summary(self) -> tuple[tuple[str, str], ...]:
        largest = max(self.units, key=lambda unit: unit.norm * unit.cosine)
        return (
            ("largest residual of Eq. 4, ‖x_L − x_1 − ΣF‖ / ‖x_L‖", f"{self.residual:.3g}"),
            ("largest rounding, with f's and h's part taken out", f"{self.rounding:.3g}"),
            ("elements that f sets to 0, mean over units", percent_text(self.truncated)),
            ("largest share of one unit in its x_L", percent_text(largest.norm * largest.cosine)),
            ("… which is of", largest.name),
        )

    def finding(self) -> str:
        if self.residual < EXACT:
            return (
                f"Eq. 4 holds to {self.residual:.1g} of ‖x_L‖: nothing but additions lies between two units "
                "of a stage, as the paper wants it"
            )
        reason = (
            f"f sets {percent_text(self.truncated)} of the elements to 0" if self.truncated else "no f cuts"
        )
        return f"Eq. 4 misses x_L by {percent_text(self.residual)} in the worst stage, since {self._reason(reason)}"

    def _reason(self, cut: str) -> str:
        by_h, by_f = max(stage.from_h for stage in self.stages), max(stage.from_f for stage in self.stages)
        return cut if by_f >= by_h else "the shortcut is not the identity" + (f" and {cut}" if by_f else "")

    def tracked_metrics(self) -> tuple[tuple[str, float], ...]:
        """What is followed over training."""
        return (("elements that f sets to 0", self.truncated), ("residual of Eq. 4", self.residual))

    @property
    def residual(self) -> float:
        """The largest over the stages."""
        return max(stage.residual for stage in self.stages)

    @property
    def rounding(self) -> float:
        return max(stage.rounding for stage in self.stages)

    @property
    def truncated(self) -> float:
        """The mean over the units."""
        return sum(unit.truncated for unit in self.units) / len(self.units)

    @property
    def _stage_starts(self) -> tuple[float, ...]:
        return stage_starts([unit.stage for unit in self.units])

    def _shares(self) -> Chart:
        units = self.units
        spread = percent_text(sum(unit.norm * unit.cosine for unit in units) / len(self.stages))
        return Chart(
            "shares",
            "What each unit adds to its stage's final feature",
            "x_L = x_l + Σ F(x_i)   (P2, Eq. 4)",
            "residual unit, from the input",
            "share of x_L",
            (
                unit_series("‖F(x_l)‖ / ‖x_L‖", [unit.norm for unit in units]),
                unit_series("share ⟨F(x_l), x_L⟩ / ‖x_L‖²", [unit.norm * unit.cosine for unit in units]),
                unit_series("share ⟨F(x_l), x_L⟩ / ‖x_L‖²", [unit.norm**2 for unit in units], "predicted"),
            ),
            note=f"the branches hold {spread} of x_L, the stage's start the rest; "
            "predicted: branches at right angles to one another",
            stages=self._stage_starts,
        )

    def _truncation(self) -> Chart:
        first, last = self.units[0].truncated, self.units[-1].truncated
        identity = all(unit.truncation == 0 for unit in self.units)
        predicted = (unit_series("share of y_l", [0.0] * len(self.units), "predicted"),) if identity else ()
        text = (
            "f is the identity: nothing is cut"
            if identity
            else f"{percent_text(first)} at the first unit, {percent_text(last)} at the last"
        )
        return Chart(
            "truncation",
            "What f sets to zero",
            "x' = f(y): a ReLU cuts y_l < 0   (P2, Sec. 4.2)",
            "residual unit, from the input",
            "share of y_l's elements",
            (unit_series("share of y_l", [unit.truncated for unit in self.units]), *predicted),
            note=f"{text}; mean {percent_text(self.truncated)}",
            stages=self._stage_starts,
        )

    def _residuals(self) -> Chart:
        x = tuple(float(number) for number, _ in enumerate(self.stages, 1))
        measured = tuple(stage.residual for stage in self.stages)
        from_f, from_h = (
            tuple(getattr(stage, name) for stage in self.stages) for name in ("from_f", "from_h")
        )
        return Chart(
            "residual",
            "How far Eq. 4 is from the truth",
            "x_L − h(x_1) − Σ F(x_i) = Σ (h(x_i) − x_i) + Σ (f(y_i) − y_i)",
            "stage",
            "norm relative to ‖x_L‖",
            (
                Series("residual of Eq. 4", x, measured),
                Series("Σ (f(y) − y)", x, from_f),
                Series("Σ (h(x) − x)", x, from_h),
            ),
            log_y=True,
            note="largest " + f"{self.residual:.3g}; {self.rounding:.1g} once f's and h's part is taken out",
        )


@torch.no_grad()
def measure_decomposition(
    model: nn.Module, x: Tensor, *, network: str = "", units: Sequence[str] = (), training: bool = True
) -> Decomposition:
    """Measures Eq. 4 on the batch `x` (N, C, H, W), in two passes that hold one unit at a time.

    `units` names the units of a model that is not ours. The model is left as it was. Raises `InputError`
    where it has no units (see `Chain`).
    """
    chain = UnitChain(model, units, training=training)
    finals = _stage_outputs(chain, x)
    shares: list[UnitShare] = []
    sums: list[_StageAccumulator] = []
    for unit in chain.forward(x):
        if unit.stage > len(sums):
            sums.append(_StageAccumulator(finals[len(sums)], unit))
        else:
            sums[-1].from_h += (0.0 if unit.h is None else unit.h.double()) - unit.x
        shares.append(sums[-1].add(unit))
    return Decomposition(
        network or type(model).__name__, tuple(shares), tuple(accumulator.stage_sum() for accumulator in sums)
    )


def _stage_outputs(chain: UnitChain, x: Tensor) -> list[Tensor]:
    """x_L of every stage."""
    finals: dict[int, Tensor] = {}
    for unit in chain.forward(x):
        finals[unit.stage] = unit.out
    return list(finals.values())


class _StageAccumulator:
    """A stage's sums as they grow."""

    def __init__(self, final: Tensor, first: UnitPass) -> None:
        # In float64, so that what is left is the network's rounding and not this sum's.
        self.final, self.size = final.double(), norm(final)
        self.start = torch.zeros_like(self.final) if first.h is None else first.h.double().expand_as(final)
        self.total = self.start.clone()
        self.from_h, self.from_f = torch.zeros_like(self.final), torch.zeros_like(self.final)
        self.units = 0

    def add(self, unit: UnitPass) -> UnitShare:
        cut = unit.out.double() - unit.y
        self.total += unit.F
        self.from_f += cut
        self.units += 1
        return UnitShare(
            unit.name,
            unit.stage,
            ratio(norm(unit.F), self.size),
            cosine(unit.F, self.final),
            ((unit.out == 0) & (unit.y != 0)).double().mean().item(),
            ratio(norm(cut), norm(unit.y)),
        )

    def stage_sum(self) -> StageSum:
        residual = self.final - self.total
        return StageSum(
            units=self.units,
            residual=self._relative(residual),
            from_h=self._relative(self.from_h),
            from_f=self._relative(self.from_f),
            rounding=self._relative(residual - self.from_h - self.from_f),
            start=self._relative(self.start),
            start_cosine=cosine(self.start, self.final),
        )

    def _relative(self, part: Tensor) -> float:
        return ratio(norm(part), self.size)
