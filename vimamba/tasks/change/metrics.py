"""Scores of change, from tables of counts over all pixels of a data set.

Rows are the truth and columns the predictions; the first class is unchanged, or no building.
Undefined scores, such as the F1 of a class that is in neither, are None.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from vimamba.labels import IGNORE
from vimamba.tasks.classification.metrics import float_or_none

Score = float | None
# of each kind of labels: where something is, (2, 2); then the classes there, (C, C), if there are
TABLES = {
    "binary": ("change",),
    "semantic": ("change", "classes"),
    "damage": ("building", "damage"),
}


def score_tables(
    kind: str, tables: Mapping[str, Tensor], class_names: Sequence[str]
) -> dict[str, Any]:
    """The full report of an evaluation.

    Args:
        kind: "binary", "semantic" or "damage".
        tables: Its `TABLES`, by name.
        class_names: Of the last of them.

    Returns:
        The scores of the kind, `per_class` rows, the counts of the last table as `confusion`;
        `kind` and the counts of all `tables`.
    """
    first, last = (tables[TABLES[kind][place]] for place in (0, -1))
    report: dict[str, Any] = change_scores(first)
    if kind == "semantic":
        report |= semantic_scores(last)
    elif kind == "damage":
        report |= damage_scores(first, last)
    return {
        **report,
        "per_class": per_class(last, class_names),
        "confusion": last.long().tolist(),
        "kind": kind,
        "tables": {name: table.long().tolist() for name, table in tables.items()},
    }


def counted(
    kind: str, maps: Sequence[Tensor], truth: Tensor
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What the tables count in a pair: the name of each, predicted and true classes.

    Args:
        kind: "binary", "semantic" or "damage".
        maps: The written maps, (H, W) each.
        truth: (M, H, W), as `vimamba.data.paired.truths.Truths` reads it.
    """
    first = truth[0]
    if kind == "semantic":
        for found, date in zip(maps, truth[1:], strict=True):
            yield "classes", found, date
        yield "change", (maps[0] > 0).long(), first
    elif kind == "damage":
        (damage,) = maps
        yield "building", (damage > 0).long(), first
        # a pixel without a building has no damage
        yield "damage", damage, truth[1].masked_fill(truth[1] == 0, IGNORE)
    else:
        yield "change", maps[0], first


def ratio(part: Tensor, whole: Tensor) -> Score:
    """A quotient; None if the denominator is 0."""
    return float_or_none(part / whole)


def f1_score(precision: Score, recall: Score) -> Score:
    """Harmonic mean of precision and recall."""
    if precision is None or recall is None:
        return None
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def kappa_score(counts: Tensor) -> Score:
    """Cohen's kappa: agreement beyond chance."""
    total = counts.sum()
    agreed = counts.diagonal().sum() / total
    chance = (counts.sum(0) * counts.sum(1)).sum() / total**2
    return float_or_none((agreed - chance) / (1 - chance))


def change_scores(confusion: Tensor) -> dict[str, Score]:
    """Scores of a binary map.

    Args:
        confusion: (2, 2).

    Returns:
        `f1`, `iou`, `precision` and `recall` of the second class, `accuracy` (OA) and `kappa`.
    """
    counts = confusion.double()
    hit, truth, found = counts[1, 1], counts[1].sum(), counts[:, 1].sum()
    return {
        "f1": ratio(2 * hit, truth + found),
        "iou": ratio(hit, truth + found - hit),
        "precision": ratio(hit, found),
        "recall": ratio(hit, truth),
        "accuracy": ratio(counts.diagonal().sum(), counts.sum()),
        "kappa": kappa_score(counts),
    }


def semantic_scores(confusion: Tensor) -> dict[str, Score]:
    """Scores of semantic change, as SECOND is scored (Yang et al. 2020, arXiv:2010.05687).

    Args:
        confusion: (C, C), the pixels of both dates in one matrix; class 0 is unchanged.

    Returns:
        `miou` (of unchanged and changed), `sek` (separated kappa: without correctly unchanged
        pixels, times exp(IoU of changed - 1)), `fscd` (F1 of the classes on changed pixels),
        `score` (0.3 mIoU + 0.7 SeK).
    """
    counts = confusion.double()
    total, both = counts.sum(), counts[0, 0]
    unchanged = ratio(both, counts[0].sum() + counts[:, 0].sum() - both)
    changed = ratio(counts[1:, 1:].sum(), total - both)
    right = counts[1:, 1:].diagonal().sum()
    precision, recall = ratio(right, counts[:, 1:].sum()), ratio(right, counts[1:].sum())
    rest = counts.clone()
    rest[0, 0] = 0
    kappa = kappa_score(rest)
    miou = None if unchanged is None or changed is None else (unchanged + changed) / 2
    sek = None if kappa is None or changed is None else kappa * math.exp(changed - 1)
    score = None if miou is None or sek is None else 0.3 * miou + 0.7 * sek
    return {"miou": miou, "sek": sek, "fscd": f1_score(precision, recall), "score": score}


def damage_scores(building: Tensor, damage: Tensor) -> dict[str, Score]:
    """xView2's score (Gupta et al. 2019, arXiv:1911.09296).

    Args:
        building: (2, 2), no building and building.
        damage: (C, C), on pixels of true buildings only; the first class is no building.

    Returns:
        `f1_building`; `f1_damage`, the harmonic mean of the F1 of the damage levels that are in the
        truth; `score`, 0.3 of the former plus 0.7 of the latter.
    """
    place = change_scores(building)["f1"]
    rows = per_class(damage, [""] * len(damage))[1:]
    levels = [row["f1"] or 0.0 for row in rows if row["pixels"]]
    mean = None
    if levels:
        mean = len(levels) / sum(1 / level for level in levels) if all(levels) else 0.0
    score = None if place is None or mean is None else 0.3 * place + 0.7 * mean
    return {"f1_building": place, "f1_damage": mean, "score": score}


def per_class(confusion: Tensor, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """A row of scores for each class."""
    counts = confusion.double()
    hit, truth, found = counts.diagonal(), counts.sum(1), counts.sum(0)
    return [
        {
            "class": name,
            "pixels": int(truth[index]),
            "f1": ratio(2 * hit[index], truth[index] + found[index]),
            "iou": ratio(hit[index], truth[index] + found[index] - hit[index]),
            "precision": ratio(hit[index], found[index]),
            "recall": ratio(hit[index], truth[index]),
        }
        for index, name in enumerate(class_names)
    ]
