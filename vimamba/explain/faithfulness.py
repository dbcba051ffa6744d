"""Faithfulness of maps: deletion and insertion (arXiv:1806.07421).

Sizes: H and W image, h and w map.
"""

from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vimamba.explain.cam import check_class
from vimamba.explain.errors import ExplainError
from vimamba.explain.scans import as_input

Kind = Literal["deletion", "insertion"]


def deletion_curve(
    model: nn.Module,
    image: Tensor,
    importance: NDArray[np.float32],
    *,
    target: int | None = None,
    blank: Tensor | float = 0.0,
    steps: int = 32,
    kind: Kind = "deletion",
) -> NDArray[np.float32]:
    """Probability of a class while pixels are removed, the most important ones first.

    The mean of the curve is the area under it: the lower for deletion, and the higher for
    insertion, the better the map.

    Args:
        model: A classifier in eval mode.
        image: (C, H, W), preprocessed.
        importance: (h, w), resized bilinearly to the image if smaller.
        target: Class; the predicted one by default.
        blank: Value of a removed pixel: a number, or an image (C, H, W).
        steps: Number of equal parts in which the pixels are removed.
        kind: "insertion" starts with the blank and inserts the pixels.

    Returns:
        (steps + 1,), in [0, 1].

    Raises:
        ExplainError: An argument does not fit.
    """
    if kind not in get_args(Kind):
        raise ExplainError(f"kind={kind!r} is unknown; choose from {list(get_args(Kind))}")
    full = as_input(model, image)
    values = torch.as_tensor(importance, dtype=torch.float32, device="cpu")
    if values.ndim != 2 or not 1 <= steps <= full.shape[-2] * full.shape[-1]:
        raise ExplainError(
            f"importance of shape {tuple(values.shape)} must be one map (h, w), and steps={steps} "
            "no more than the pixels"
        )
    if values.shape != full.shape[-2:]:
        size = list(full.shape[-2:])
        values = F.interpolate(values[None, None], size=size, mode="bilinear")[0, 0]
    order = values.nan_to_num(-torch.inf).flatten().argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), dtype=torch.int64, device="cpu")
    empty = torch.as_tensor(blank, dtype=full.dtype, device=full.device).expand_as(full)
    first, last = (empty, full) if kind == "insertion" else (full, empty)
    counts = torch.linspace(0, len(order), steps + 1, dtype=torch.float32, device="cpu").round()
    taken = (rank[None] < counts[:, None]).unflatten(1, values.shape)[:, None].to(full.device)
    with torch.no_grad():
        logits = model(full)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise ExplainError(f"model={type(model).__name__} must be a classifier")
        check_class(target, logits.shape[1])
        target = int(logits.argmax(1)) if target is None else target
        probabilities = model(torch.where(taken, last, first)).softmax(1)
    return probabilities[:, target].float().cpu().numpy()
