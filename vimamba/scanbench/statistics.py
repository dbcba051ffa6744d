"""What can be said of scores that few seeds gave: intervals, paired tests, ranks, seeds needed.

Sizes: n seeds, b blocks (data sets, folds or seeds), k orders.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEVEL, ALPHA, POWER = 0.95, 0.05, 0.8
RESAMPLES = 9999
# up to so many seeds all 2^n signs are tried
EXACT = 12
# efficiency of signed ranks relative to the t test for normal differences: 3 / pi
EFFICIENCY = 3 / math.pi
# more seeds than anybody trains
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Ranking:
    """How the orders rank over blocks (Demsar 2006, JMLR 7).

    Attributes:
        blocks: b.
        ranks: (k,) mean ranks, 1 is best.
        statistic: Friedman's chi-squared.
        p: Its p value.
        least_p: That of blocks in full agreement, the smallest possible.
        pairs: (k, k) Nemenyi's p values.
        critical: Difference of two mean ranks that is significant at 0.05.
    """

    blocks: int
    ranks: Floats
    statistic: float
    p: float
    least_p: float
    pairs: Floats
    critical: float


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Bootstrap interval of a mean, widened for few values; None of fewer than two.

    Percentiles of resampled means are too narrow for few values; they are taken at the levels that
    give a t interval where it is exact (Hesterberg 2015, arXiv:1411.5279, "expanded percentile").
    No resampled mean lies beyond the values: see `most_coverage`.

    Args:
        values: (n,).
        level: Of confidence.
    """
    from scipy import stats

    sample = np.asarray(values, dtype=np.float64)
    size = len(sample)
    if size < 2:
        return None
    quantile = stats.t.ppf((1 + level) / 2, size - 1) * math.sqrt(size / (size - 1))
    tail = max(float(stats.norm.sf(quantile)), 1e-9)
    found = stats.bootstrap(
        (sample,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=1 - 2 * tail,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


def most_coverage(size: int) -> float:
    """The confidence that an interval within n values has at the most: of a symmetric spread.

    All values lie on one side of the middle with probability 2^(1 - n).
    """
    return 1 - least_p(size)


def signed_rank_p(differences: Sequence[float]) -> float:
    """Two-sided p value of Wilcoxon's signed ranks, zeros left out; 1 of fewer than two others.

    Exact for few differences, ties included.
    """
    from scipy import stats

    sample = np.asarray(differences, dtype=np.float64)
    sample = sample[sample != 0]
    if len(sample) < 2:
        return 1.0
    if len(sample) <= EXACT:
        method: Any = stats.PermutationMethod(n_resamples=2**EXACT)
        found: Any = stats.wilcoxon(sample, method=method)
    else:
        found = stats.wilcoxon(sample)
    return min(float(found.pvalue), 1.0)


def least_p(size: int) -> float:
    """The smallest two-sided p value that the signed ranks of n differences can have."""
    return 2.0 ** (1 - size)


def fewest_seeds(comparisons: int, alpha: float = ALPHA) -> int:
    """Seeds below which no difference can be significant after Holm's correction.

    Args:
        comparisons: How many differences are tested.
        alpha: Level of the test.
    """
    size = 1
    while least_p(size) * comparisons > alpha:
        size += 1
    return size


def correct(p_values: Sequence[float]) -> list[float]:
    """Correct p values for their number by Holm's steps."""
    from statsmodels.stats.multitest import multipletests

    if not p_values:
        return []
    corrected: Any = multipletests(p_values, method="holm")[1]
    return corrected.tolist()


def rank_biserial(differences: Sequence[float]) -> float | None:
    """Matched rank-biserial correlation: ranks of gains less those of losses, over all of them.

    1 where every difference is a gain, -1 where each is a loss; None where all are zero.
    """
    from scipy import stats

    sample = np.asarray(differences, dtype=np.float64)
    sample = sample[sample != 0]
    if len(sample) == 0:
        return None
    ranks = stats.rankdata(np.abs(sample))
    return float((ranks * np.sign(sample)).sum() / ranks.sum())


def cohen_dz(differences: Sequence[float]) -> float | None:
    """Mean difference in units of the differences' deviation; None where that is zero."""
    sample = np.asarray(differences, dtype=np.float64)
    deviation = sample.std(ddof=1) if len(sample) > 1 else 0.0
    # differences of equal decimals are equal but for rounding
    if deviation <= 1e-12:
        return None
    return float(sample.mean() / deviation)


def pooled_deviation(samples: Sequence[Sequence[float]]) -> float | None:
    """Deviation of differences, the root mean square over several comparisons."""
    variances = [np.var(sample, ddof=1) for sample in samples if len(sample) > 1]
    return float(np.sqrt(np.mean(variances))) if variances else None


def seeds_needed(size: float, deviation: float, comparisons: int = 1) -> int | None:
    """Seeds with which a difference is found significant four times in five.

    Power of the paired t test, with the seeds that signed ranks need more than it, at the level of
    Holm's first step, the strictest.

    Args:
        size: True difference.
        deviation: Of the paired differences.
        comparisons: How many differences are tested.

    Returns:
        None for more than 1000.
    """
    from statsmodels.stats.power import TTestPower

    test, least = TTestPower(), fewest_seeds(comparisons)
    if deviation <= 0:
        return least
    for seeds in range(2, MOST_SEEDS + 1):
        if test.power(size / deviation, seeds, ALPHA / comparisons) >= POWER:
            return max(math.ceil(seeds / EFFICIENCY), least)
    return None


def rank_orders(table: Floats) -> Ranking | None:
    """Friedman's test and Nemenyi's pairs; None of fewer than three orders or two blocks.

    Args:
        table: (b, k) scores, more is better.
    """
    import scikit_posthocs
    from scipy import stats

    blocks, orders = table.shape
    if blocks < 2 or orders < 3:
        return None
    ranks = stats.rankdata(-table, axis=1).mean(0)
    pairs = scikit_posthocs.posthoc_nemenyi_friedman(table).to_numpy(dtype=np.float64)
    if (table == table[:, :1]).all():  # all equal, where Friedman's quotient is undefined
        statistic, p = 0.0, 1.0
    else:
        found: Any = stats.friedmanchisquare(*table.T)
        statistic, p = float(found.statistic), float(found.pvalue)
    least_p = float(stats.chi2.sf(blocks * (orders - 1), orders - 1))
    quantile = stats.studentized_range.ppf(1 - ALPHA, orders, np.inf) / math.sqrt(2)
    critical = float(quantile * math.sqrt(orders * (orders + 1) / (6 * blocks)))
    return Ranking(blocks, ranks, statistic, p, least_p, pairs, critical)
