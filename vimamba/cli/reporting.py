"""Output of every run: a dry run; scores, pictures and the export at its end."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vimamba.console import command_line, millions, say
from vimamba.files import write_whole
from vimamba.runs import update_record
from vimamba.tasks.tools import tools_of

if TYPE_CHECKING:
    from vimamba.cli.recipe import RecipeCLI


def dry_run(cli: "RecipeCLI") -> None:
    """One batch of training and validation, then sizes."""
    batch = next(iter(cli.datamodule.train_dataloader()))
    say(f"batch {tuple(batch[0].shape)}, labels {tuple(batch[1].shape)}")
    cli.trainer.fit(cli.model, cli.datamodule)
    count = sum(parameter.numel() for parameter in cli.model.net.parameters())
    say(f"{cli.model.hparams['model']}: {millions(count)} M parameters")
    if torch.cuda.is_available():
        say(f"peak GPU memory {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB")
    say("the dry run succeeded; nothing was written")


def write_metrics(path: Path, split: str, report: dict[str, Any]) -> None:
    """Add the report of one split to metrics.json."""
    content = json.loads(path.read_text()) if path.exists() else {}
    content[split] = report
    with write_whole(path) as part:
        part.write_text(json.dumps(content, indent=2))


def score(cli: "RecipeCLI", split: str, checkpoint: Path) -> dict[str, Any]:
    """Load a checkpoint into the task and evaluate it on "val" or "test"."""
    from vimamba.cli.runs import load_weights

    load_weights(cli.model, checkpoint)
    run = cli.trainer.test if split == "test" else cli.trainer.validate
    losses = run(cli.model, datamodule=cli.datamodule, verbose=False)
    size = len(cli.datamodule.catalogue.splits[split])
    loss = float(losses[0][f"{split}/loss"])
    limit = getattr(cli.trainer, f"limit_{split}_batches")
    if limit != 1.0:
        say(f"note: limit_{split}_batches={limit}: not all of the {size} images are scored")
    return {"images": size, "checkpoint": str(checkpoint), "loss": loss, **cli.model.report}


def finish(cli: "RecipeCLI") -> None:
    """Score the best checkpoint, export it, draw the pictures and list the files."""
    from vimamba.cli.runs import load_task
    from vimamba.tasks.pictures import draw_curves

    out, kind = cli.out, tools_of(type(cli.model))
    best = out / "checkpoints" / "best.ckpt"
    held_out = [name for name in ("test", "val") if name in cli.datamodule.catalogue.splits]
    report = None
    # after training, and after scoring, each process may hold only a part of the weights
    cli.model = load_task(out, best)
    if held_out:
        report = score(cli, held_out[0], best)
    if not cli.trainer.is_global_zero:
        return
    cli.model = load_task(out, best)
    if report:
        written = kind.write_results(report, held_out[0], out)
        write_metrics(out / "metrics.json", held_out[0], written)
    kind.export(cli.model, cli.datamodule, out / "export")
    draw_curves(out / "metrics.csv", out / "curves.png", cli.model.headline_scores)
    if report:
        kind.draw_results(cli.model, cli.datamodule, held_out[0], report, out)
        kind.show_scores(held_out[0], report)
        say(kind.headline(held_out[0], report))
    else:
        say("no image is held out: there are no scores")
    update_record(out, finished=True)
    pictures = kind.RESULTS if report else ()
    for name, what in (
        ("checkpoints/best.ckpt", "the best epoch; last.ckpt next to it is for --resume"),
        ("export", kind.export_hint(out / "export")),
        ("metrics.csv", "one row per epoch; metrics.json has the scores"),
        *pictures,
    ):
        say(f"  {out / name}: {what}")
    say(f"next: {command_line('predict', out, *kind.INPUTS, '--out', kind.PREDICTIONS)}")
