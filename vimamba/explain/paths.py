"""The paths of scans over an image."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vimamba.explain.scans import as_input, observe_scans


def paths(model: nn.Module, image: Tensor) -> dict[str, NDArray[np.float32]]:
    """Position of every step of every path, in pixels of the image.

    Args:
        model: In eval mode.
        image: (C, H, W), preprocessed.

    Returns:
        By name of the scan: (K, T, 2), y and x of the center of each step's token; NaN if a step is
        at a class token or register, or reads a zero.

    Raises:
        ExplainError: The network has no selective scan.
    """
    image = as_input(model, image)
    places = {}
    for scan in observe_scans(model, image):
        height, width = scan.grid
        walk = scan.walk().flatten(0, 1)
        row, column = walk.div(width, rounding_mode="floor"), walk % width
        y, x = (row + 0.5) * image.shape[2] / height, (column + 0.5) * image.shape[3] / width
        on_grid = (walk >= 0) & (walk < height * width)
        place = torch.where(on_grid[..., None], torch.stack([y, x], dim=-1), torch.nan)
        places[scan.layer] = place.float().cpu().numpy()
    return places
