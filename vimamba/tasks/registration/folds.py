"""All held-out pairs of a cross-validation of registrations, by label and overall."""

from collections.abc import Sequence
from pathlib import Path

from vimamba.console import number
from vimamba.tasks.folds import Folds, Pooled, Row, plus_minus, spread
from vimamba.tasks.registration.pictures import draw_scores
from vimamba.tasks.registration.report import FOLD_SCORES, LABEL_SCORES
from vimamba.tasks.registration.scores import mean

WORST = 10


def pool_pairs(folds: Folds, out: Path) -> Pooled:
    """Scores of every pair, before and after; draws one against the other."""
    rows = folds.numbers("pair")
    names = [row["class"] for row in folds.reports[0]["per_class"]]
    means = [pair_means(row, names) for row in rows]
    over = spreads(means, {key: key for key in FOLD_SCORES})
    main = "dice" if "dice" in over else "ncc"
    known = [row for row in means if row[main] is not None]
    summary = {
        "cases": len(rows),
        "over_cases": over,
        "per_class": [
            {"class": name, **spreads(rows, {key: f"{key} {name}" for key in LABEL_SCORES})}
            for name in names
        ],
        "worst": sorted(known, key=lambda row: row[main])[:WORST],
    }
    draw_scores(rows, names, out / "scores.png")
    what = FOLD_SCORES[main].removesuffix(" after")
    shown = {f"{main}_before": "before", main: "after"}
    dots = [(name, [(row["fold"], row[key]) for row in means]) for key, name in shown.items()]
    dots += [(name, [(row["fold"], row[f"dice {name}"]) for row in rows]) for name in names]
    return Pooled(
        summary,
        tables=(score_table(summary), worst_table(summary["worst"])),
        headline=f"{what} {plus_minus(over.get(f'{main}_before'))} before, "
        f"{plus_minus(over.get(main))} after, over {len(rows)} held-out pairs",
        title=f"{len(rows)} held-out pairs, {len(folds.reports)} folds",
        axis=f"{what} of a held-out pair; of each label after the registration",
        dots=dots,
    )


def pair_means(row: Row, names: Sequence[str]) -> Row:
    """Scores of a pair; those of labels as the mean over the labels that have them."""
    labels = {key: mean([row.get(f"{key} {name}") for name in names]) for key in LABEL_SCORES}
    whole = {key: row[key] for key in FOLD_SCORES if key not in LABEL_SCORES}
    return {"fold": row["fold"], "pair": row["pair"], **labels, **whole}


def spreads(rows: Sequence[Row], columns: dict[str, str]) -> dict[str, Row]:
    """Mean and deviation of some columns that any row has a number in, by their new names."""
    found = {
        key: [row[column] for row in rows if row.get(column) is not None]
        for key, column in columns.items()
    }
    return {key: spread(values) for key, values in found.items() if values}


def score_table(summary: Row) -> tuple[str, list[str], list[list[object]]]:
    """Scores over the pairs, for each label and overall."""
    over = summary["over_cases"]
    rows: list[list[object]] = [
        [row["class"], *(plus_minus(row.get(key)) for key in over)] for row in summary["per_class"]
    ]
    rows.append(["mean of a pair", *(plus_minus(found) for found in over.values())])
    title = "all held-out pairs, mean ± standard deviation of the pairs"
    return title, ["label", *(FOLD_SCORES[key] for key in over)], rows


def worst_table(worst: Sequence[Row]) -> tuple[str, list[str], list[list[object]]]:
    """The pairs with the lowest Dice, or likeness, after the registration."""
    keys = [key for key in FOLD_SCORES if any(row[key] is not None for row in worst)]
    rows: list[list[object]] = [
        [row["pair"], str(row["fold"]), *(number(row[key]) for key in keys)] for row in worst
    ]
    return "the worst pairs", ["pair", "fold", *(FOLD_SCORES[key] for key in keys)], rows
