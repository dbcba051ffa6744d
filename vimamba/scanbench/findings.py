"""From the scores of a bench to what can be said of its orders, in numbers and in sentences.

Scores are shown in points: hundredths of a score that lies in [0, 1].
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from vimamba.errors import UsageError
from vimamba.scan_orders import num_paths
from vimamba.scanbench import statistics
from vimamba.scanbench.plan import label
from vimamba.scanbench.results import Bench, Result
from vimamba.scanbench.statistics import Interval, Ranking

POINTS = 100
# orders that a sentence names; the tables hold all
MOST_NAMED = 6
Unit = tuple[int, int]


@dataclass(frozen=True)
class Standing:
    """The scores of one order.

    Attributes:
        order: Its name.
        paths: K.
        values: Points by seed and fold.
        mean: Of them.
        interval: Of the mean over the seeds; None of a single value.
    """

    order: str
    paths: int
    values: Mapping[Unit, float]
    mean: float
    interval: Interval | None

    @property
    def label(self) -> str:
        """The order as it is shown."""
        return label(self.order)


@dataclass(frozen=True)
class Comparison:
    """An order compared with the baseline, by differences of runs with the same seed and fold.

    Attributes:
        order: Its name.
        differences: Points of the order less those of the baseline.
        mean: Of them.
        interval: Of the mean; None of a single one.
        p: Of Wilcoxon's signed ranks, two-sided.
        corrected: The same by Holm's steps over all comparisons.
        rank_biserial: Effect size; None where all differences are zero.
        dz: Cohen's; None where all differences are equal.
    """

    order: str
    differences: tuple[float, ...]
    mean: float
    interval: Interval | None
    p: float
    corrected: float
    rank_biserial: float | None
    dz: float | None

    @property
    def label(self) -> str:
        """The order as it is shown."""
        return label(self.order)

    @property
    def is_significant(self) -> bool:
        """At the level of 0.05, corrected."""
        return self.corrected <= statistics.ALPHA


@dataclass(frozen=True)
class Findings:
    """What a model's runs on one data set say.

    Attributes:
        bench: Holds the runs.
        model: Its name.
        baseline: The order that the others are compared with.
        standings: Of every order that has scores, best first.
        comparisons: Of every order but the baseline with runs of a seed that both have.
    """

    bench: Bench
    model: str
    baseline: str
    standings: tuple[Standing, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def pairs(self) -> int:
        """The fewest differences that a comparison has."""
        return min((len(c.differences) for c in self.comparisons), default=0)

    @property
    def units(self) -> str:
        """How many runs an order has, in words."""
        seeds, folds = len(self.bench.plan.seeds), self.bench.plan.folds
        if self.comparisons:
            seeds = self.pairs if not folds else max(1, self.pairs // folds)
        text = count(seeds, "seed")
        return text if folds is None else f"{text} x {folds} folds"

    @property
    def deviation(self) -> float | None:
        """Of the paired differences, pooled over the comparisons; None if none of them varies."""
        return statistics.pooled_deviation([c.differences for c in self.comparisons]) or None


def find(bench: Bench, model: str, score: str, baseline: str) -> Findings:
    """Compare the orders of one model.

    Args:
        bench: Holds its runs.
        model: Its name.
        score: Name of a score in [-1, 1] of which more is better.
        baseline: The order to compare with.

    Raises:
        UsageError: A run has no such score.
    """
    by_order: dict[str, dict[Unit, float]] = {}
    for result in bench.of_model(model):
        by_order.setdefault(result.trial.order, {})[result.trial.unit] = points_of(result, score)
    standings = [
        Standing(
            order,
            num_paths(order, bench.plan.dims),
            values,
            fmean(values.values()),
            statistics.mean_interval(list(values.values())),
        )
        for order, values in by_order.items()
    ]
    standings.sort(key=lambda standing: -standing.mean)
    comparisons = compare(by_order, baseline)
    return Findings(bench, model, baseline, tuple(standings), comparisons)


def points_of(result: Result, score: str) -> float:
    """The score of a run in points.

    Raises:
        UsageError: It has none.
    """
    value = result.scores.get(score)
    if value is None:
        known = sorted(name for name, number in result.scores.items() if -1 <= number <= 1)
        raise UsageError(f"--score {score}: {result.run.folder} has {', '.join(known)}")
    return POINTS * value


def compare(by_order: Mapping[str, Mapping[Unit, float]], baseline: str) -> tuple[Comparison, ...]:
    """Paired differences of every order to the baseline, in the order of the plan."""
    first = by_order.get(baseline, {})
    samples = {
        order: tuple(values[unit] - first[unit] for unit in values if unit in first)
        for order, values in by_order.items()
        if order != baseline
    }
    samples = {order: sample for order, sample in samples.items() if sample}
    p_values = [statistics.signed_rank_p(sample) for sample in samples.values()]
    corrected = statistics.correct(p_values)
    return tuple(
        Comparison(
            order,
            sample,
            fmean(sample),
            statistics.mean_interval(sample),
            p,
            holm,
            statistics.rank_biserial(sample),
            statistics.cohen_dz(sample),
        )
        for (order, sample), p, holm in zip(samples.items(), p_values, corrected, strict=True)
    )


def sentences(found: Findings) -> list[str]:
    """What came out, in plain words, the most important first."""
    if not found.comparisons:
        return [f"Nothing to compare: no order but {label(found.baseline)} has a run of its seeds."]
    clear = sorted((c for c in found.comparisons if c.is_significant), key=lambda c: -abs(c.mean))
    better, worse = [c for c in clear if c.mean > 0], [c for c in clear if c.mean < 0]
    said = [clear_text(found, "Better", better) if better else none_better(found)]
    said += [clear_text(found, "Worse", worse)] if worse else []
    return said + remark_on_seeds(found)


def clear_text(found: Findings, word: str, clear: Sequence[Comparison]) -> str:
    """The orders that are significantly better, or worse, by how much."""
    tests = len(found.comparisons)
    gaps = listed(
        f"{c.label} by {points(abs(c.mean))} points "
        f"({interval_text(c.interval, c.mean < 0)}{p_text(c.corrected)})"
        for c in clear
    )
    holm = f", p after Holm's correction for {tests} comparisons" if tests > 1 else ""
    return f"{word} than {label(found.baseline)}: {gaps}; {found.units}{holm}."


def none_better(found: Findings) -> str:
    """That no order is shown to be better than the baseline, with the largest difference."""
    best = max(found.comparisons, key=lambda c: c.mean)
    bounds = f", {interval_text(best.interval)}".removesuffix(", ")
    largest = f"(largest difference {points(best.mean)} points, {best.label}{bounds})."
    baseline, needed = label(found.baseline), statistics.fewest_seeds(len(found.comparisons))
    if best.mean > 0 and is_apart(best.interval) and found.pairs < needed:
        few = f"{found.units} are too few to show that an order is better than"
        return f"{few} {baseline} {largest}"
    return f"No order is better than {baseline} beyond the noise of {found.units} {largest}"


def remark_on_seeds(found: Findings) -> list[str]:
    """What these seeds cannot show, and where more would be worth while."""
    pairs, tests = found.pairs, len(found.comparisons)
    needed = statistics.fewest_seeds(tests)
    said = []
    same = [c.label for c in found.comparisons if not any(c.differences)]
    if same:
        said.append(
            f"Every run of {listed(same)} has exactly the score of {label(found.baseline)} with "
            "the same seed. This is usual for networks that have learned too little and predict "
            "the same class everywhere: look at the scores of the classes and train longer."
        )
    if pairs < needed:
        least = statistics.least_p(pairs)
        times = f", times {tests} for as many comparisons" if tests > 1 else ""
        said.append(
            f"With {found.units} no difference can be significant, however large: the smallest p "
            f"of {count(pairs, 'signed rank')} is {p_number(least)}{times}; it takes at least "
            f"{needed} runs of each order."
        )
    apart = [c for c in found.comparisons if is_apart(c.interval) and not c.is_significant]
    if apart:
        apart.sort(key=lambda c: -abs(c.mean))
        names = listed(f"{c.label} ({points(c.mean, sign=True)})" for c in apart)
        chance = tests * (1 - min(statistics.most_coverage(pairs), statistics.LEVEL))
        said.append(
            f"Not significant, but with an interval that leaves out zero: {names}. By chance alone "
            f"{chance:.1f} of {count(tests, 'interval')} would."
        )
    return said


def is_apart(interval: Interval | None) -> bool:
    """Whether an interval leaves out zero."""
    return interval is not None and (interval.low > 0 or interval.high < 0)


def count(number: int, what: str) -> str:
    """A number of things in words."""
    return f"{number} {what}{'s' * (number != 1)}"


def listed(items: Iterable[str]) -> str:
    """The first few of some things, and how many more there are."""
    shown = list(items)
    more = len(shown) - MOST_NAMED
    return ", ".join(shown[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def points(value: float, *, sign: bool = False) -> str:
    """Points with the significant digits."""
    digits = 1 if abs(value) >= 0.095 or value == 0 else 2
    value = round(value, digits) + 0.0  # no -0.0
    return f"{value:{'+' if sign else ''}.{digits}f}"


def interval_text(interval: Interval | None, flipped: bool = False) -> str:
    """The text of an interval in a sentence; `flipped` for a loss that is described as such."""
    if interval is None:
        return ""
    low, high = (-interval.high, -interval.low) if flipped else (interval.low, interval.high)
    return f"95 % interval {points(low)} to {points(high)}, "


def p_number(p: float) -> str:
    """A p value in a cell: two digits that count."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def p_text(p: float) -> str:
    """A p value in a sentence."""
    return f"p {p_number(p)}" if p < 0.001 else f"p = {p_number(p)}"


@dataclass(frozen=True)
class Ranked:
    """Ranks of orders over blocks.

    Attributes:
        orders: k names.
        findings: What they were ranked in.
        blocks: What a block is, in words, and how many there are.
        ranking: What came out.
    """

    orders: tuple[str, ...]
    findings: tuple[Findings, ...]
    blocks: str
    ranking: Ranking


def rank(findings: Sequence[Findings], paths: int | None = None) -> Ranked | None:
    """Rank the orders that all findings have over data sets, models and folds; else over seeds.

    Args:
        findings: Of runs with one kind of start, pretrained or not.
        paths: Take only the orders with so many.

    Returns:
        None where there are fewer than three orders or two blocks.
    """
    if not findings:
        return None
    shared = [
        s.order
        for s in findings[0].standings
        if paths in (None, s.paths)
        and all(any(t.order == s.order for t in found.standings) for found in findings)
    ]
    rows = [row for found in findings for row in _rows_by_fold(found, shared)]
    what = "data sets, models and folds"
    if len(rows) < 2:
        rows, what = _rows_by_seed(findings[0], shared), "seeds of one data set"
    if len(rows) < 2 or len(shared) < 3:
        return None
    ranking = statistics.rank_orders(np.asarray(rows, dtype=np.float64))
    if ranking is None:
        return None
    return Ranked(tuple(shared), tuple(findings), f"{len(rows)} {what}", ranking)


def _rows_by_fold(found: Findings, orders: Sequence[str]) -> list[list[float]]:
    """Means over the seeds, a row for each fold that all orders have."""
    values = {s.order: s.values for s in found.standings}
    folds = sorted({fold for order in orders for _, fold in values[order]})
    rows = []
    for fold in folds:
        seeds = _shared_units(values, orders, fold)
        if seeds:
            rows.append([fmean(values[order][unit] for unit in seeds) for order in orders])
    return rows


def _rows_by_seed(found: Findings, orders: Sequence[str]) -> list[list[float]]:
    values = {s.order: s.values for s in found.standings}
    return [[values[o][unit] for o in orders] for unit in _shared_units(values, orders, None)]


def _shared_units(
    values: Mapping[str, Mapping[Unit, float]], orders: Sequence[str], fold: int | None
) -> list[Unit]:
    """Seeds and folds that every order has, of one fold or of all."""
    units = set.intersection(*(set(values[order]) for order in orders)) if orders else set()
    return sorted(unit for unit in units if fold is None or unit[1] == fold)
