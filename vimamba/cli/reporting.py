"""What a run tells: the data before training; scores, pictures and the export after it."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vimamba.cli.tables import command_line, say, show_table
from vimamba.data import ClassificationData
from vimamba.data.inspection import inspect_images
from vimamba.data.splits import SPLITS
from vimamba.tasks.export import export_network

if TYPE_CHECKING:
    from vimamba.cli.recipe import RecipeCLI

CLASS_ROWS = 20
SCORES = {
    "accuracy": "accuracy",
    "top5": "top-5 accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "exact_match": "all labels right",
    "auroc": "AUROC",
    "ece": "calibration error",
    "loss": "loss",
}


def show_data(data: ClassificationData) -> None:
    """Check the data and print classes, counts, image sizes and channel means.

    Raises:
        DataError: Something is empty or unreadable.
    """
    data.check()
    splits = [split for split in SPLITS if split in data.catalogue.splits]
    counts = [data.count(split) for split in splits]
    rows: list[list[object]] = [
        [name, *(int(count[index]) for count in counts)]
        for index, name in enumerate(data.class_names[:CLASS_ROWS])
    ]
    if data.num_classes > CLASS_ROWS:
        rest = (int(count[CLASS_ROWS:].sum()) for count in counts)
        rows.append([f"({data.num_classes - CLASS_ROWS} more)", *rest])
    rows.append(["images", *(len(data.catalogue.splits[split]) for split in splits)])
    kind = "labels per image: any number" if data.multi_label else "one label per image"
    show_table(f"{data.root} ({data.num_classes} classes, {kind})", ["class", *splits], rows)
    unseen = [
        f"{name} in {split}"
        for split, count in zip(splits, counts, strict=True)
        for name, images in zip(data.class_names, count, strict=True)
        if images == 0
    ]
    if unseen:
        shown = ", ".join(unseen[:6]) + (" …" if len(unseen) > 6 else "")
        say(f"note: no image of {shown}; scores of a split leave such classes out")
    seen = inspect_images(data)
    (low_h, low_w), (high_h, high_w) = seen.smallest, seen.largest
    size = f"{low_h}x{low_w}"
    size = size if seen.smallest == seen.largest else f"{size} to {high_h}x{high_w}"
    mean, std = (", ".join(f"{v:.3f}" for v in values) for values in (seen.mean, seen.std))
    share = "all" if seen.seen == seen.total else f"{seen.seen} of {seen.total}"
    say(f"image size {size}; channel mean {mean}, std {std} ({share} images read)")


def dry_run(cli: "RecipeCLI") -> None:
    """One batch of training and validation, then sizes."""
    batch = next(iter(cli.datamodule.train_dataloader()))
    say(f"batch {tuple(batch[0].shape)}, labels {tuple(batch[1].shape)}")
    cli.trainer.fit(cli.model, cli.datamodule)
    count = sum(parameter.numel() for parameter in cli.model.net.parameters())
    say(f"{cli.model.hparams['model']}: {count / 1e6:.2f} M parameters")
    if torch.cuda.is_available():
        say(f"peak GPU memory {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB")
    say("the dry run went through; nothing was written")


def write_metrics(path: Path, split: str, report: dict[str, Any]) -> None:
    """Put the report of one split into metrics.json, beside those of the others."""
    content = json.loads(path.read_text()) if path.exists() else {}
    content[split] = report
    part = path.with_suffix(".tmp")
    part.write_text(json.dumps(content, indent=2))
    os.replace(part, path)


def score(cli: "RecipeCLI", split: str, checkpoint: Path) -> dict[str, Any]:
    """Load a checkpoint into the task and evaluate it on "val" or "test"."""
    from vimamba.cli.runs import load_weights

    load_weights(cli.model, checkpoint)
    run = cli.trainer.test if split == "test" else cli.trainer.validate
    losses = run(cli.model, datamodule=cli.datamodule, verbose=False)
    size = len(cli.datamodule.catalogue.splits[split])
    loss = float(losses[0][f"{split}/loss"])
    return {"images": size, "checkpoint": str(checkpoint), "loss": loss, **cli.model.report}


def show_scores(split: str, report: dict[str, Any]) -> None:
    """Print the scores of a split, and those of each class."""
    rows = [
        [row["class"], row["images"], *(f"{row[k]:.3f}" for k in ("precision", "recall", "f1"))]
        for row in report["per_class"]
    ]
    head = ["class", "images", "precision", "recall", "F1"]
    show_table(f"{split}: {report['images']} images", head, rows)
    scores = [[name, f"{report[key]:.4f}"] for key, name in SCORES.items() if key in report]
    show_table("", ["score", split], scores)


def export_run(cli: "RecipeCLI", folder: Path) -> None:
    """Write the scored network for timm."""
    data = cli.datamodule
    export_network(
        cli.model.scored_net,
        folder,
        class_names=data.class_names,
        img_size=data.img_size,
        mean=data.mean,
        std=data.std,
        interpolation=data.interpolation,
        crop_pct=data.crop_pct,
        license=None if cli.model.hparams["pretrained"] else "unknown",
    )


def finish(cli: "RecipeCLI") -> None:
    """Score the best checkpoint, export it, draw the pictures and say where all of it lies."""
    from vimamba.cli.pictures import draw_confusion, draw_curves, draw_samples

    out = cli.out
    best = out / "checkpoints" / "best.ckpt"
    split = "test" if "test" in cli.datamodule.catalogue.splits else "val"
    report = score(cli, split, best)
    if not cli.trainer.is_global_zero:
        return
    write_metrics(out / "metrics.json", split, report)
    export_run(cli, out / "export")
    draw_curves(out / "metrics.csv", out / "curves.png")
    draw_confusion(report, cli.datamodule.class_names, out / "confusion_matrix.png")
    draw_samples(cli.model, cli.datamodule, split, out / "samples.png")
    show_scores(split, report)
    say(f"{split} accuracy {report['accuracy']:.2%} on {report['images']} images")
    for name, what in (
        ("checkpoints/best.ckpt", "the best epoch; last.ckpt beside it is for --resume"),
        ("export", f'timm.create_model("local-dir:{out / "export"}", pretrained=True)'),
        ("metrics.csv", "one row per epoch; metrics.json has the scores"),
        ("samples.png", "what the network sees and says; also curves.png, confusion_matrix.png"),
    ):
        say(f"  {out / name}: {what}")
    predict = command_line("predict", out, "IMAGE_OR_FOLDER", "--out", "predictions.csv")
    say(f"next: {predict}")
