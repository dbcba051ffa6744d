"""All held-out pairs of a cross-validation of change, by class and overall."""

from pathlib import Path

import numpy as np
import torch

from vimamba.console import number
from vimamba.tasks.change.metrics import score_tables
from vimamba.tasks.change.report import FOLD_SCORES, class_cells, headline
from vimamba.tasks.folds import Folds, Pooled, plus_minus
from vimamba.tasks.pictures import draw_confusion


def pool_pairs(folds: Folds, out: Path) -> Pooled:
    """Scores of all held-out pixels together; draws their confusion.

    A pair by itself has no scores: in many of them nothing changes.
    """
    first = folds.reports[0]
    tables = {
        name: torch.from_numpy(np.sum([r["tables"][name] for r in folds.reports], axis=0))
        for name in first["tables"]
    }
    names = [row["class"] for row in first["per_class"]]
    pooled = score_tables(first["kind"], tables, names)
    pooled["images"] = sum(report["images"] for report in folds.reports)
    main = next(key for key in FOLD_SCORES if key in folds.over_folds)
    line = headline("pooled", pooled)
    draw_confusion(pooled, names, out / "confusion_matrix.png", title=line, shares=True)
    scores = [[name, number(pooled[k], 4)] for k, name in FOLD_SCORES.items() if k in pooled]
    return Pooled(
        {"cases": pooled["images"], "per_class": pooled["per_class"], "pooled": pooled},
        tables=(
            ("all held-out pixels", *class_cells(pooled)),
            ("", ["score", "all held-out pixels"], scores),
        ),
        headline=f"{line}; {FOLD_SCORES[main]} {plus_minus(folds.over_folds[main])} over the folds",
        title=f"{len(folds.reports)} folds, {pooled['images']} held-out pairs",
        axis="score of a fold on its held-out pairs",
        dots=[
            (name, [(row["fold"], row.get(key)) for row in folds.per_fold])
            for key, name in FOLD_SCORES.items()
            if key in folds.over_folds
        ],
    )
