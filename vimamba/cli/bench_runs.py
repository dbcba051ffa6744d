"""Trains the runs of a bench: `vimamba fit` with weights that all orders share, and a mark."""

import gc
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from typing import TYPE_CHECKING

from vimamba.errors import VimambaError
from vimamba.plugins import load_plugins
from vimamba.scanbench.plan import Trial, read_mark, write_mark
from vimamba.scanbench.running import INTERRUPTED, Job, Outcome

if TYPE_CHECKING:
    from vimamba.cli.recipe import RecipeCLI

# what a run says, in its folder
LOG = "log.txt"


def train(job: Job) -> Outcome:
    """Train one run, or go on with it, in this process; what it says goes to its log.txt."""
    begun = time.monotonic()
    job.out.mkdir(parents=True, exist_ok=True)
    log = (job.out / LOG).open("a", encoding="utf-8", buffering=1)
    with log, redirect_stdout(log), redirect_stderr(log):
        code, error = _fit(job)
    gc.collect()
    seconds = time.monotonic() - begun
    if code != INTERRUPTED:
        write_mark(job.out, {**read_mark(job.out), "code": code, "error": error})
    return Outcome(code, seconds, error)


def _fit(job: Job) -> tuple[int, str]:
    """Exit code, and what went wrong."""
    from vimamba.cli.settings import store_settings
    from vimamba.cli.training import fit, last_of

    try:
        load_plugins(job.plugins)
        if last_of(job.out).is_file():
            return fit(["--resume", str(job.out)]), ""
        args = ["--config", store_settings(job.settings), "--out", str(job.out)]
        return fit(args, lambda cli: begin(cli, job.trial)), ""
    except KeyboardInterrupt:
        return INTERRUPTED, ""
    except VimambaError as error:
        return 2, " ".join(str(error).split())
    except Exception as error:
        traceback.print_exc()
        return 1, f"{type(error).__name__}: {' '.join(str(error).split())}"


def begin(cli: "RecipeCLI", trial: Trial) -> None:
    """Give a new run the weights that all orders share, and mark its folder."""
    from vimamba.console import say
    from vimamba.scanbench.start import start_alike

    alike = start_alike(cli.model)
    write_mark(cli.out, {**asdict(trial), "alike": alike})
    say(f"{alike:.1%} of the weights start as those of all scan orders with this seed")
