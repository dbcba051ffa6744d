"""Statistics of few seeds, compared with values computed by hand."""

import numpy as np
import pytest

pytest.importorskip("scikit_posthocs")
from vimamba.scanbench import statistics


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, 2, 3, 4, 5], 2 / 32),
        # the losses have a rank sum of 2: no sign, that of 1, or that of 2 give at most this
        ([1, -2, 3, 4, 5], 6 / 32),
        ([-1, -2, -3, -4, -5, -6], 2 / 64),
        ([0, 1, 2, 3], 2 / 8),
        # three equal ranks, one of them a loss: all outcomes are at least as extreme
        ([1, 1, -1], 1.0),
        ([1, 1, 1], 2 / 8),
        ([0, 0, 0], 1.0),
        ([3], 1.0),
        ([], 1.0),
    ],
)
def test_signed_ranks_are_exact_with_ties_and_zeros(differences, p):
    assert statistics.signed_rank_p(differences) == pytest.approx(p)


def test_what_so_few_seeds_cannot_show_is_known():
    assert statistics.least_p(5) == 0.0625
    # 2^-5 is below 0.05; of seven comparisons, the first needs 0.05 / 7, and 2^-8 is below it
    assert [statistics.fewest_seeds(tests) for tests in (1, 7)] == [6, 9]
    assert statistics.signed_rank_p(range(1, 6)) == statistics.least_p(5)


def test_holm_corrects_by_steps():
    assert statistics.correct([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.correct([]) == []


def test_effect_sizes():
    assert statistics.rank_biserial([1, -2, 3]) == pytest.approx((1 - 2 + 3) / 6)
    assert statistics.rank_biserial([-1, -5]) == -1
    assert statistics.rank_biserial([0, 0]) is None
    assert statistics.cohen_dz([1, 2, 3]) == pytest.approx(2)
    assert statistics.cohen_dz([0.1, 0.1, 0.1]) is None
    assert statistics.pooled_deviation([[1, 2, 3], [2, 6, 10]]) == pytest.approx(
        np.sqrt((1 + 16) / 2)
    )


def test_an_interval_holds_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    samples = rng.normal(3, 1, (200, 8))
    found = [statistics.mean_interval(sample) for sample in samples]
    holds = np.mean([interval.low <= 3 <= interval.high for interval in found])
    # 95 % minus two standard errors of 200 samples; plain percentiles would contain it in 88 %
    assert 0.92 <= holds <= 0.98


def test_an_interval_of_few_values_ends_with_them():
    interval = statistics.mean_interval([2.0, 5.0, 3.0])
    assert (interval.low, interval.high) == (2, 5)
    assert statistics.most_coverage(3) == 0.75
    assert statistics.mean_interval([2.0]) is None
    same = statistics.mean_interval([2.0, 2.0, 2.0])
    assert (same.low, same.high) == (2, 2)


def test_seeds_needed_are_those_of_the_t_test_and_a_little_more():
    # a t test of 34 pairs finds half a deviation with power 0.8; signed ranks need pi / 3 as many
    assert statistics.seeds_needed(0.5, 1.0) == 36
    assert statistics.seeds_needed(50, 1.0) == 6
    assert statistics.seeds_needed(1.0, 0.0, comparisons=7) == 9
    assert statistics.seeds_needed(1.0, 1.0, 7) > statistics.seeds_needed(1.0, 1.0)
    assert statistics.seeds_needed(0.001, 1.0) is None


def test_ranks_of_blocks_that_agree():
    table = np.array([[9, 8, 7], [5, 3, 1], [4, 2, 0], [9.5, 9, 8.5]])
    found = statistics.rank_orders(table)
    assert found.ranks.tolist() == [1, 2, 3]
    # rank sums are 4, 8 and 12: 12 / 48 of their squares, less 48
    assert found.statistic == pytest.approx(8)
    assert found.p == pytest.approx(np.exp(-4))  # of chi-squared with two degrees of freedom
    assert found.least_p == pytest.approx(found.p)
    # q of 2.343 for three orders (Demsar 2006, table 5)
    assert found.critical == pytest.approx(2.343 * np.sqrt(3 * 4 / (6 * 4)), abs=1e-3)
    assert found.pairs[0, 2] < 0.05 < found.pairs[0, 1]


def test_nothing_is_ranked_where_there_is_too_little():
    assert statistics.rank_orders(np.ones((1, 3))) is None
    assert statistics.rank_orders(np.ones((4, 2))) is None
    assert statistics.rank_orders(np.ones((4, 3))).p == 1
