"""Classes and probabilities of images, as a list and as a contact sheet."""

import csv
import json
import os
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimamba.errors import UsageError
from vimamba.files import check_writable, write_whole
from vimamba.tasks.outputs import (
    FailedInputs,
    Target,
    check_no_input,
    is_file,
    no_file,
    present,
    reason,
    shown,
)

if TYPE_CHECKING:
    from torch import Tensor

    from vimamba.data.labelled.items import LabelledFile
    from vimamba.data.preprocessing import Preprocessing
    from vimamba.tasks.tools import FinishedRun

SHEET_IMAGES = 48
# the first columns of a list, by which we recognize our own
COLUMNS = ["path", "label", "probability"]


def classify(run: "FinishedRun", given: Namespace) -> int:
    """Classify images and write the predictions.

    Args:
        run: The run to predict with.
        given: Options of `vimamba predict`.

    Returns:
        Exit code.
    """
    out = given.out or run.folder / "predictions.csv"
    if out.suffix not in (".csv", ".json"):
        raise UsageError(f"--out {shown(out)} must end in .csv or .json")
    sheet = out.with_suffix(".png")

    from vimamba.data.preprocessing import Preprocessing
    from vimamba.progress import Progress
    from vimamba.tasks.overlays import as_pixels, find_view
    from vimamba.tasks.pictures import draw_contact_sheet

    failed = FailedInputs()
    items = gather(given.inputs, failed, besides=(out, sheet))
    check_replaceable(out, sheet, [*given.inputs, *(item.path for item in items)])
    check_writable(out.parent)
    task = run.load()
    task.tta = given.tta
    prepare = Preprocessing.from_settings(run.data)
    total = len(items) + len(failed.reasons)
    bar = Progress(total, "image")
    rows, images = [], []
    predictions = classify_files(task, items, prepare, given.batch_size or 64, given.workers)
    for index, image, found in predictions:
        path = items[index].path
        bar.advance()
        if isinstance(found, str):
            failed.add(path, found)
            continue
        rows.append(describe(path, found, task.class_names, given.topk, task.multi_label))
        if len(images) < SHEET_IMAGES:
            images.append(as_pixels(image, prepare))
    bar.close()
    if not rows:
        print("no image could be processed; nothing is written")
        return failed.report(total)
    write_list(out, rows)
    captions = [f"{shorten(Path(row['path']).name)}\n{caption(row)}" for row in rows]
    view = find_view(images)
    left_out, note = (
        len(rows) - len(images),
        f"as the network gets them; {view.network_text(prepare)}",
    )
    thumbnails = [view(image) for image in images]
    draw_contact_sheet(thumbnails, captions[: len(images)], sheet, left_out=left_out, note=note)
    for row in rows[:10]:
        print(f"{shown(row['path'])}: {caption(row)}")
    if len(rows) > 10:
        print(f"... and {len(rows) - 10} more")
    print(f"{len(rows)} images; written to {shown(out)} and {shown(sheet)}")
    return failed.report(total)


def check_replaceable(out: Path, sheet: Path, inputs: list[Path]) -> None:
    """Fail if the list or the sheet would overwrite a file that is not ours.

    Raises:
        UsageError: The message names the file.
    """
    from vimamba.tasks.pictures import is_ours

    targets = [Target(out, "the list"), Target(sheet, "the contact sheet")]
    check_no_input(targets, inputs)
    for path, ours in ((out, is_list), (sheet, is_ours)):
        if os.path.lexists(path) and not (is_file(path) and ours(path)):
            raise UsageError(
                f"{shown(path)} exists and is not one of our predictions; choose another --out"
            )


def is_list(path: Path) -> bool:
    """Whether a file is a list that `write_list` wrote."""
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            if path.suffix == ".json":
                rows = json.load(file)
                return isinstance(rows, list) and all({*COLUMNS, "top"} <= set(r) for r in rows)
            return next(csv.reader(file), [])[:5] == [*COLUMNS, "label_1", "probability_1"]
    except (OSError, ValueError, TypeError, csv.Error):
        return False


def gather(
    inputs: list[Path], failed: FailedInputs, *, besides: tuple[Path, ...] = ()
) -> "list[LabelledFile]":
    """Image files given directly, in folders and in CSV lists.

    Args:
        inputs: The given paths.
        failed: Receives missing inputs, as long as others exist.
        besides: Files in the folders that are not inputs.

    Raises:
        UsageError: A folder or all inputs have no image, or nothing given exists.
    """
    from vimamba.console import say
    from vimamba.data.labelled.items import LabelledFile
    from vimamba.data.listing import find_file, list_images
    from vimamba.data.lists import LIST_SUFFIXES, read_rows
    from vimamba.data.remarks import Remarks

    ours = {os.path.abspath(path) for path in besides}
    paths: list[Path] = []
    for given in present(inputs, failed):
        if given.is_dir():
            remarks = Remarks()
            images = list_images(given, remarks)
            for line in remarks.lines():
                say(line)
            found = [path for path in images if os.path.abspath(path) not in ours]
            if not found:
                raise UsageError(f"folder {shown(given)} holds no image")
            paths += found
        elif given.suffix.lower() in LIST_SUFFIXES and is_file(given):
            for named in (given.parent / row["path"] for row in read_rows(given, ["path"])):
                path = find_file(named) or named
                if is_file(path):
                    paths.append(path)
                else:
                    failed.add(path, no_file(path))
        elif is_file(given):
            paths.append(given)
        else:
            failed.add(given, no_file(given))
    if not paths:
        raise UsageError(next(iter(failed.reasons.values())))
    return [LabelledFile(path) for path in paths]


def classify_files(
    task: Any, items: "list[LabelledFile]", prepare: "Preprocessing", batch_size: int, workers: int
) -> "Iterator[tuple[int, Tensor, Tensor | str]]":
    """Predictions for files, in order.

    Args:
        task: A classification task.
        items: The files.
        prepare: From stored pixels to the network's.
        batch_size: Images at a time.
        workers: Processes that load images.

    Yields:
        The index of a file, the image (C, H, W), and its probabilities (num_classes,) or the reason
        why there are none; the image is empty if it cannot be read.
    """
    import torch

    from vimamba.data.labelled.classification import ImageDataset
    from vimamba.tasks.reading import read_all

    dataset = ImageDataset(items, prepare, None, seed=0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = task.to(device)
    for batch in read_all(dataset, batch_size, workers):
        read = {index: item[0] for index, item in batch if not isinstance(item, str)}
        predictions = dict(zip(read, predict_batch(task, list(read.values()), device), strict=True))
        for index, item in batch:
            if isinstance(item, str):
                yield index, torch.empty(0, dtype=torch.float32, device="cpu"), item
            else:
                yield index, read[index], predictions[index]


def predict_batch(task: Any, images: "list[Tensor]", device: Any) -> "list[Tensor | str]":
    """Probabilities of each image, or why there are none; a failed one does not affect others."""
    import torch

    from vimamba.tasks.errors import NotFiniteError

    if not images:
        return []
    try:
        with torch.inference_mode():
            return list(task.predict_step((torch.stack(images).to(device),), 0).cpu())
    except NotFiniteError as error:
        if len(images) == 1:
            return [reason(error)]
        return [predict_batch(task, [image], device)[0] for image in images]


def describe(
    path: Path, probability: "Tensor", names: list[str], topk: int, multi_label: bool
) -> dict[str, Any]:
    """The prediction for one image as a row.

    Args:
        path: The image.
        probability: (num_classes,).
        names: In the order of the labels.
        topk: Classes to list.
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
    """The prediction in a few characters."""
    return f"{shorten(row['label'] or 'none')} {row['probability']:.0%}"


def shorten(text: str, most: int = 16) -> str:
    """Shorten text to fit under a thumbnail."""
    text = shown(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def is_text(text: str) -> bool:
    """Whether it can be written as UTF-8, unlike a file name in another encoding."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def write_list(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the predictions as CSV or JSON, completely or not at all."""
    with (
        write_whole(path) as part,
        part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        if path.suffix == ".json":
            text = json.dumps(rows, indent=2, ensure_ascii=False)
            # a name that is not valid text is escaped, so that the file stays UTF-8
            file.write(text if is_text(text) else json.dumps(rows, indent=2))
        else:
            writer = csv.writer(file)
            ranks = range(1, len(rows[0]["top"]) + 1)
            columns = [f"{what}_{rank}" for rank in ranks for what in ("label", "probability")]
            writer.writerow([*COLUMNS, *columns])
            for row in rows:
                cells = [cell for top in row["top"] for cell in (top["label"], top["probability"])]
                writer.writerow([row["path"], row["label"], row["probability"], *cells])
