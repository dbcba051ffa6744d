"""`vimamba doctor` on two dates: what does not match in pairs of images and their labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vimamba.cli.networks import Network
from vimamba.console import say
from vimamba.data.paired.agreement import Problem, examine
from vimamba.data.paired.change_folder import ChangeFolder
from vimamba.data.paired.items import DatePair
from vimamba.data.paired.truths import Truths
from vimamba.errors import UsageError

# arguments of the data of a run that say how pairs are found and labels are read
OF_FILES = ("layout", "before", "after", "masks", "colors")
MOST_NAMED = 5


def find_pairs(
    network: Network, run: Path, paths: Sequence[Path]
) -> tuple[list[DatePair], Truths | None]:
    """The pairs that `--data` names, and how their labels are read.

    Args:
        network: A network for change.
        run: What it was opened from; the data of a run are found as in its training.
        paths: A folder of pairs with labels, or the first and the second date: two images, or two
            folders whose files match by name.

    Raises:
        DataError, UsageError: Pairs cannot be made, or their labels are not of the network's kind.
    """
    if len(paths) == 2:
        from vimamba.tasks.change.jobs import find_pair_jobs

        return [job.pair for job in find_pair_jobs(paths, ("change",))], None
    if len(paths) > 2:
        raise UsageError(f"--data takes one folder of pairs, or two dates; {len(paths)} are named")
    data = ChangeFolder(str(paths[0]), workers=0, **read_settings(run))
    kind = network.net.kind
    if data.kind != kind:
        raise UsageError(
            f"--data {paths[0]} has {data.kind} labels, {network.name} expects {kind} labels"
        )
    if network.label_names is not None and kind == "semantic":
        data.classes = network.label_names
    pairs = [pair for split in data.in_order.values() for pair in split]
    for note in data.notes():
        say(note)
    return pairs, data.truths


def read_settings(run: Path) -> dict[str, Any]:
    """How the data of a run are found; nothing where there is no run."""
    if not (run / "config.yaml").is_file():
        return {}
    from vimamba.cli.runs import read_config

    given = read_config(run)["data"]["init_args"]
    return {name: given[name] for name in OF_FILES if given.get(name) is not None}


def pairs_match(pairs: Sequence[DatePair], truths: Truths | None) -> bool:
    """Print what does not match; returns whether all pairs can be used."""
    problems = [problem for pair in pairs for problem in examine(pair, truths)[1]]
    found: dict[str, list[Problem]] = {}
    for problem in problems:
        found.setdefault(problem.what, []).append(problem)
    for what, same in found.items():
        say(f"{what}: {len(same)} of {len(pairs)} pairs")
        for problem in same[:MOST_NAMED]:
            say(f"  {problem.text}")
        if len(same) > MOST_NAMED:
            say(f"  and {len(same) - MOST_NAMED} more")
    usable = all(problem.is_harmless for problem in problems)
    labels = "" if truths is None else f", labels are {truths.kind}"
    if not problems:
        say(f"{len(pairs)} pairs match in size, place, bands and values{labels}")
    elif not usable:
        say("pairs like these are refused in training and prediction: mend them first")
    return usable


def read_batch(network: Network, pairs: Sequence[DatePair]) -> Tensor:
    """(N, 2, C, H, W): pairs as the network takes them, cut to the input size."""
    return torch.stack([torch.stack([network.read([i.path]) for i in p.images()]) for p in pairs])
