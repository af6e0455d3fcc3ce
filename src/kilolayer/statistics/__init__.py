"""Statistics of runs: decisions between rows, agreement with the papers' figures, intervals, power.

`scipy.stats` computes what it has: t tests, permutation tests, Kendall's τ, binomial tests and intervals, the
noncentral t. It is imported when a figure is wanted, and not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kilolayer.lazy import lazy_attributes
from kilolayer.statistics.published import PublishedResult, Statistic

if TYPE_CHECKING:
    from kilolayer.statistics.agreement import Agreement, RunSummary, judge_agreement, summarize_runs
    from kilolayer.statistics.comparison import Comparison, Ranking, RowPair, compare_with_paper
    from kilolayer.statistics.images import (
        ImageComparison,
        McNemar,
        SpreadComponents,
        compare_images,
        mcnemar_test,
        spread_components,
    )
    from kilolayer.statistics.intervals import Interval, median_interval, sign_flip_interval, t_interval
    from kilolayer.statistics.paired import PairedDifference, paired_difference
    from kilolayer.statistics.permutation_tests import (
        holm_adjust,
        kendall_tau,
        kendall_tau_test,
        least_pairs,
        sign_flip_test,
    )
    from kilolayer.statistics.power import (
        PowerPlan,
        paired_spread,
        pairs_for_equivalence,
        pairs_needed,
        spread_bound,
    )
    from kilolayer.statistics.sequential import Decision, DecisionRule, decide

_HOMES = {
    "Comparison": "comparison",
    "RowPair": "comparison",
    "Ranking": "comparison",
    "compare_with_paper": "comparison",
    "holm_adjust": "permutation_tests",
    "kendall_tau": "permutation_tests",
    "least_pairs": "permutation_tests",
    "sign_flip_test": "permutation_tests",
    "kendall_tau_test": "permutation_tests",
    "Interval": "intervals",
    "median_interval": "intervals",
    "sign_flip_interval": "intervals",
    "t_interval": "intervals",
    "PairedDifference": "paired",
    "paired_difference": "paired",
    "ImageComparison": "images",
    "McNemar": "images",
    "SpreadComponents": "images",
    "compare_images": "images",
    "mcnemar_test": "images",
    "spread_components": "images",
    "PowerPlan": "power",
    "paired_spread": "power",
    "pairs_for_equivalence": "power",
    "pairs_needed": "power",
    "spread_bound": "power",
    "Decision": "sequential",
    "DecisionRule": "sequential",
    "decide": "sequential",
    "RunSummary": "agreement",
    "Agreement": "agreement",
    "summarize_runs": "agreement",
    "judge_agreement": "agreement",
}

__getattr__, __dir__ = lazy_attributes(__name__, _HOMES)

__all__ = [
    "Agreement",
    "Comparison",
    "Decision",
    "DecisionRule",
    "ImageComparison",
    "Interval",
    "McNemar",
    "PairedDifference",
    "PowerPlan",
    "PublishedResult",
    "Ranking",
    "RowPair",
    "RunSummary",
    "SpreadComponents",
    "Statistic",
    "compare_images",
    "compare_with_paper",
    "decide",
    "holm_adjust",
    "judge_agreement",
    "kendall_tau",
    "kendall_tau_test",
    "least_pairs",
    "mcnemar_test",
    "median_interval",
    "paired_difference",
    "paired_spread",
    "pairs_for_equivalence",
    "pairs_needed",
    "sign_flip_interval",
    "sign_flip_test",
    "spread_bound",
    "spread_components",
    "summarize_runs",
    "t_interval",
]
