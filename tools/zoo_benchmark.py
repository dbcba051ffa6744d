"""Compares each family's smallest model with timm's: python tools/benchmark.py zoo --sizes 224 512.

The references of a model are timm's models of the same kind with about as many operations at 224
pixels. They alternate in one process; a ratio is a model's median time over its reference's.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log
from pathlib import Path

import timm
import torch
from model_table import families, operations_of

from vimamba.benchmark.models import make_run
from vimamba.benchmark.timing import Result, describe_machine, take_turns, write_csv
from vimamba.checkpoints import Facts, find_facts
from vimamba.cli.inquiries import check_at_least
from vimamba.console import say, show_table
from vimamba.errors import UsageError
from vimamba.files import check_writable
from vimamba.models._plain import PlainBackbone
from vimamba.progress import Progress
from vimamba.sizes import ImageSize, by_sides, read_size


@dataclass(frozen=True)
class Reference:
    """timm models with about the same number of operations; those of the first one are used."""

    names: tuple[str, ...]

    @cached_property
    def gflops(self) -> float:
        """1e9 operations of one image of 224 pixels."""
        model = timm.create_model(self.names[0], device="meta").eval()
        return operations_of(model, (3, 224, 224)) / 1e9


STAGED = (
    Reference(("mobilenetv4_conv_medium", "efficientvit_b1")),
    Reference(("convnext_pico", "mambaout_femto")),
    Reference(("convnext_nano", "mambaout_kobe")),
    Reference(("swin_tiny_patch4_window7_224", "convnext_tiny", "mambaout_tiny")),
)
PLAIN = tuple(Reference((f"deit_{size}_patch16_224",)) for size in ("tiny", "small", "base"))


@dataclass(frozen=True)
class Entry:
    """The smallest model of a family, and the models to compare it with."""

    family: str
    model: str
    facts: Facts
    reference: Reference


def list_entries(names: Sequence[str] = ()) -> list[Entry]:
    """An entry for each family, or for the named ones.

    Raises:
        UsageError: There is no such family.
    """
    known = {family.name: family for family in families()}
    for name in names:
        if name not in known:
            raise UsageError(f"{name} is no family; choose from {', '.join(known)}")
    entries = []
    for name in names or known:
        facts = {m: f for m in known[name].list_models() if (f := find_facts(m))}
        model = min(facts, key=lambda m: facts[m].params)
        references = PLAIN if issubclass(known[name].model_cls, PlainBackbone) else STAGED
        entries.append(Entry(name, model, facts[model], nearest(references, facts[model].gflops)))
    return entries


def nearest(references: Sequence[Reference], gflops: float) -> Reference:
    """The reference with the most similar number of operations."""
    return min(references, key=lambda reference: abs(log(reference.gflops / gflops)))


def measure(
    entries: Sequence[Entry], sizes: Sequence[ImageSize], batch: int, seconds: float
) -> Iterator[tuple[Entry, list[Result]]]:
    """Time each entry at each size, its references first.

    Args:
        entries: Families.
        sizes: Of the images, pixels.
        batch: Images per step.
        seconds: About how long per entry and size.
    """
    for size in sizes:
        for entry in entries:
            names = (*entry.reference.names, entry.model)
            runs = {name: make_run(name, size, batch, train=False) for name in names}
            case = f"{entry.family}, {by_sides(size)} px, batch {batch}"
            yield entry, take_turns(case, runs, seconds=seconds, least=3)


def as_row(entry: Entry, results: Sequence[Result]) -> list[str]:
    """The table row of an entry at one size."""
    *others, ours = results
    over = (f"{other.candidate} {ours.milliseconds / other.milliseconds:.2f}" for other in others)
    times = f"{ours.milliseconds:.1f}", f"{ours.spread:.2f}", f"{ours.ratio:.2f}"
    case = ours.case.removeprefix(f"{entry.family}, ")
    return [entry.model, case, f"{entry.facts.gflops:.2f}", *times, ", ".join(over)]


def main(args: list[str]) -> int:
    """Measure and print a table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="benchmark.py zoo", description=__doc__)
    parser.add_argument("families", nargs="*", help="names of families; all by default")
    parser.add_argument("--sizes", nargs="+", default=["224", "512"], help="pixels; 224, 96x160")
    parser.add_argument("--batch-size", type=int, default=1, help="images per step")
    parser.add_argument("--seconds", type=float, default=3.0, help="about how long per comparison")
    parser.add_argument("--threads", type=int, help="CPU threads; all by default")
    parser.add_argument("--csv", type=Path, help="write the figures here after each comparison")
    given = parser.parse_args(args)
    check_at_least(given, batch_size=1, threads=1)
    sizes = [read_size(size, name="--sizes") for size in given.sizes]
    if given.csv:
        check_writable(given.csv.parent)
    if given.threads:
        torch.set_num_threads(given.threads)
    machine = describe_machine()
    say(machine)
    entries = list_entries(given.families)
    rows, found = [], []
    progress = Progress(len(entries) * len(sizes), "comparison")
    for entry, results in measure(entries, sizes, given.batch_size, given.seconds):
        rows.append(as_row(entry, results))
        found += results
        if given.csv:
            write_csv(given.csv, found, machine)
        progress.advance()
    progress.close()
    heads = ["model", "images", "GFLOPs", "ms", "spread", "ratio", "over each reference"]
    show_table("ratio: to the first reference", heads, rows)
    return 0
