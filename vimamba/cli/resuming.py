"""What `vimamba fit --resume` can change of a run, and what it cannot."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimamba.checkpoints import read_checkpoint
from vimamba.cli.options import last_value
from vimamba.cli.runs import read_config
from vimamba.console import say
from vimamba.errors import UsageError

if TYPE_CHECKING:
    from vimamba.cli.recipe import RecipeCLI

# arguments of the data by which a division is drawn; a run keeps the one it has in split.csv
DRAWN_BY = ("val_fraction", "test_fraction", "fold", "folds", "fold_as", "group_pattern", "limit")


def check_one_division(options: list[str]) -> None:
    """Fail if the options name a division and also say how to draw one.

    Raises:
        UsageError: Names the option that would not act.
    """
    if last_value(options, "--data.split_csv") is None:
        return
    for name in DRAWN_BY:
        if name != "limit" and last_value(options, f"--data.{name}") is not None:
            raise UsageError(f"--data.{name}: the division is that of --data.split_csv already")


def check_resumed(cli: "RecipeCLI", checkpoint: Path) -> None:
    """Fail on options that a resumed run would not follow, before anything is written.

    Args:
        cli: The run as it is asked for now.
        checkpoint: Its last.ckpt.

    Raises:
        UsageError: Names the option.
        TaskError: Names the setting of the network or the optimizer.
    """
    content = read_checkpoint(checkpoint)
    begun = content["hyper_parameters"]
    if begun["seed"] != cli.model.seed:
        raise UsageError(f"--seed {cli.model.seed}: the run was begun with {begun['seed']}")
    if cli.model.hparams["pretrained"] and not begun["pretrained"]:
        raise UsageError("--pretrained: a resumed run goes on from its own weights")
    # nothing was fetched, but the run started from what it started from
    cli.config.model.init_args["pretrained"] = begun["pretrained"]
    cli.model.hparams["pretrained"] = begun["pretrained"]
    cli.model.check_continues(begun)
    check_division(cli)
    check_length(cli, content)


def check_division(cli: "RecipeCLI") -> None:
    """Fail on another way to draw what is drawn already."""
    kept = cli.out / "split.csv"
    if not kept.exists():
        return
    before, now = read_config(cli.out)["data"]["init_args"], cli.config.data.init_args
    for name in DRAWN_BY:
        if before.get(name) != now.get(name):
            raise UsageError(
                f"--data.{name} {now.get(name)}: the run keeps its images and their division "
                f"({name} {before.get(name)}); --data.split_csv FILE gives it another one"
            )


def check_length(cli: "RecipeCLI", content: dict[str, Any]) -> None:
    """Fail on an end that lies behind; say so if it is reached."""
    epochs, steps = cli.trainer.max_epochs, cli.trainer.max_steps
    done = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    behind = content["global_step"]
    if epochs is not None and 0 < epochs < done:
        raise UsageError(f"--epochs {epochs}: the run has {done} epochs behind it")
    if 0 < steps < behind:
        raise UsageError(f"--trainer.max_steps {steps}: the run has {behind} steps behind it")
    if epochs == done or steps == behind:
        say("the training is at its end already; its results are written again")
