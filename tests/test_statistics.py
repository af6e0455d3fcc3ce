"""Statistics that can be worked out by hand, and laws that hold for all."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilolayer.statistics.agreement import judge_agreement, summarize_runs
from kilolayer.statistics.comparison import Comparison, compare_with_paper
from kilolayer.statistics.permutation_tests import (
    holm_adjust,
    kendall_tau,
    kendall_tau_test,
    label_exchange_test,
    sign_flip_test,
)
from kilolayer.statistics.published import PublishedResult, Statistic

MEDIAN_OF_5 = Statistic("median", 5)
ERRORS = st.floats(0, 100, width=32).map(float)


def test_a_summary_by_hand() -> None:
    found = summarize_runs([6.0, 7.0, 11.0])
    assert found is not None
    assert (found.n, found.median, found.mean, found.diverged) == (3, 7.0, 8.0, 0)
    assert found.std == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    # The median of a sample of three is the least value with probability 7/27 > 2.5 %, likewise the greatest.
    assert (found.low, found.high) == (6.0, 11.0)


def test_the_interval_of_a_mean_lies_within_the_range() -> None:
    found = summarize_runs([1.0, 2.0, 3.0, 4.0, 5.0], of="mean")
    assert found is not None
    assert 1.0 < found.low < 3.0 < found.high < 5.0
    # The mean's standard error is √2/√5 = 0.63 under resampling: ±1.24 for 95 %.
    assert found.high - found.low == pytest.approx(2.48, abs=0.25)


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


def test_verdicts_need_three_runs() -> None:
    published = PublishedResult(6.61, MEDIAN_OF_5)
    assert judge_agreement(published, []).word == "not run"
    assert judge_agreement(published, [6.6, 6.6]).word == "not enough runs"
    assert (
        judge_agreement(published, [6.6, 6.6, 6.6]).word == "differs"
    )  # no spread at all, and 6.61 is not 6.60
    assert judge_agreement(PublishedResult(6.605, MEDIAN_OF_5), [6.6, 6.6, 6.6]).word == "agrees"


def test_a_verdict_is_widened_by_the_papers_spread() -> None:
    # √(π/2) · 0.14 / √5 · 1.96 = 0.1538, and half of 0.01 for rounding: the interval ends at 4.90 + 0.1588.
    runs = [4.70, 4.80, 4.90]
    found = judge_agreement(PublishedResult(4.92, MEDIAN_OF_5, mean=4.89, std=0.14), runs)
    assert found.word == "agrees"
    assert found.high == pytest.approx(4.90 + 0.1588, abs=1e-4)
    assert judge_agreement(PublishedResult(5.06, MEDIAN_OF_5, std=0.14), runs).word == "differs"
    assert judge_agreement(PublishedResult(5.05, MEDIAN_OF_5, std=0.14), runs).word == "agrees"


def test_without_the_papers_spread_ours_stands_in() -> None:
    # One run of the paper's varies as ours do: s = 0.1, so 1.96 · 0.1 to each side of 7.1 … 7.3.
    found = judge_agreement(PublishedResult(7.0), [7.1, 7.2, 7.3])
    assert (found.low, found.high) == (pytest.approx(7.1 - 0.201), pytest.approx(7.3 + 0.201))
    assert found.word == "agrees"
    assert judge_agreement(PublishedResult(6.8), [7.1, 7.2, 7.3]).word == "differs"


def test_a_best_run_is_judged_by_the_mean_beside_it() -> None:
    best = PublishedResult(6.43, Statistic("best", 5), mean=6.61, std=0.16)
    assert judge_agreement(best, [6.5, 6.6, 6.7]).text.startswith("the paper's 6.61 lies inside")


def test_a_curve_has_no_figure_to_agree_with() -> None:
    assert judge_agreement(PublishedResult(), [7.0, 7.1, 7.2]).word == "no figure"


def test_a_failure_agrees_with_failures() -> None:
    fail = PublishedResult(above=20.0)
    assert judge_agreement(fail, [None, 35.0, 12.0]).word == "agrees"
    assert judge_agreement(fail, [None, 15.0, 12.0]).word == "differs"
    assert judge_agreement(fail, [20.0, 20.0, 20.0]).word == "differs"
    assert judge_agreement(fail, [90.0, 90.0]).word == "not enough runs"


def test_sign_flips_by_hand() -> None:
    # Of the 8 sign patterns of (1, 2, 3) only +++ and −−− reach |6|.
    assert sign_flip_test([1.0, 2.0, 3.0]).p == 2 / 8
    # (1, 2, −3) sums to 0, which every pattern reaches.
    assert sign_flip_test([1.0, 2.0, -3.0]).p == 1.0
    # (1, 5, 5, −1) sums to 10. With both 5s up the sums are 12, 10, 10 and 8; both down mirrors that.
    assert sign_flip_test([1.0, 5.0, 5.0, -1.0]).p == 6 / 16
    assert sign_flip_test([1.0] * 6).p == sign_flip_test([1.0] * 6).smallest == 1 / 32


def test_exchanged_labels_by_hand() -> None:
    separated = label_exchange_test([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    assert separated.p == separated.smallest == pytest.approx(2 / 20)
    # Means 1 and 3.5 of {1} and {3, 4}; the label on 4 gives a gap of 2 only, on 3 of 0.5: 1 of 3.
    assert label_exchange_test([1.0], [3.0, 4.0]).p == pytest.approx(1 / 3)
    assert label_exchange_test([2.0, 2.0], [2.0, 2.0]).p == 1.0
    assert label_exchange_test([1.0] * 5, [2.0] * 5).p == pytest.approx(2 / 252)


def test_many_runs_are_sampled_and_reproducible() -> None:
    a, b = [float(i) for i in range(20)], [float(i) + 0.5 for i in range(20)]
    assert label_exchange_test(a, b) == label_exchange_test(a, b)
    assert sign_flip_test([1.0] * 20).p == pytest.approx(2e-5)
    assert label_exchange_test(a, b).p > 0.5


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


@given(st.lists(ERRORS, min_size=3, max_size=6), ERRORS, st.floats(0, 5, width=32))
def test_a_larger_spread_never_turns_agreement_away(runs: list[float], value: float, std: float) -> None:
    narrow, wide = (judge_agreement(PublishedResult(value, MEDIAN_OF_5, std=s), runs) for s in (std, std + 1))
    assert not (narrow.word == "agrees" and wide.word == "differs")


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=7))
def test_sign_flip_p_is_never_below_its_minimum(differences: list[float]) -> None:
    found = sign_flip_test(differences)
    assert found.smallest - 1e-12 <= found.p <= 1
    assert found.smallest == 2.0 ** (1 - len(differences))
    assert sign_flip_test([-d for d in differences]).p == found.p


@given(st.lists(ERRORS, min_size=1, max_size=5), st.lists(ERRORS, min_size=1, max_size=5))
def test_relabelled_p_is_never_below_its_minimum(a: list[float], b: list[float]) -> None:
    assert label_exchange_test(a, b).smallest - 1e-12 <= label_exchange_test(a, b).p <= 1


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


def _pairs(found: Comparison) -> dict[str, float]:
    return {pair.b: pair.gap for pair in found.pairs}


def test_a_comparison_by_hand() -> None:
    found = compare_with_paper(PAPER, MEASURED, baseline="original")
    worse, better, broken = found.pairs
    assert (worse.paper_gap, better.paper_gap) == (pytest.approx(1.56), pytest.approx(-0.24))
    assert broken.paper_gap is None
    assert [pair.paper_direction for pair in found.pairs] == [1, -1, 1]
    assert [pair.gap for pair in found.pairs] == [4.0, 1.0, 48.0]
    assert (worse.low, worse.high) == (3.0, 5.0)
    assert [pair.p for pair in found.pairs] == [0.25] * 3
    assert [pair.p_holm for pair in found.pairs] == [0.75] * 3
    assert worse.word == better.word == "not decided"
    assert "the median gap points the same way" in worse.text
    assert "opposite way" in better.text
    assert "3 runs can reach no less than p = 0.75" in worse.text
    # The paper's order is better, original, worse, broken; ours exchanges the first two: (5 − 1)/6.
    assert found.ranking.tau == pytest.approx(4 / 6)
    assert found.ranking.p == pytest.approx(4 / 24)


def test_labels_may_be_exchanged_instead() -> None:
    found = compare_with_paper(PAPER, MEASURED, baseline="original", test="exchanged labels").pairs[0]
    assert (found.p, found.test, found.gap) == (pytest.approx(0.1), "exchanged labels", 3.0)
    unshared = {"original": {0: 1.0, 1: 2.0, 2: 3.0}, "worse": {5: 4.0, 6: 5.0, 7: 6.0}}
    assert compare_with_paper(PAPER, unshared, baseline="original").pairs[0].test == "exchanged labels"
    assert (
        compare_with_paper(PAPER, unshared, baseline="original", test="sign flips").pairs[0].word
        == "not enough runs"
    )


def test_enough_runs_decide() -> None:
    paper = {"original": PublishedResult(6.61), "worse": PublishedResult(8.17)}
    runs = {"original": {s: 40.0 + s for s in range(8)}, "worse": {s: 42.0 + s for s in range(8)}}
    assert compare_with_paper(paper, runs, baseline="original").pairs[0].text == "same direction (p = 0.0078)"
    swapped = {"original": runs["worse"], "worse": runs["original"]}
    assert compare_with_paper(paper, swapped, baseline="original").pairs[0].word == "opposite direction"
    assert (
        compare_with_paper({**paper, "worse": PublishedResult(6.61)}, runs).pairs[0].word
        == "no direction in the paper"
    )


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
    assert _pairs(after) == _pairs(before)
    assert after.ranking == before.ranking


def test_the_sampled_test_of_tau_nears_scipys_exact_one() -> None:
    stats = pytest.importorskip("scipy.stats")
    x, y = [1, 2, 3, 4, 5, 6, 7, 8, 9], [2, 1, 3, 5, 4, 9, 7, 6, 8]
    exact = stats.kendalltau(x, y, method="exact", alternative="greater").pvalue
    assert kendall_tau_test(x, y).p == pytest.approx(exact, rel=0.2)
    assert kendall_tau_test(x[:6], [2, 1, 3, 5, 4, 6]).p == pytest.approx(
        stats.kendalltau(x[:6], [2, 1, 3, 5, 4, 6], method="exact", alternative="greater").pvalue
    )
