"""Predictions of a classification run for every image of a split."""

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from vimamba.data.labelled.items import label_text
from vimamba.data.loading import start_worker
from vimamba.files import write_rows


def write_cases(task: Any, data: Any, split: str, path: Path) -> None:
    """Write a row per image of a split: truth, prediction, probabilities of both.

    Args:
        task: A classification task.
        data: Its data set.
        split: Split to predict.
        path: CSV file to write.
    """
    task = task.eval()
    device = next(task.parameters()).device
    # all of them; otherwise each of several processes would get only its share
    loader = DataLoader(
        data.dataset(split), data.batch_size, num_workers=data.workers, worker_init_fn=start_worker
    )
    with torch.inference_mode():
        found = torch.cat([task.predict_step((x.to(device), y), 0).cpu() for x, y in loader])
    names = data.class_names
    rows = [
        case_row(item.name, probability, item.label, names)
        for item, probability in zip(data.items(split), found, strict=True)
    ]
    write_rows(path, rows)


def case_row(name: str, probability: torch.Tensor, label: Any, names: list[str]) -> dict[str, Any]:
    """The row of one image: prediction, truth and the probability of the truth.

    Args:
        name: The image.
        probability: (C,).
        label: A class, or (C,) zeros and ones, for which `probability_of_truth` is the minimum over
            classes of the probability of being present or absent as in the truth.
        names: Class names, in order.
    """
    truth = torch.as_tensor(label, dtype=None, device="cpu")
    if truth.ndim == 0:
        predicted = probability.argmax()
        sure, true = probability[predicted], probability[truth]
    else:
        predicted = (probability >= 0.5).to(truth.dtype)
        sure = torch.where(predicted.bool(), probability, 1 - probability).min()
        true = torch.where(truth.bool(), probability, 1 - probability).min()
    return {
        "case": name,
        "truth": label_text(label, names),
        "prediction": label_text(predicted.numpy(), names),
        "right": int(bool((predicted == truth).all())),
        "probability": round(float(sure), 6),
        "probability_of_truth": round(float(true), 6),
    }
