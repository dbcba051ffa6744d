"""Takes timings, and writes them as table, CSV and picture."""

import csv
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch

from vimamba.files import write_whole

Run = Callable[[], object]


@dataclass(frozen=True)
class Result:
    """The time of one candidate in one case.

    Attributes:
        case: What was computed.
        candidate: What computed it.
        milliseconds: Median over the rounds.
        spread: 90th percentile over the median.
        rounds: Number of rounds.
        ratio: Median over the rounds of this candidate's time over the first one's.
        floor: Lower bound in milliseconds, or None; described in the table's title.
        memory: Peak MiB, if measured.
    """

    case: str
    candidate: str
    milliseconds: float
    spread: float
    rounds: int
    ratio: float
    floor: float | None = None
    memory: float | None = None


def take_turns(
    case: str,
    candidates: Mapping[str, Run],
    *,
    seconds: float = 2.0,
    least: int = 5,
    most: int = 200,
    floor: float | None = None,
) -> list[Result]:
    """Time candidates A B C A B C ..., so that a slowdown of the machine affects all.

    Args:
        case: Name for the results.
        candidates: Name to a call without arguments; ratios refer to the first.
        seconds: About how long to measure, all candidates together.
        least: Minimum rounds.
        most: Maximum rounds.
        floor: Passed on to the results, milliseconds.

    Returns:
        One result per candidate.
    """
    for run in candidates.values():
        run()  # compile, fill caches
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    end = time.perf_counter() + seconds
    for done in range(1, most + 1):
        for name, run in candidates.items():
            taken[name].append(_once(run))
        if time.perf_counter() > end and done >= least:
            break
    first = next(iter(taken.values()))
    return [
        Result(
            case,
            name,
            milliseconds=1e3 * median(times),
            spread=sorted(times)[int(0.9 * len(times))] / median(times),
            rounds=len(times),
            ratio=median(t / f for t, f in zip(times, first, strict=True)),
            floor=floor,
        )
        for name, times in taken.items()
    ]


def _once(run: Run) -> float:
    """Seconds of one call, including work on the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def describe_machine() -> str:
    """Processor or GPU, threads and versions, in one line."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    packages = " ".join(f"{p} {_version(p)}" for p in ("torch", "triton", "numba", "timm"))
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} threads"
    return f"{device}, {threads}; Python {platform.python_version()}, {packages}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        return next(names, platform.machine())
    except OSError:
        return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except ModuleNotFoundError:
        return "-"


def write_csv(path: Path, results: Sequence[Result], machine: str) -> None:
    """Write all results with the machine in every row, completely or not at all.

    Raises:
        WriteError: The file cannot be written.
    """
    with write_whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Result)] + ["machine"])
        writer.writeheader()
        writer.writerows({**asdict(result), "machine": machine} for result in results)


def _short(milliseconds: float) -> str:
    """Three significant digits."""
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"


def as_rows(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of a table, without columns that were not measured."""
    has_floor = any(r.floor is not None for r in results)
    has_memory = any(r.memory is not None for r in results)
    heads = ["case", "candidate", "ms", "spread", "ratio"]
    heads += ["over floor"] * has_floor + ["peak MiB"] * has_memory
    rows = []
    for r in results:
        row = [r.case, r.candidate, _short(r.milliseconds), f"{r.spread:.2f}", f"{r.ratio:.2f}"]
        row += [f"{r.milliseconds / r.floor:.2f}" if r.floor else "-"] * has_floor
        row += [f"{r.memory:.0f}" if r.memory is not None else "-"] * has_memory
        rows.append(row)
    return heads, rows


def draw(path: Path, results: Sequence[Result], title: str) -> None:
    """Bars of every candidate, grouped by case, on a logarithmic axis of milliseconds."""
    from matplotlib.figure import Figure

    cases = list(dict.fromkeys(r.case for r in results))
    candidates = list(dict.fromkeys(r.candidate for r in results))
    figure = Figure(
        figsize=(10, 0.7 + 0.16 * len(results) + 0.25 * len(cases)), layout="constrained"
    )
    axes = figure.subplots()
    colors = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#777777", "#CC79A7", "#56B4E9")
    place, ticks = 0.0, []
    for case in cases:
        start = place
        for r in (r for r in results if r.case == case):
            color = colors[candidates.index(r.candidate) % len(colors)]
            axes.barh(place, r.milliseconds, height=0.85, color=color)
            axes.text(r.milliseconds * 1.05, place, _short(r.milliseconds), va="center", fontsize=7)
            place += 1
        ticks.append((start + place - 1) / 2)
        place += 0.8
    handles = [axes.barh(0, 0, color=colors[i % len(colors)]) for i in range(len(candidates))]
    beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
    axes.legend(handles, candidates, frameon=False, fontsize=8, **beside)
    axes.set(xscale="log", xlabel="milliseconds", yticks=ticks, yticklabels=cases)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.15)
    figure.suptitle(title, fontsize=7, color="#777777")
    with write_whole(path) as part:
        figure.savefig(part, dpi=150, format="png", facecolor="white")
