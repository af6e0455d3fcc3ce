"""Statistics against an independent computation: simulated runs whose truth is known.

Each count is of a fixed seed. The bounds leave three standard errors of the simulation.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kilolayer.errors import InputError
from kilolayer.statistics import (
    Decision,
    DecisionRule,
    compare_images,
    decide,
    judge_agreement,
    least_pairs,
    mcnemar_test,
    median_interval,
    paired_difference,
    paired_spread,
    pairs_for_equivalence,
    pairs_needed,
    sign_flip_interval,
    spread_bound,
    spread_components,
    t_interval,
)
from kilolayer.statistics.images import ImageComparison
from kilolayer.statistics.intervals import Interval, coverage_text
from kilolayer.statistics.published import PublishedResult, Statistic
from kilolayer.statistics.sequential import SPENDINGS
from kilolayer.values import from_json, to_json

stats = pytest.importorskip("scipy.stats")
PAIR = [("a", "b")]
RNG = np.random.default_rng


def share_covering(intervals: list[Interval], truth: float) -> float:
    return float(np.mean([found.low <= truth <= found.high for found in intervals]))


def rows_of(differences: np.ndarray, base: float = 50.0) -> dict[str, dict[int, float]]:
    """Rows a and b whose paired differences b − a are these."""
    return {
        "a": dict.fromkeys(range(len(differences)), base),
        "b": {seed: base + float(d) for seed, d in enumerate(differences)},
    }


def decided(differences: np.ndarray, rule: DecisionRule) -> Decision:
    return decide(rule, rows_of(differences), PAIR)[0]


# What an interval covers.


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 9])
def test_the_t_interval_covers_as_it_says(n: int) -> None:
    intervals = [t_interval(values) for values in RNG(0).normal(6.6, 0.2, (3000, n))]
    assert {str(found) for found in intervals} == {"95 % interval"}
    assert 0.94 <= share_covering(intervals, 6.6) <= 0.96


@pytest.mark.slow
@pytest.mark.parametrize(("n", "coverage"), [(6, 1 - 2 / 64), (9, 1 - 24 / 512)])
@pytest.mark.parametrize("form", ["normal", "with failures"])
def test_the_sign_flip_interval_covers_exactly_what_it_says(n: int, coverage: float, form: str) -> None:
    values = RNG(1).normal(0.5, 1.0, (3000, n))
    if form == "with failures":  # three of ten runs of either row guess: the difference is then ± 80
        values += RNG(2).choice([-80.0, 0.0, 80.0], values.shape, p=[0.3, 0.4, 0.3])
    intervals = [sign_flip_interval(row) for row in values]
    assert {found.coverage for found in intervals} == {coverage}
    assert share_covering(intervals, 0.5) == pytest.approx(coverage, abs=0.012)


@pytest.mark.slow
@pytest.mark.parametrize("n", [6, 10])
def test_the_interval_of_a_median_covers_for_skewed_runs_too(n: int) -> None:
    intervals = [median_interval(values) for values in RNG(3).exponential(1.0, (1500, n))]
    (coverage,) = {found.coverage for found in intervals}
    assert coverage is not None
    assert coverage >= 0.95
    assert share_covering(intervals, math.log(2)) == pytest.approx(coverage, abs=0.015)


@pytest.mark.slow
def test_for_skewed_runs_the_t_interval_covers_less() -> None:
    """The page says how much: a mean of six exponential values is covered 88 to 91 % of the time."""
    intervals = [t_interval(values) for values in RNG(4).exponential(1.0, (3000, 6))]
    assert 0.88 <= share_covering(intervals, 1.0) <= 0.91


@pytest.mark.parametrize("make", [sign_flip_interval, median_interval])
def test_too_few_values_have_a_range_and_no_interval(make: object) -> None:
    for n in range(1, 6):
        found = make(np.arange(float(n)))  # type: ignore[operator]
        assert (str(found), found.low, found.high) == ("range", 0.0, n - 1.0)


def test_a_coverage_is_never_rounded_up() -> None:
    assert coverage_text(1 - 2 / 64) == "96.8 %"
    assert [coverage_text(value) for value in (0.5, 0.9, 0.95, 0.995, 0.99995)] == [
        *("50 %", "90 %", "95 %", "99.5 %", "99.995 %")
    ]


# Size and power of one comparison.


@pytest.mark.slow
@pytest.mark.parametrize("fails", [0.0, 0.3])
def test_sign_flips_find_nothing_where_nothing_is_at_most_five_in_a_hundred_times(fails: float) -> None:
    """Also where runs of both rows fail, whose differences are far from normal."""
    trials = RNG(5).normal(7.0, 0.2, (1500, 2, 7))
    trials = np.where(RNG(6).random(trials.shape) < fails, 90.0, trials)
    found = [paired_difference(b - a).p <= 0.05 for a, b in trials]
    # The attainable level nearest to 5 % at seven pairs is 6/128.
    assert np.mean(found) == pytest.approx(6 / 128, abs=0.017)


@pytest.mark.slow
def test_the_two_tests_and_their_intervals_agree() -> None:
    """p ≤ level exactly where the interval leaves out 0; equivalent where TOST's interval is inside."""
    for values in RNG(7).normal(0.6, 1.0, (60, 8)):
        for test in ("sign flips", "paired t"):
            for level in (0.02, 0.05, 0.2):
                found = paired_difference(values, margin=1.5, level=level, test=test)  # type: ignore[arg-type]
                outside = found.interval.low > 0 or found.interval.high < 0
                assert outside == (found.p <= level)
                wide = paired_difference(values, level=2 * level, test=test).interval  # type: ignore[arg-type]
                assert found.p_equivalence is not None
                assert (found.p_equivalence <= level) == (wide.low > -1.5 and wide.high < 1.5)


@pytest.mark.slow
@pytest.mark.parametrize("truth", [0.5, -0.5])
def test_equivalence_at_the_margin_is_found_at_most_five_in_a_hundred_times(truth: float) -> None:
    values = RNG(8).normal(truth, 0.1, (1200, 7))
    sign_flips = [paired_difference(row, margin=0.5).p_equivalence for row in values[:400]]
    by_t = [paired_difference(row, margin=0.5, test="paired t").p_equivalence for row in values]
    assert np.mean(np.array(sign_flips) <= 0.05) <= 0.05 + 0.032
    assert 0.031 <= np.mean(np.array(by_t) <= 0.05) <= 0.069


@pytest.mark.slow
@pytest.mark.parametrize("test", ["sign flips", "paired t"])
def test_the_planned_number_of_pairs_has_the_planned_power(test: str) -> None:
    plan = pairs_needed(0.5, 0.35, comparisons=2, power=0.8, test=test)  # type: ignore[arg-type]
    values = RNG(9).normal(0.5, 0.35, (800, plan.n))
    found = [paired_difference(row, test=test).p <= plan.level for row in values]  # type: ignore[arg-type]
    assert plan.level == 0.025
    assert plan.power >= 0.8
    assert np.mean(found) == pytest.approx(plan.power, abs=0.045)


@pytest.mark.slow
@pytest.mark.parametrize("test", ["sign flips", "paired t"])
def test_the_planned_number_of_pairs_shows_equivalence(test: str) -> None:
    plan = pairs_for_equivalence(0.5, 0.35, true_difference=0.1, test=test)  # type: ignore[arg-type]
    values = RNG(10).normal(0.1, 0.35, (600, plan.n))
    found = [
        paired_difference(row, margin=0.5, test=test).p_equivalence <= plan.level  # type: ignore[arg-type, operator]
        for row in values
    ]
    assert plan.power >= 0.8
    assert np.mean(found) == pytest.approx(plan.power, abs=0.05)


def test_ten_comparisons_need_nine_pairs_by_sign_flips() -> None:
    assert [least_pairs(m) for m in (1, 2, 5, 10, 20)] == [6, 7, 8, 9, 10]
    assert pairs_needed(100.0, 1.0, comparisons=10).n == 9
    assert pairs_needed(1.0, 1.0, comparisons=10).n > pairs_needed(1.0, 1.0).n
    with pytest.raises(InputError, match="8 pairs cannot decide any of 10 comparisons"):
        DecisionRule((8,)).check(10)


@pytest.mark.slow
def test_a_pilots_spread_is_bounded_as_often_as_it_says() -> None:
    spreads = RNG(11).normal(0, 1, (4000, 4)).std(axis=1, ddof=1)
    assert np.mean([spread_bound(s, 4, 0.8) >= 1 for s in spreads]) == pytest.approx(0.8, abs=0.02)


# Several looks, and several comparisons.


@pytest.mark.parametrize("spending", SPENDINGS)
@pytest.mark.parametrize("test", ["sign flips", "paired t"])
def test_the_levels_of_the_looks_add_up_to_alpha(spending: str, test: str) -> None:
    for looks in ((9,), (3, 6, 9), (4, 8, 12, 16)):
        rule = DecisionRule(looks, spending=spending, test=test)  # type: ignore[arg-type]
        for comparisons in (1, 10):
            levels, alpha = rule.look_levels(comparisons), 0.05 / comparisons
            steps = [2.0 ** (1 - n) if n <= 16 else 2e-5 for n in looks]
            spent = (
                [math.floor(level / step + 1e-9) * step for level, step in zip(levels, steps, strict=True)]
                if test == "sign flips"
                else levels
            )
            assert sum(spent) <= alpha * (1 + 1e-9)
            assert test == "sign flips" or sum(levels) == pytest.approx(alpha)


def test_the_first_looks_are_those_that_lan_and_demets_print() -> None:
    """Boundaries of the first of five looks at two-sided 5 %: Reboussin et al. 2000, 4.8769 and 2.4380."""
    for spending, z in (("O'Brien-Fleming", 4.8769), ("Pocock", 2.4380)):
        rule = DecisionRule((10, 20, 30, 40, 50), test="paired t", spending=spending)  # type: ignore[arg-type]
        assert stats.norm.isf(rule.look_levels()[0] / 2) == pytest.approx(z, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("spending", SPENDINGS)
@pytest.mark.parametrize("looks", [(3, 6, 9), (3, 5, 9), tuple(range(3, 13))])
@pytest.mark.parametrize("comparisons", [1, 10])
def test_looking_often_errs_no_more_than_alpha(
    spending: str, looks: tuple[int, ...], comparisons: int
) -> None:
    """Under no difference, with all comparisons against one baseline, whose runs they share."""
    rule = DecisionRule(looks, test="paired t", spending=spending)  # type: ignore[arg-type]
    baseline = RNG(12).normal(0, 1, (20_000 // comparisons, 1, looks[-1]))
    differences = RNG(13).normal(0, 1, (len(baseline), comparisons, looks[-1])) - baseline
    hit = np.zeros(differences.shape[:2], bool)
    for n, level in zip(looks, rule.look_levels(comparisons), strict=True):
        hit |= stats.ttest_1samp(differences[..., :n], 0, axis=-1).pvalue <= level
    error, trials = float(hit.any(axis=1).mean()), len(baseline)
    assert 0.02 <= error <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


def test_decisions_are_those_of_the_levels() -> None:
    """`decide` does what the law above assumes: it compares every look's p with its level."""
    rule = DecisionRule((3, 6, 9), test="paired t", spending="Pocock")
    for values in RNG(14).normal(0.8, 1.0, (40, 9)):
        p = [stats.ttest_1samp(values[:n], 0).pvalue for n in rule.looks]
        hit = [n for n, each, level in zip(rule.looks, p, rule.look_levels(), strict=True) if each <= level]
        found = decided(values, rule)
        assert found.word == (
            "undecided" if not hit else "A is better" if found.difference > 0 else "B is better"
        )
        assert found.n == (hit[0] if hit else 9)
        assert found.final


@pytest.mark.slow
def test_failures_in_both_rows_do_not_raise_the_error_of_the_t_test() -> None:
    rule = DecisionRule((3, 6, 9), test="paired t", spending="Pocock")
    runs = RNG(15).normal(7.0, 0.2, (10_000, 2, 9))
    runs = np.where(RNG(16).random(runs.shape) < 0.3, 90.0, runs)
    hit = np.zeros(len(runs), bool)
    with np.errstate(invalid="ignore"):
        for n, level in zip(rule.looks, rule.look_levels(), strict=True):
            differences = runs[:, 1, :n] - runs[:, 0, :n]
            hit |= stats.ttest_1samp(differences, 0, axis=-1).pvalue <= level
    assert hit.mean() <= 0.05


def test_holms_steps_decide_what_holms_adjustment_does() -> None:
    from kilolayer.statistics import holm_adjust

    rows = {"base": dict.fromkeys(range(9), 50.0)}
    differences = RNG(17).normal(np.linspace(0, 1.2, 6)[:, None], 0.6, (6, 9))
    rows |= {str(i): {s: 50 + d for s, d in enumerate(row)} for i, row in enumerate(differences)}
    rule = DecisionRule((9,), test="paired t")
    found = decide(rule, rows, [("base", str(i)) for i in range(6)])
    adjusted = holm_adjust([stats.ttest_1samp(row, 0).pvalue for row in differences])
    assert [d.word != "undecided" for d in found] == [p <= 0.05 for p in adjusted]
    assert 0 < sum(p <= 0.05 for p in adjusted) < 6
    # A planned comparison without runs still counts.
    more = decide(rule, rows, [("base", str(i)) for i in range(40)])
    assert sum(d.word == "A is better" for d in more) < sum(d.word == "A is better" for d in found)


def test_an_early_decision_stands_and_a_look_that_is_not_complete_does_not_count() -> None:
    rule = DecisionRule((3, 6, 9), margin=0.5, test="paired t", spending="Pocock")
    first = np.array([2.0, 2.01, 1.99])
    later = np.concatenate([first, [-3.0, -9.0, -9.0, -9.0]])
    assert (decided(first, rule).word, decided(first, rule).final) == ("A is better", True)
    assert decided(later, rule) == decided(first, rule)
    waiting = decided(np.array([0.1, -2.0, 2.0, 0.3, 0.1]), rule)
    assert (waiting.word, waiting.n, waiting.final) == ("undecided", 3, False)
    none = decided(first[:2], rule)
    assert (none.word, none.n, none.final) == ("not enough runs", 0, False)
    rows = rows_of(np.arange(9.0))
    del rows["b"][1]  # the second seed of the order
    assert decide(rule, rows, PAIR, seeds=range(9))[0].n == 0


def test_what_cannot_be_judged_is_undecided() -> None:
    rule = DecisionRule((3,), margin=0.5, test="paired t")
    equal = decided(np.array([0.25, 0.25, 0.25]), rule)
    assert (equal.word, equal.p, equal.p_equivalence) == ("undecided", 1.0, 1.0)
    fail = {name: dict.fromkeys(range(9)) for name in "ab"}
    (both,) = decide(DecisionRule((9,), margin=0.5), fail, PAIR)
    assert (both.word, both.failed) == ("undecided", (9, 9))
    assert both.text == "undecided: neither “a” nor “b” learned anything in 9 seeds"


# Laws.

DIFFERENCES = st.lists(st.integers(-40, 40).map(lambda x: x / 8), min_size=6, max_size=9).map(np.array)
RULES = st.sampled_from(
    [
        DecisionRule(margin=1.0),
        DecisionRule(margin=1.0, test="paired t"),
        DecisionRule((3, 6), margin=1.0, test="paired t", spending="Pocock"),
    ]
)


@settings(max_examples=60, deadline=None)
@given(DIFFERENCES, RULES)
def test_exchanging_the_rows_exchanges_the_decision(differences: np.ndarray, rule: DecisionRule) -> None:
    found, other = decided(differences, rule), decided(-differences, rule)
    swapped = {"A is better": "B is better", "B is better": "A is better"}
    assert other.word == swapped.get(found.word, found.word)
    assert (other.low, other.high) == (pytest.approx(-found.high), pytest.approx(-found.low))
    assert other.p == pytest.approx(found.p)


@settings(max_examples=40, deadline=None)
@given(DIFFERENCES, RULES, st.sampled_from([0.125, 4.0]))
def test_points_and_margins_in_another_unit_decide_the_same(
    differences: np.ndarray, rule: DecisionRule, factor: float
) -> None:
    found = decided(differences, rule)
    scaled = decided(differences * factor, replace(rule, margin=factor))
    assert (scaled.word, scaled.p) == (found.word, pytest.approx(found.p))
    assert scaled.half_width == pytest.approx(found.half_width * factor)


@settings(max_examples=60, deadline=None)
@given(DIFFERENCES, RULES, st.sampled_from([1.5, 3.0]))
def test_noise_never_decides(differences: np.ndarray, rule: DecisionRule, factor: float) -> None:
    """The same mean with more spread: no more equivalence, and no more difference."""
    rule = replace(rule, looks=())
    noisy = differences.mean() + factor * (differences - differences.mean())
    found = paired_difference(differences, margin=rule.margin, test=rule.test)
    spread = paired_difference(noisy, margin=rule.margin, test=rule.test)
    assert spread.p >= found.p - 1e-9 or found.std == 0
    assert found.p_equivalence is not None
    assert spread.p_equivalence is not None
    assert spread.p_equivalence >= found.p_equivalence - 1e-9 or found.std == 0 or abs(found.mean) >= 1


def test_a_rule_is_a_value_with_json_and_refuses_what_it_cannot_be() -> None:
    rule = DecisionRule((3, 6, 9), margin=0.5, test="paired t", spending="Pocock")
    assert from_json(to_json(rule), DecisionRule) == rule
    for wrong in ({"looks": (3, 3)}, {"looks": (2,)}, {"margin": 0.0}, {"alpha": 1.0}, {"test": "z"}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} (is|are) .*; allowed"):
            DecisionRule(**wrong)  # type: ignore[arg-type]


def test_the_paired_spread_is_that_of_shared_seeds() -> None:
    a, b = {0: 6.0, 1: 7.0, 2: 6.5, 5: None}, {0: 6.5, 1: 7.4, 2: 7.1, 9: 1.0}
    assert paired_spread(a, b) == pytest.approx(np.std([0.5, 0.4, 0.6], ddof=1))
    with pytest.raises(InputError, match="1 shared seeds have no spread"):
        paired_spread(a, {0: 1.0})


# Agreement with a paper.


@pytest.mark.slow
@pytest.mark.parametrize("published", [Statistic("single", 1), Statistic("mean", 5)])
def test_runs_like_the_papers_differ_from_it_at_most_five_in_a_hundred_times(published: Statistic) -> None:
    """The figure is a draw of the same experiment: its interval has to hold 0 for 95 % of them."""
    words = []
    for ours, theirs in zip(
        RNG(18).normal(6.6, 0.3, (1500, 5)),
        RNG(19).normal(6.6, 0.3, (1500, published.runs)).mean(axis=1),
        strict=True,
    ):
        found = judge_agreement(PublishedResult(float(theirs), published, digits=6), list(ours), margin=1e-6)
        words.append(found.word)
    assert words.count("differs") / 1500 == pytest.approx(0.05, abs=0.017)


@pytest.mark.slow
def test_the_noisier_the_runs_the_more_rarely_they_agree() -> None:
    """Of the same truth; the bootstrap's interval, widened, agreed more often the noisier the runs were."""
    figure, shares = PublishedResult(6.6, Statistic("median", 5)), []
    for noise in (0.05, 0.15, 0.3, 1.0):
        runs = RNG(20).normal(6.6, noise, (150, 5))
        shares.append(np.mean([judge_agreement(figure, list(row)).word == "agrees" for row in runs]))
    assert shares[0] == 1.0
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] <= 0.02


# Images.


def trainings_and_images(
    random: np.random.Generator, trainings: int, images: int, quality: float, hardness: np.ndarray
) -> np.ndarray:
    """Flags: an image is wrong where quality, hardness and chance together exceed a bound."""
    parts = random.normal(0, quality, (trainings, 1)) + hardness
    return parts + random.normal(0, 1, (trainings, images)) > 1.5


@pytest.mark.slow
def test_spreads_are_told_apart() -> None:
    """Of the true error between trainings, over many simulated studies, and of test sets, by the binomial."""
    random, found = RNG(21), []
    for _ in range(150):
        flags = trainings_and_images(random, 8, 600, 0.15, random.normal(0, 1, 600))
        found.append(spread_components(flags))
    qualities = random.normal(0, 0.15, 100_000)
    errors = 100 * stats.norm.sf((1.5 - qualities) / math.sqrt(2))
    assert np.sqrt(np.mean([f.training**2 for f in found])) == pytest.approx(errors.std(), rel=0.12)
    rate = errors.mean() / 100
    assert np.mean([f.test_set for f in found]) == pytest.approx(
        100 * math.sqrt(rate * (1 - rate) / 600), rel=0.05
    )
    same = [spread_components(random.random((8, 600)) < 0.1) for _ in range(100)]
    assert np.mean([f.training**2 for f in same]) < 0.3 * np.mean([f.seen**2 for f in same])


@pytest.mark.slow
def test_the_interval_over_trainings_and_images_covers_both() -> None:
    random, found = RNG(22), list[ImageComparison]()
    for _ in range(300):
        hardness = random.normal(0, 1, 400)
        a, b = (trainings_and_images(random, 5, 400, 0.15, hardness) for _ in range(2))
        found.append(compare_images(a, b))
    covered = np.mean([f.low <= 0 <= f.high for f in found])
    assert 0.93 <= covered <= 0.985
    for f in found[:20]:
        assert (f.p <= 0.05) == (not f.low <= 0 <= f.high)


def test_exchanging_rows_exchanges_the_image_comparison() -> None:
    random = RNG(23)
    a, b = (trainings_and_images(random, 4, 300, 0.2, random.normal(0, 1, 300)) for _ in range(2))
    one, other = compare_images(a, b), compare_images(b, a)
    assert (one.difference, one.low, one.p) == (
        pytest.approx(-other.difference), pytest.approx(-other.high), pytest.approx(other.p),
    )  # fmt: skip
    first, second = mcnemar_test(a[0], b[0]), mcnemar_test(b[0], a[0])
    assert (first.only_a, first.only_b, first.p) == (second.only_b, second.only_a, second.p)
    assert first.only_b - first.only_a == b[0].sum() - a[0].sum()


def test_images_of_another_shape_are_refused() -> None:
    flags = np.zeros((3, 5), bool)
    for wrong in (lambda: compare_images(flags, flags[:2]), lambda: spread_components(flags[:1])):
        with pytest.raises(InputError, match="flags of shape"):
            wrong()
    with pytest.raises(InputError, match="one for each image"):
        mcnemar_test(flags[0], flags[0][:4])
    assert mcnemar_test(flags[0], flags[0]).p == 1.0
