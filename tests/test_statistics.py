"""Statistics that can be worked out by hand, and laws that hold for all."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilolayer.errors import InputError
from kilolayer.statistics.agreement import AGREEMENT_MARGIN, judge_agreement, summarize_runs
from kilolayer.statistics.comparison import Comparison, compare_with_paper
from kilolayer.statistics.paired import paired_difference
from kilolayer.statistics.permutation_tests import (
    holm_adjust,
    kendall_tau,
    kendall_tau_test,
    sign_flip_test,
)
from kilolayer.statistics.published import PublishedResult, Statistic
from kilolayer.statistics.sequential import DecisionRule

MEDIAN_OF_5 = Statistic("median", 5)
ERRORS = st.floats(0, 100, width=32).map(float)


def test_a_summary_by_hand() -> None:
    found = summarize_runs([6.0, 7.0, 11.0])
    assert found is not None
    assert (found.n, found.median, found.mean, found.diverged) == (3, 7.0, 8.0, 0)
    assert found.std == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert (found.low, found.high, found.interval_name) == (6.0, 11.0, "range")


def test_intervals_begin_at_six_runs_and_are_named_by_their_coverage() -> None:
    five, six = ([float(i) for i in range(n)] for n in (5, 6))
    assert summarize_runs(five, of="mean").interval_name == "range"  # type: ignore[union-attr]
    # The median of six lies outside of their range with probability 2/2^6.
    assert summarize_runs(six).interval_name == "96.8 % interval"  # type: ignore[union-attr]
    found = summarize_runs(six, of="mean")
    assert found is not None
    # t at 5 degrees of freedom is 2.571, and s = √3.5.
    assert found.interval_name == "95 % interval"
    assert found.high - found.mean == pytest.approx(2.5706 * math.sqrt(3.5 / 6), abs=1e-3)


def test_diverged_runs_count_as_guesses() -> None:
    found = summarize_runs([6.0, None, math.nan, 7.0, math.inf])
    assert found is not None
    assert (found.n, found.diverged, found.median) == (5, 3, 90.0)
    assert summarize_runs([6.0, None, 7.0]).median == 7.0  # type: ignore[union-attr]
    assert summarize_runs([]) is None


@given(st.lists(ERRORS, min_size=1, max_size=8))
def test_the_interval_holds_the_median(values: list[float]) -> None:
    found = summarize_runs(values)
    assert found is not None
    assert min(values) <= found.low <= found.median <= found.high <= max(values)


def test_verdicts_need_three_runs_with_a_spread() -> None:
    published = PublishedResult(6.61, MEDIAN_OF_5)
    assert judge_agreement(published, []).word == "not run"
    assert judge_agreement(published, [6.6, 6.6]).word == "not enough runs"
    assert judge_agreement(published, [6.6, 6.6, 6.6]).word == "undecided"
    assert judge_agreement(published, [6.6, 6.61, 6.62]).word == "agrees"


def test_a_verdict_by_hand() -> None:
    # s = 0.1, n = 3, one run of the paper's: t = 4.303 at 2 degrees of freedom, √(0.01/3 + 0.01) = 0.11547,
    # and half of 0.01 for rounding: 0.5 ± 0.50184.
    found = judge_agreement(PublishedResult(7.0), [7.4, 7.5, 7.6])
    assert (found.low, found.high) == (pytest.approx(-0.00184, abs=1e-4), pytest.approx(1.00184, abs=1e-4))
    assert found.word == "undecided"
    assert judge_agreement(PublishedResult(6.9), [7.4, 7.5, 7.6]).word == "differs"
    assert judge_agreement(PublishedResult(7.5), [7.4, 7.5, 7.6]).word == "undecided"  # ± 0.502 is too wide
    assert judge_agreement(PublishedResult(7.5), [7.4, 7.5, 7.6], margin=0.51).word == "agrees"


def test_the_papers_own_spread_is_used() -> None:
    # s²/n = 0.01/3 and π/2 · 0.14²/5; t = 4.303 at 2 degrees of freedom.
    runs, spread = [4.80, 4.90, 5.00], math.sqrt(0.01 / 3 + math.pi / 2 * 0.14**2 / 5)
    found = judge_agreement(PublishedResult(4.92, MEDIAN_OF_5, std=0.14), runs)
    assert found.high == pytest.approx(4.90 - 4.92 + 4.3027 * spread + 0.005, abs=1e-4)


def test_a_best_run_is_judged_by_the_mean_beside_it() -> None:
    best = PublishedResult(6.43, Statistic("best", 5), mean=6.61, std=0.16)
    assert judge_agreement(best, [6.5, 6.6, 6.7]).text.startswith("our mean 6.60 less 6.61 is −0.01")


def test_a_second_laboratory_is_judged_by_itself() -> None:
    found = judge_agreement(
        PublishedResult(6.37), [6.3, 6.35, 6.4, 6.45], replications={"ReScience": PublishedResult(6.06)}
    )
    assert (found.word, found.replications) == ("agrees", {"ReScience": "differs"})
    assert found.text.endswith("; ReScience, 6.06: differs")


def test_a_curve_has_no_figure_to_agree_with() -> None:
    assert judge_agreement(PublishedResult(), [7.0, 7.1, 7.2]).word == "no figure"


def test_a_failure_agrees_with_failures() -> None:
    fail = PublishedResult(above=20.0)
    assert judge_agreement(fail, [None] * 5).word == "agrees"  # 1/32
    assert judge_agreement(fail, [None] * 4).word == "undecided"  # 1/16
    assert judge_agreement(fail, [None, None, 35.0, 12.0, 90.0]).word == "undecided"
    assert judge_agreement(fail, [20.0] * 5).word == "differs"
    assert judge_agreement(fail, [90.0, 90.0]).word == "not enough runs"


def test_sign_flips_by_hand() -> None:
    # Of the 8 sign patterns of (1, 2, 3) only +++ and −−− reach |6|.
    assert sign_flip_test([1.0, 2.0, 3.0]).p == 2 / 8
    # (1, 2, −3) sums to 0, which every pattern reaches.
    assert sign_flip_test([1.0, 2.0, -3.0]).p == 1.0
    # (1, 5, 5, −1) sums to 10. With both 5s up the sums are 12, 10, 10 and 8; both down mirrors that.
    assert sign_flip_test([1.0, 5.0, 5.0, -1.0]).p == 6 / 16
    assert sign_flip_test([1.0] * 6).p == sign_flip_test([1.0] * 6).smallest == 1 / 32


def test_many_pairs_are_sampled_and_reproducible() -> None:
    differences = [(-1.0) ** i * i for i in range(20)]
    assert sign_flip_test(differences) == sign_flip_test(differences)
    assert sign_flip_test([1.0] * 20).p == sign_flip_test([1.0] * 20).smallest == pytest.approx(2e-5)


def test_holm_by_hand() -> None:
    assert holm_adjust([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm_adjust([0.5, 0.9]) == [1.0, 1.0]
    assert holm_adjust([]) == []


def test_tau_by_hand() -> None:
    assert kendall_tau([1, 2, 3, 4], [1, 2, 3, 4]) == pytest.approx(1.0)
    assert kendall_tau([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    # Pairs: (1,2) +, (1,3) +, (2,3) −: (2 − 1)/3.
    assert kendall_tau([1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)
    # One tie on one side: 2 concordant of √(2 · 3).
    assert kendall_tau([1, 2, 2], [1, 2, 3]) == pytest.approx(2 / math.sqrt(6))
    assert kendall_tau([1, 2, math.inf, math.inf], [1, 2, 3, 3]) == pytest.approx(1.0)
    assert kendall_tau([1, 1], [1, 2]) == 0.0


def test_tau_is_tested_against_dealt_out_rows() -> None:
    assert kendall_tau_test([1, 2, 3], [1, 2, 3]).p == pytest.approx(1 / 6)
    assert kendall_tau_test([1, 2, 3], [3, 2, 1]).p == 1.0
    assert kendall_tau_test([1, 2, math.inf, math.inf], [5, 6, 7, 8]).p == pytest.approx(2 / 24)
    eleven = list(range(11))
    assert kendall_tau_test(eleven, eleven).p == pytest.approx(1e-5)
    assert kendall_tau_test(eleven, eleven[::-1]).p > 0.99


@given(st.lists(ERRORS, min_size=3, max_size=6), ERRORS, st.floats(0, 5, width=32), st.floats(1, 5, width=32))
def test_noise_never_makes_agreement(runs: list[float], value: float, std: float, factor: float) -> None:
    """Neither a larger spread of the paper's nor one of our runs around the same mean."""
    narrow, wide = (judge_agreement(PublishedResult(value, MEDIAN_OF_5, std=s), runs) for s in (std, std + 1))
    assert wide.word in (narrow.word, "undecided")
    mean = sum(runs) / len(runs)
    noisy = [mean + factor * (run - mean) for run in runs]
    for published in (PublishedResult(value), PublishedResult(value, MEDIAN_OF_5)):
        before, after = judge_agreement(published, runs), judge_agreement(published, noisy)
        if before.low is not None and after.low is not None and after.high is not None:
            assert after.word != "agrees" or before.word == "agrees"
            assert after.word != "agrees" or after.high - after.low <= 2 * AGREEMENT_MARGIN + 1e-6


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=7))
def test_sign_flip_p_is_never_below_its_minimum(differences: list[float]) -> None:
    found = sign_flip_test(differences)
    assert found.smallest - 1e-12 <= found.p <= 1
    assert found.smallest == 2.0 ** (1 - len(differences))
    assert sign_flip_test([-d for d in differences]).p == found.p


@given(st.lists(st.integers(0, 4), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_tau_laws(ranks: list[int], random: object) -> None:
    shuffled = sorted(ranks)
    tau = kendall_tau(ranks, shuffled)
    assert -1 - 1e-12 <= tau <= 1 + 1e-12
    assert tau == pytest.approx(kendall_tau(shuffled, ranks))
    assert kendall_tau(ranks, ranks) == pytest.approx(1.0 if len(set(ranks)) > 1 else 0.0)
    found = kendall_tau_test(ranks, shuffled)
    assert found.smallest - 1e-12 <= found.p <= 1


PAPER = {
    "original": PublishedResult(6.61),
    "worse": PublishedResult(8.17),
    "better": PublishedResult(6.37),
    "broken": PublishedResult(above=20.0),
}
MEASURED = {
    "original": {0: 40.0, 1: 41.0, 2: 42.0},
    "worse": {0: 44.0, 1: 44.0, 2: 47.0},
    "better": {0: 41.0, 1: 42.0, 2: 43.0},
    "broken": {0: None, 1: 80.0, 2: None},
}


def _gaps(found: Comparison) -> dict[str, float]:
    return {pair.b: pytest.approx(pair.decision.difference) for pair in found.pairs}


def test_a_comparison_by_hand() -> None:
    found = compare_with_paper(PAPER, MEASURED, baseline="original")
    worse, better, broken = found.pairs
    assert (worse.paper_gap, better.paper_gap) == (pytest.approx(1.56), pytest.approx(-0.24))
    assert broken.paper_gap is None
    assert [pair.paper_direction for pair in found.pairs] == [1, -1, 1]
    assert _gaps(found) == {"worse": 4.0, "better": 1.0, "broken": pytest.approx(137 / 3)}
    assert (worse.decision.low, worse.decision.high) == (3.0, 5.0)
    assert worse.decision.interval == "range of 3 differences"
    assert [pair.decision.p for pair in found.pairs] == [0.25] * 3
    assert {pair.word for pair in found.pairs} == {"undecided"}
    assert worse.decision.text == (
        "undecided at ± 1 points between “original” and “worse” (half the range of 3 differences)"
    )
    assert broken.decision.failed == (0, 2)
    # The paper's order is better, original, worse, broken; ours exchanges the first two: (5 − 1)/6.
    assert found.ranking.tau == pytest.approx(4 / 6)
    assert found.ranking.p == pytest.approx(4 / 24)


def test_rows_without_shared_seeds_are_no_pairs() -> None:
    unshared = {"original": {0: 1.0, 1: 2.0, 2: 3.0}, "worse": {5: 4.0, 6: 5.0, 7: 6.0}}
    pair = compare_with_paper(PAPER, unshared, baseline="original").pairs[0]
    assert (pair.word, pair.decision.text) == ("not enough runs", "0 of at least 3 pairs of runs")


def test_enough_runs_decide() -> None:
    paper = {"original": PublishedResult(6.61), "worse": PublishedResult(8.17)}
    runs = {"original": {s: 40.0 + s for s in range(8)}, "worse": {s: 42.0 + s for s in range(8)}}
    found = compare_with_paper(paper, runs, baseline="original").pairs[0]
    assert (found.word, found.decision.p) == ("same direction", 2 / 2**8)
    swapped = {"original": runs["worse"], "worse": runs["original"]}
    assert compare_with_paper(paper, swapped, baseline="original").pairs[0].word == "opposite direction"
    equal = {**paper, "worse": PublishedResult(6.61)}
    assert compare_with_paper(equal, runs).pairs[0].word == "no direction in the paper"
    own = compare_with_paper(paper, runs, baseline="original", not_in_paper={"worse"}).pairs[0]
    assert own.word == "same direction"
    wide = compare_with_paper(paper, runs, baseline="original", rule=DecisionRule(margin=5.0)).pairs[0]
    assert wide.decision.text == "“original” is better than “worse”, by less than the margin of 5 points"


def test_missing_runs_are_said() -> None:
    found = compare_with_paper(
        PAPER, {"original": MEASURED["original"], "worse": {0: 1.0}}, baseline="original"
    )
    assert {pair.word for pair in found.pairs} == {"not enough runs"}
    assert found.ranking.text == "not enough rows with runs to rank"


def test_without_a_baseline_every_pair_is_compared() -> None:
    assert len(compare_with_paper(PAPER, MEASURED).pairs) == 6


@given(st.integers(-30, 30))
def test_shifting_all_errors_changes_no_gap(shift: int) -> None:
    shifted = {
        row: {seed: 90.0 + shift if error is None else error + shift for seed, error in runs.items()}
        for row, runs in MEASURED.items()
    }
    before, after = (compare_with_paper(PAPER, runs, baseline="original") for runs in (MEASURED, shifted))
    assert _gaps(after) == _gaps(before)
    assert after.ranking == before.ranking


def test_the_sampled_test_of_tau_nears_scipys_exact_one() -> None:
    stats = pytest.importorskip("scipy.stats")
    x, y = [1, 2, 3, 4, 5, 6, 7, 8, 9], [2, 1, 3, 5, 4, 9, 7, 6, 8]
    exact = stats.kendalltau(x, y, method="exact", alternative="greater").pvalue
    assert kendall_tau_test(x, y).p == pytest.approx(exact, rel=0.2)
    assert kendall_tau_test(x[:6], [2, 1, 3, 5, 4, 6]).p == pytest.approx(
        stats.kendalltau(x[:6], [2, 1, 3, 5, 4, 6], method="exact", alternative="greater").pvalue
    )


def test_equivalence_needs_both_of_its_tests() -> None:
    beyond = np.array([0.6, 0.7, 0.8, 0.65, 0.75, 0.72])  # all above the margin, none below its negative
    assert paired_difference(beyond, margin=0.5).p_equivalence == 1.0
    by_t = paired_difference(-beyond, margin=0.5, test="paired t").p_equivalence
    assert by_t is not None
    assert by_t > 0.99
    assert paired_difference(beyond - 0.7, margin=0.5).p_equivalence == 1 / 64


@pytest.mark.parametrize("looks", [(1, 4), (2, 4), (0,), (5, 5), (6, 4)])
def test_looks_start_where_a_test_can_decide_and_increase(looks: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="looks are"):
        DecisionRule(looks)
