"""Shared by the demos: they train by a recipe with the command that a user would type."""

import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from vimamba.files import write_folder

COMMAND = os.path.relpath(Path(sys.executable).with_name("vimamba"))
RECIPES = Path(__file__).parents[1] / "configs"


def numbered(folder: Path, counts: Mapping[str, int]) -> Iterator[tuple[Path, int, int]]:
    """What to write into a new folder: a split's folder, a number in the split, and one in all.

    Args:
        folder: It appears once everything is written.
        counts: Of each split.
    """
    seeds = itertools.count()
    with write_folder(folder) as part:
        for split, count in counts.items():
            for number in range(count):
                yield part / split, number, next(seeds)


def run_command(*arguments: object, threads: int | None = 1) -> int:
    """Run `vimamba`; returns its exit code.

    Args:
        arguments: Arguments of the command.
        threads: OpenMP threads, unless the environment sets them: such small networks gain little
            from more, and times vary less if cores are shared. None for all.
    """
    said = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    command = [COMMAND, *map(str, arguments)]
    return subprocess.run(command, check=False, env={**said, **os.environ}).returncode


def train(
    recipe: str, data: Path, run: Path, *options: object, threads: int | None = 1
) -> tuple[int, str]:
    """Train from scratch by a recipe.

    Args:
        recipe: Path relative to `configs`, without .yaml.
        data: The data set.
        run: Folder to write; its contents are removed.
        options: More options of `vimamba fit`.
        threads: As in `run_command`.

    Returns:
        The exit code, and the duration, such as "2 min 5 s".
    """
    shutil.rmtree(run, ignore_errors=True)
    start = time.monotonic()
    arguments = ["-c", RECIPES / f"{recipe}.yaml", "--data", data, "--out", run]
    done = run_command("fit", *arguments, *options, threads=threads)
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    return done, f"{minutes} min {seconds} s"


def predict(run: Path, *inputs: object, out: Path, threads: int | None = 1) -> int:
    """Predict inputs, with options, into a folder whose contents are removed first.

    Returns:
        The exit code.
    """
    shutil.rmtree(out, ignore_errors=True)
    return run_command("predict", run, *inputs, "--out", out, threads=threads)
