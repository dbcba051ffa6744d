"""The report of one bench or of several: report.html, report.md, results.csv and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vimamba.console import millions
from vimamba.files import write_whole
from vimamba.scanbench import pictures, statistics
from vimamba.scanbench.cost import Cost
from vimamba.scanbench.findings import (
    Comparison,
    Findings,
    Ranked,
    Standing,
    count,
    p_number,
    p_text,
    points,
    rank,
    sentences,
)
from vimamba.scanbench.pages import (
    Code,
    Figure,
    Grid,
    Heading,
    Part,
    Points,
    Text,
    to_html,
    to_markdown,
)
from vimamba.scanbench.plan import folder_name, label
from vimamba.scanbench.results import Bench, write_results
from vimamba.scanbench.statistics import Interval

PICTURES = "pictures"
# differences for which the number of seeds is reported, points
SIZES = (0.25, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True)
class Study:
    """What a report is about.

    Attributes:
        findings: Of each model of each bench.
        costs: By bench and model, of each order.
        machines: Where the costs of each bench were measured.
        score: What the score is called.
        sizes: Differences for which the number of seeds is reported, points.
        command: That makes the bench.
    """

    findings: Sequence[Findings]
    costs: Mapping[tuple[Path, str], Mapping[str, Cost]]
    machines: Mapping[Path, str]
    score: str
    sizes: Sequence[float]
    command: str

    @property
    def benches(self) -> list[Bench]:
        """The benches, in order."""
        return list({found.bench.out: found.bench for found in self.findings}.values())

    def data(self, bench: Bench) -> str:
        """What a bench's data is called; with its folder where two benches have one data set."""
        name = bench.plan.data
        alike = sum(other.plan.data == name for other in self.benches)
        return name if alike == 1 else f"{name} ({bench.out.name})"

    def name(self, found: Findings) -> str:
        """What findings are about."""
        start = _start(found.bench.plan.pretrained)
        return f"{found.model} on {self.data(found.bench)}, {start}"


def write_report(study: Study, out: Path) -> list[str]:
    """Write the report; returns its sentences.

    Args:
        study: What it is about.
        out: Folder to write.
    """
    write_results(out / "results.csv", study.benches)
    orders = dict.fromkeys(o for found in study.findings for o in found.bench.plan.orders)
    looks = pictures.looks_of(list(orders), study.findings[0].baseline)
    several = len(study.findings) > 1
    parts: list[Part] = [Heading(_title(study), level=1)]
    said = []
    for found in study.findings:
        start = f"{study.name(found)}: " if several else ""
        lines = [start + line for line in sentences(found)]
        parts += [Text(line, lead=place == 0) for place, line in enumerate(lines)]
        said += lines
    ranked = _rankings(study)
    for start, found in ranked:
        said.append(_ranks_text(found, start))
        parts.append(Text(said[-1]))
    for found in study.findings:
        parts += _scores(found, study, out, looks)
    parts += _ranks(ranked, study, out, looks)
    for found in study.findings:
        parts += _costs(found, study, out, looks)
    parts += _seeds(study)
    parts += _method(study)
    with write_whole(out / "report.md") as part:
        part.write_text(to_markdown(parts), encoding="utf-8")
    with write_whole(out / "report.html") as part:
        part.write_text(to_html(parts, out), encoding="utf-8")
    return said


def _title(study: Study) -> str:
    return f"Scan orders on {', '.join(map(study.data, study.benches))}"


def _start(pretrained: bool) -> str:
    return "pretrained" if pretrained else "from scratch"


def _picture(out: Path, kind: str, found: Findings, study: Study) -> Path:
    place = next(i for i, each in enumerate(study.findings, 1) if each is found)
    return out / PICTURES / f"{kind}_{place}_{folder_name(found.model)}.png"


def _shown(path: Path, caption: str) -> Figure:
    return Figure(f"{PICTURES}/{path.name}", caption)


def _scores(
    found: Findings, study: Study, out: Path, looks: Mapping[str, pictures.Look]
) -> list[Part]:
    """Table and pictures of one model's scores."""
    if not found.standings:
        return [Heading(f"Scores: {study.name(found)}"), Text("No run is finished.")]
    beside = {c.order: c for c in found.comparisons}
    rows = [_score_row(s, beside.get(s.order)) for s in found.standings]
    heads = ["order", "K", "runs", study.score, "95 % interval", "difference", "95 % interval"]
    heads += ["p", "p, Holm", "rank-biserial", "d_z"]
    path = _picture(out, "points", found, study)
    pictures.draw_points(found, looks, study.score, path)
    parts: list[Part] = [
        Heading(f"Scores: {study.name(found)}"),
        Text(
            f"Scores of the {found.bench.split} split in points (hundredths); differences are to "
            f"{label(found.baseline)} with the same seed. p is that of Wilcoxon's signed ranks, "
            "two-sided and exact; effect sizes are the matched rank-biserial correlation and "
            "Cohen's d_z."
        ),
        Grid(heads, rows),
        _shown(path, "Every run, and its difference to the baseline's run of the same seed."),
    ]
    key = pictures.class_score(found)
    if key is not None:
        path = _picture(out, "classes", found, study)
        pictures.draw_classes(found, key, path)
        parts.append(_shown(path, "Means of each class; color: the difference to the baseline."))
    return parts


def _score_row(standing: Standing, comparison: Comparison | None) -> list[str]:
    row = [standing.label, str(standing.paths), str(len(standing.values))]
    row += [f"{standing.mean:.2f}", _bounds(standing.interval)]
    if comparison is None:
        return row + ["-"] * 6
    effects = (comparison.rank_biserial, comparison.dz)
    return [
        *row,
        points(comparison.mean, sign=True),
        _bounds(comparison.interval),
        p_number(comparison.p),
        p_number(comparison.corrected),
        *("-" if effect is None else f"{effect:+.2f}" for effect in effects),
    ]


def _bounds(interval: Interval | None) -> str:
    return "-" if interval is None else f"{points(interval.low)} to {points(interval.high)}"


def _rankings(study: Study) -> list[tuple[str, Ranked]]:
    """Ranks over blocks, separately for pretrained and other networks.

    Where orders differ in their number of paths, those with as many are also ranked separately.
    """
    found = []
    for pretrained in (False, True):
        group = [f for f in study.findings if f.bench.plan.pretrained == pretrained and f.standings]
        start = _start(pretrained)
        numbers = sorted({s.paths for f in group for s in f.standings})
        ranked = [(start, rank(group))]
        if len(numbers) > 1:
            ranked += [(f"{start}, K = {paths}", rank(group, paths)) for paths in numbers]
        found += [(text, each) for text, each in ranked if each is not None]
    return found


def _ranks_text(found: Ranked, start: str) -> str:
    ranking = found.ranking
    best = label(found.orders[int(ranking.ranks.argmin())])
    test = f"Friedman's chi-squared {ranking.statistic:.2f}, {p_text(ranking.p)}"
    over = f"Over {found.blocks} ({start})"
    if ranking.least_p > statistics.ALPHA:
        least = p_text(ranking.least_p)
        return f"{over} ranks cannot differ significantly: full agreement has {least} ({test})."
    if ranking.p > statistics.ALPHA:
        return f"{over} the ranks of the orders differ no more than by chance ({test})."
    return f"{over} the orders differ in rank ({test}); {best} has the best mean rank."


def _ranks(
    ranked: Sequence[tuple[str, Ranked]],
    study: Study,
    out: Path,
    looks: Mapping[str, pictures.Look],
) -> list[Part]:
    """Tables of ranks, and critical-difference diagrams."""
    parts: list[Part] = [Heading("Ranks")] if ranked else []
    for place, (start, found) in enumerate(ranked, 1):
        path = out / PICTURES / f"ranks_{place}.png"
        pictures.draw_ranks(found, looks, path)
        parts += [
            Text(f"Mean points and ranks over {found.blocks}, {start}."),
            _rank_table(found, study),
            _shown(path, f"Mean ranks over {found.blocks}, {start}: Friedman and Nemenyi."),
        ]
        if found.ranking.p > statistics.ALPHA:
            parts.append(Text("Friedman's test finds nothing, so the pairs are not to be read."))
    return parts


def _rank_table(found: Ranked, study: Study) -> Grid:
    """Means of each order by data set and model, and its rank, best first."""
    models = {each.model for each in found.findings}
    names = [
        study.data(each.bench) if len(models) == 1 else study.name(each) for each in found.findings
    ]
    standings = [{s.order: s for s in each.standings} for each in found.findings]
    ranked = sorted(zip(found.ranking.ranks, found.orders, strict=True))
    rows = [
        [
            label(order),
            str(standings[0][order].paths),
            *(f"{by_order[order].mean:.2f}" for by_order in standings),
            f"{mean:.2f}",
        ]
        for mean, order in ranked
    ]
    return Grid(["order", "K", *names, "mean rank"], rows)


def _costs(
    found: Findings, study: Study, out: Path, looks: Mapping[str, pictures.Look]
) -> list[Part]:
    """Table and picture of one model's costs."""
    costs = study.costs.get((found.bench.out, found.model), {})
    if not costs:
        return []
    rows = []
    for standing in found.standings:
        cost = costs.get(standing.order)
        if cost is None:
            continue
        runs = [r.run for r in found.bench.of_model(found.model) if r.trial.order == standing.order]
        seconds = [run.seconds for run in runs]
        rows.append(
            [
                standing.label,
                str(standing.paths),
                f"{cost.milliseconds:.2f}",
                "-" if cost.memory is None else f"{cost.memory:.0f}",
                f"{cost.gflops:.3g}",
                millions(runs[0].parameters),
                f"{sum(seconds) / len(seconds):.0f}",
            ]
        )
    path = _picture(out, "cost", found, study)
    pictures.draw_cost(found, costs, looks, study.score, path)
    heads = ["order", "K", "ms per image", "peak MiB", "GFLOPs", "parameters (M)", "s of training"]
    return [
        Heading(f"Cost: {study.name(found)}"),
        Text(
            "Inference time per image, alternating between orders; the memory that a training step "
            "adds; operations as papers count them. Measured on: "
            f"{study.machines[found.bench.out]}."
        ),
        Grid(heads, rows),
        _shown(path, "Score against cost; lines: 95 % intervals of the means."),
    ]


def _seeds(study: Study) -> list[Part]:
    """How many seeds would show a difference of a given size."""
    rows = []
    for found in study.findings:
        deviation = found.deviation
        if deviation is None:
            continue
        tests = len(found.comparisons)
        needed = [statistics.seeds_needed(size, deviation, tests) for size in study.sizes]
        cells = [f"> {statistics.MOST_SEEDS}" if n is None else str(n) for n in needed]
        rows.append([study.name(found), f"{deviation:.2f}", *cells])
    if not rows:
        return []
    heads = ["", "deviation", *(f"{size:g} point{'s' * (size != 1)}" for size in study.sizes)]
    return [
        Heading("How many seeds it would take"),
        Text(
            "Runs of each order with which a true difference of the given size is found at "
            f"{statistics.ALPHA} four times in five, after Holm's correction for all comparisons. "
            "The deviation is that of the paired differences here, pooled over the orders, in "
            "points; with so few runs, it is a rough estimate."
        ),
        Grid(heads, rows),
    ]


def _method(study: Study) -> list[Part]:
    """What was done, so that a reader can judge it."""
    parts: list[Part] = [Heading("What was done")]
    said = [_done(bench, study.data(bench)) for bench in study.benches]
    shared = [line for line in said[0] if all(line in lines for lines in said)]
    own = [[line for line in lines if line not in shared] for lines in said]
    parts += [Points(lines) for lines in own if lines]
    parts.append(Points([*shared, *_caveats(study)]))
    parts += [Text("The command that makes this, or goes on with it:"), Code(study.command)]
    return parts


def _done(bench: Bench, data: str) -> list[str]:
    """What a bench trained and scored, on data of that name."""
    plan = bench.plan
    folds = f", {plan.folds} folds" if plan.folds else ""
    lengths = {result.run.settings.get("trainer.max_epochs") for result in bench.results}
    epochs = "".join(f" of {count(length, 'epoch')}" for length in lengths if length and length > 0)
    said = [
        f"{data} ({plan.task}): {', '.join(plan.models)}; {count(len(plan.orders), 'order')}, "
        f"{count(len(plan.seeds), 'seed')}{folds}; {count(len(bench.results), 'finished run')}"
        f"{epochs} in {bench.out}, whose recipe.yaml of each model has all settings."
    ]
    if bench.split == "test":
        said.append(
            f"The epoch of every run is the best on its validation split ({plan.score}); the test "
            "split was scored once, with that epoch, and nothing was chosen by it."
        )
    else:
        said.append(
            "There is no test split: the scores are those of the validation split, by which the "
            "epochs were chosen. They are a little too good for every order; name a test split or "
            "take --folds."
        )
    alike = [result.alike for result in bench.results if result.alike is not None]
    if alike:
        least, most = min(alike), max(alike)
        shares = f"{most:.1%}" if least == most else f"{least:.1%} to {most:.1%}"
        said.append(
            "Runs are paired by seed: the seed decides the initial weights (the same for all "
            f"orders wherever shapes agree: {shares} of them), the order of the images, their "
            "augmentation, and the division where one is drawn."
        )
    if plan.pretrained:
        said.append(
            "Networks start from published weights, which were trained with the model's own scan "
            "order: that order has an advantage here. Runs from scratch are another question."
        )
    else:
        said.append("Networks start from scratch.")
    if plan.equal_paths:
        said.append(
            "All orders were given as many paths as the baseline has (order x N: it and its "
            "reverse, alternating), so they cost the same and have as many weights."
        )
    said += [f"Failed: {trial}: {error}" for trial, error in bench.failed.items()]
    if bench.missing:
        first = bench.missing[0]
        missing = count(len(bench.missing), "run")
        said.append(f"Missing so far: {missing}, {first} among them.")
    return said


def _caveats(study: Study) -> list[str]:
    """How to read the numbers."""
    said = []
    for bench in study.benches:
        paths = {s.paths for f in study.findings if f.bench is bench for s in f.standings}
        if len(paths) > 1:
            said.append(
                f"On {study.data(bench)} the orders differ in their number of paths K: more paths "
                "have more weights and cost more. --equal-paths compares like with like."
            )
        if bench.plan.folds:
            said.append(
                f"The folds of {study.data(bench)} share most of their training images, so their "
                "runs are not independent of each other, and p values are too small."
            )
    sizes = [f.pairs for f in study.findings if f.pairs > 1]
    if sizes:
        cover = statistics.most_coverage(min(sizes))
        said.append(
            "Intervals of means are bootstrap percentiles, widened for few values "
            f"(arXiv:1411.5279). None reaches beyond the values seen, so with {min(sizes)} of them "
            f"the confidence is {min(cover, statistics.LEVEL):.0%}"
            f"{' at the most' if cover < statistics.LEVEL else ''}."
        )
    said.append(
        "Over data sets, models or folds the orders are ranked by their means over the seeds; "
        "within one data set they are ranked seed by seed, which says nothing about other data."
    )
    return said
