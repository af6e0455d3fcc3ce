"""Statistics of runs beside the papers' figures: intervals, permutation tests, agreement, rankings.

Permutation tests, Kendall's τ and the bootstrap are written by hand in about 150 lines. `scipy.stats` has
them too, but SciPy would be one more large dependency for these alone, and it does not say how small a
p-value so few runs can reach, which the verdicts need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kilolayer.lazy import lazy_attributes
from kilolayer.statistics.published import PublishedResult, Statistic

if TYPE_CHECKING:
    from kilolayer.statistics.agreement import Agreement, RunSummary, judge_agreement, summarize_runs
    from kilolayer.statistics.comparison import Comparison, Ranking, RowPair, compare_with_paper
    from kilolayer.statistics.permutation_tests import (
        holm_adjust,
        kendall_tau,
        kendall_tau_test,
        label_exchange_test,
        sign_flip_test,
    )

_HOMES = {
    "Comparison": "comparison",
    "RowPair": "comparison",
    "Ranking": "comparison",
    "compare_with_paper": "comparison",
    "holm_adjust": "permutation_tests",
    "kendall_tau": "permutation_tests",
    "label_exchange_test": "permutation_tests",
    "sign_flip_test": "permutation_tests",
    "kendall_tau_test": "permutation_tests",
    "RunSummary": "agreement",
    "Agreement": "agreement",
    "summarize_runs": "agreement",
    "judge_agreement": "agreement",
}

__getattr__, __dir__ = lazy_attributes(__name__, _HOMES)

__all__ = [
    "Agreement",
    "Comparison",
    "PublishedResult",
    "Ranking",
    "RowPair",
    "RunSummary",
    "Statistic",
    "compare_with_paper",
    "holm_adjust",
    "judge_agreement",
    "kendall_tau",
    "kendall_tau_test",
    "label_exchange_test",
    "sign_flip_test",
    "summarize_runs",
]
