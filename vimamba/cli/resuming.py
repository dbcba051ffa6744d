"""Checks of what `vimamba fit --resume` can change in a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimamba.checkpoints import read_checkpoint
from vimamba.cli.options import last_value
from vimamba.cli.runs import read_config
from vimamba.console import say
from vimamba.errors import UsageError

if TYPE_CHECKING:
    from vimamba.cli.recipe import RecipeCLI

# arguments of the data that determine a split; a run keeps the one in its split.csv
DRAWN_BY = ("val_fraction", "test_fraction", "fold", "folds", "fold_as", "group_pattern", "limit")


def check_one_division(options: list[str]) -> None:
    """Fail if the options give a split and also say how to make one.

    Raises:
        UsageError: Names the option without effect.
    """
    if last_value(options, "--data.split_csv") is None:
        return
    for name in DRAWN_BY:
        if name != "limit" and last_value(options, f"--data.{name}") is not None:
            raise UsageError(f"--data.{name}: --data.split_csv already defines the split")


def check_resumed(cli: "RecipeCLI", checkpoint: Path) -> None:
    """Fail on options that a resumed run would not follow, before anything is written.

    Args:
        cli: The run as now requested.
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
    # nothing is downloaded now, but keep the record of what the run started from
    cli.config.model.init_args["pretrained"] = begun["pretrained"]
    cli.model.hparams["pretrained"] = begun["pretrained"]
    cli.model.check_continues(begun)
    check_division(cli)
    check_length(cli, content)


def check_division(cli: "RecipeCLI") -> None:
    """Fail on options that would change an existing split."""
    kept = cli.out / "split.csv"
    if not kept.exists():
        return
    before, now = read_config(cli.out)["data"]["init_args"], cli.config.data.init_args
    for name in DRAWN_BY:
        if before.get(name) != now.get(name):
            raise UsageError(
                f"--data.{name} {now.get(name)}: the run keeps its images and their split "
                f"({name} {before.get(name)}); --data.split_csv FILE replaces it"
            )


def check_length(cli: "RecipeCLI", content: dict[str, Any]) -> None:
    """Fail if the requested end is already past; print a note if it is just reached."""
    epochs, steps = cli.trainer.max_epochs, cli.trainer.max_steps
    done = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    behind = content["global_step"]
    if epochs is not None and 0 < epochs < done:
        raise UsageError(f"--epochs {epochs}: the run has already done {done} epochs")
    if 0 < steps < behind:
        raise UsageError(f"--trainer.max_steps {steps}: the run has already done {behind} steps")
    if epochs == done or steps == behind:
        say("training is already complete; its results are written again")
