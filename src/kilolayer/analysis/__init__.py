"""Measurements beside the theory that predicts them, and statistics of runs beside the papers' figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kilolayer.analysis.published import Published, Statistic
from kilolayer.lazy import lazily

if TYPE_CHECKING:
    from kilolayer.analysis.comparison import Comparison, Pair, Ranking, compare
    from kilolayer.analysis.permutation import holm, kendall_tau, relabelled, sign_flip, tau_test
    from kilolayer.analysis.statistics import Summary, Verdict, summarize, verdict

_HOMES = {
    "Comparison": "comparison", "Pair": "comparison", "Ranking": "comparison", "compare": "comparison",
    "holm": "permutation", "kendall_tau": "permutation", "relabelled": "permutation",
    "sign_flip": "permutation", "tau_test": "permutation",
    "Summary": "statistics", "Verdict": "statistics", "summarize": "statistics", "verdict": "statistics",
}  # fmt: skip

__getattr__, __dir__ = lazily(__name__, _HOMES)

__all__ = [
    "Comparison",
    "Pair",
    "Published",
    "Ranking",
    "Statistic",
    "Summary",
    "Verdict",
    "compare",
    "holm",
    "kendall_tau",
    "relabelled",
    "sign_flip",
    "summarize",
    "tau_test",
    "verdict",
]
