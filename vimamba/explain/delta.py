"""Step sizes of selective scans as maps.

A step of size delta multiplies the state by exp(delta A) and writes delta B u into it: where steps
are large the state takes in the token and forgets earlier ones, where they are near zero the token
is skipped (Gu and Dao 2023, arXiv:2312.00752, 3.5).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vimamba.explain.scans import Scan, as_input, observe_scans


def delta(model: nn.Module, image: Tensor) -> dict[str, NDArray[np.float32]]:
    """Step sizes of every scan, means over the channels or heads.

    Args:
        model: In eval mode.
        image: (C, H, W), preprocessed.

    Returns:
        By name of the scan: (K, h, w), one map per path; NaN in cells that it does not visit.

    Raises:
        ExplainError: The network has no selective scan.
    """
    image = as_input(model, image)
    return {scan.layer: step_maps(scan).cpu().numpy() for scan in observe_scans(model, image)}


def step_maps(scan: Scan) -> Tensor:
    """(K, h, w) of one scan."""
    steps = scan.steps.float().mean(-1, keepdim=True)
    visited = torch.zeros_like(steps[..., 0])
    if scan.paths is None:
        visited += 1
    else:
        paths = scan.paths.expand(*steps.shape[:2], -1)
        visited.scatter_add_(2, paths.clamp(min=0), (paths >= 0).to(visited.dtype))
        visited.clamp_(max=1)
    total = scan.gather(steps * visited[..., None])[..., 0]
    count = scan.gather(visited[..., None])[..., 0]
    maps = torch.where(count > 0, total / count.clamp(min=1), torch.nan)
    return maps[:, : scan.grid[0] * scan.grid[1]].unflatten(1, scan.grid)
