"""Dividing a chain for recomputation: against all divisions there are, and the theory of equal units."""

import math
import random
from itertools import product

import pytest

from kilolayer.errors import InputError
from kilolayer.networks.recompute import Segment
from kilolayer.training.rematerialisation import UnitCost, min_budget, peak_bytes, plan_segments


def equal(count, input=1, inside=3, **rest):
    return [UnitCost(input, inside, **rest) for _ in range(count)]


def falling(seed, count):
    """A chain whose maps shrink at every stage, as all networks here do."""
    chance = random.Random(seed)
    size, stage, chain = chance.randint(4, 9), 0, []
    for place in range(count):
        first = place > 0 and chance.random() < 0.3
        if first:
            size, stage = max(1, size // 2), stage + 1
        chain.append(UnitCost(size, 3 * size, chance.randint(0, 2), starts_stage=first))
    return chain


def recomputed(segments):
    return sum(segment.units for segment in segments if segment.recomputed)


def all_divisions(chain):
    """Every way to cut the chain, stages apart, and to recompute or keep each piece."""
    for cuts in product((False, True), repeat=len(chain) - 1):
        ends = [place for place, cut in enumerate(cuts, 1) if cut or chain[place].starts_stage] + [len(chain)]
        if any(chain[place].starts_stage and place not in ends for place in range(1, len(chain))):
            continue
        lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        for flags in product((False, True), repeat=len(lengths)):
            yield tuple(Segment(n, flag) for n, flag in zip(lengths, flags, strict=True))


@pytest.mark.parametrize("seed", range(12))
def test_no_division_of_one_level_needs_less(seed):
    chain = falling(seed, 6)
    peaks = {division: peak_bytes(chain, division) for division in all_divisions(chain)}
    lowest = min_budget(chain, 1)
    assert lowest == min(peaks.values())
    for budget in range(lowest, lowest + 40, 5):
        found = plan_segments(chain, budget, max_levels=1)
        fewest = min(recomputed(division) for division, needs in peaks.items() if needs <= budget)
        assert peak_bytes(chain, found) <= budget
        assert recomputed(found) == fewest


@pytest.mark.parametrize("levels", [1, 2])
def test_a_division_keeps_its_budget_and_covers_the_chain(levels):
    for seed in range(20):
        chain = falling(seed, 30)
        lowest = min_budget(chain, levels)
        found = plan_segments(chain, lowest, levels)
        assert peak_bytes(chain, found) <= lowest
        assert sum(segment.units for segment in found) == 30
        assert sum(segment.recomputations for segment in found) <= levels * 30
        assert plan_segments(chain, lowest - 1, levels) is None


def test_equal_units_need_the_root_of_twice_their_product():
    """√(2acL) bytes with one level, (6ac²L)^⅓ with two, for L units that keep a, of it c at their input."""
    count, a, c = 3000, 4, 1
    chain = equal(count, input=c, inside=a - c)
    assert min_budget(chain, 1) == pytest.approx(math.sqrt(2 * a * c * count), rel=0.05)
    assert min_budget(chain, 2) == pytest.approx((6 * a * c * c * count) ** (1 / 3), rel=0.15)


def test_early_segments_are_the_longer_ones():
    chain = equal(200)
    lengths = [segment.units for segment in plan_segments(chain, min_budget(chain, 1), 1)]
    assert lengths[:-1] == sorted(lengths[:-1], reverse=True)
    assert lengths[0] > 2 * lengths[-2]


def test_with_room_for_all_nothing_is_recomputed():
    assert recomputed(plan_segments(equal(10), 40)) == 0
    assert recomputed(plan_segments(equal(10), 39)) > 0


def test_the_last_segment_need_not_be_recomputed():
    assert not plan_segments(equal(50), min_budget(equal(50), 1), 1)[-1].recomputed


def test_gradients_count_where_they_are_there_already():
    """They fill what the recomputed units leave."""
    chain = equal(60, gradient_bytes=2)
    assert min_budget(chain, 1) > min_budget(equal(60), 1)
    assert min_budget(chain, 2) >= 2 * 60


def test_parts_that_do_not_fit_their_segment_are_refused():
    with pytest.raises(InputError, match="segment of 3 units has parts of 2"):
        Segment(3, parts=(1, 1))
