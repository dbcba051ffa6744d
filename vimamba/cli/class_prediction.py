"""Classes and probabilities of images, as a list and as a contact sheet."""

import csv
import json
import os
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimamba.cli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from vimamba.data.samples import FileSamples

SHEET_IMAGES = 48


def classify(given: Namespace) -> int:
    """Classify images and write what came out.

    Args:
        given: Options of `vimamba predict`.

    Returns:
        Exit code.
    """
    out = given.out or given.run / "predictions.csv"
    if out.suffix not in (".csv", ".json"):
        raise UsageError(f"--out {out} must end in .csv or .json")

    from vimamba.cli.pictures import draw_contact_sheet
    from vimamba.cli.recipe import quieten
    from vimamba.cli.runs import find_checkpoint, load_task, read_config
    from vimamba.data.samples import read_image

    quieten()
    task = load_task(given.run, find_checkpoint(given.run, given.ckpt))
    task.tta = given.tta
    samples = gather(given.inputs)
    settings = read_config(given.run)["data"]["init_args"]
    probabilities = classify_files(task, samples, settings, given.batch_size or 64, given.workers)
    rows = [
        describe(path, row, task.class_names, given.topk, task.multi_label)
        for path, row in zip(samples.paths, probabilities, strict=True)
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_list(out, rows)
    shown = rows[:SHEET_IMAGES]
    sheet = out.with_suffix(".png")
    images = [read_image(path, 3) for path in samples.paths[:SHEET_IMAGES]]
    captions = [f"{shorten(Path(row['path']).name)}\n{caption(row)}" for row in shown]
    draw_contact_sheet(images, captions, sheet, left_out=len(rows) - len(shown))
    for row in rows[:10]:
        print(f"{row['path']}: {caption(row)}")
    if len(rows) > 10:
        print(f"... and {len(rows) - 10} more")
    print(f"{len(rows)} images; written to {out} and {sheet}")
    return 0


def gather(inputs: list[Path]) -> "FileSamples":
    """Image files named directly, in folders and in CSV lists.

    Raises:
        UsageError: Something named is not there, or there is no image at all.
    """
    import numpy as np

    from vimamba.data.csv_list import read_rows
    from vimamba.data.samples import FileSamples, list_images

    paths: list[Path] = []
    for given in inputs:
        if given.is_dir():
            found = list_images(given)
            if not found:
                raise UsageError(f"folder {given} holds no image")
            paths += found
        elif given.suffix.lower() == ".csv":
            paths += [given.parent / row["path"] for row in read_rows(given, ["path"])]
        elif given.is_file():
            paths.append(given)
        else:
            raise UsageError(f"{given} is neither a file nor a folder")
    labels = np.zeros(len(paths), dtype=np.int64)
    return FileSamples(tuple(paths), labels, Path())


def classify_files(
    task: Any, samples: "FileSamples", settings: dict[str, Any], batch_size: int, workers: int
) -> "Tensor":
    """Probabilities of files, (N, num_classes).

    Args:
        task: A classification task.
        samples: The files.
        settings: Arguments of the data set the task was trained on.
        batch_size: Images at a time.
        workers: Processes that load images.
    """
    import torch
    from torch.utils.data import DataLoader

    from vimamba.data.dataset import ImageDataset, start_worker
    from vimamba.data.preprocessing import Preprocessing

    dataset = ImageDataset(samples, Preprocessing.from_settings(settings), None, seed=0)
    loader = DataLoader(dataset, batch_size, num_workers=workers, worker_init_fn=start_worker)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = task.to(device)
    with torch.inference_mode():
        return torch.cat([task.predict_step((x.to(device), y), 0).cpu() for x, y in loader])


def describe(
    path: Path, probability: "Tensor", names: list[str], topk: int, multi_label: bool
) -> dict[str, Any]:
    """The answer for one image as a row.

    Args:
        path: The image.
        probability: (num_classes,).
        names: In the order of the labels.
        topk: Classes to name.
        multi_label: Any number of classes can be right: `label` is all with 0.5 or more.
    """
    best = probability.topk(min(topk, len(names)))
    top = [
        {"label": names[int(index)], "probability": round(float(value), 6)}
        for value, index in zip(best.values, best.indices, strict=True)
    ]
    label = top[0]["label"]
    if multi_label:
        label = ";".join(n for n, p in zip(names, probability, strict=True) if float(p) >= 0.5)
    shown = top[0]["probability"]
    return {"path": path.as_posix(), "label": label, "probability": shown, "top": top}


def caption(row: dict[str, Any]) -> str:
    """The answer in a few characters."""
    return f"{shorten(row['label'] or 'none')} {row['probability']:.0%}"


def shorten(text: str, most: int = 16) -> str:
    """Text that fits under a thumbnail."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def write_list(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the answers as CSV or JSON; a half-written file never appears."""
    part = path.with_name(f".{path.name}.part")
    with part.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".json":
            json.dump(rows, file, indent=2, ensure_ascii=False)
        else:
            writer = csv.writer(file)
            ranks = range(1, len(rows[0]["top"]) + 1)
            columns = [f"{what}_{rank}" for rank in ranks for what in ("label", "probability")]
            writer.writerow(["path", "label", "probability", *columns])
            for row in rows:
                cells = [cell for top in row["top"] for cell in (top["label"], top["probability"])]
                writer.writerow([row["path"], row["label"], row["probability"], *cells])
    os.replace(part, path)
