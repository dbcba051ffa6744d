"""Resampling of tokens from one grid to another."""

import torch
from torch import Tensor


def resample_tokens(
    x: Tensor, old: tuple[int, int], new: tuple[int, int], antialias: bool = True
) -> Tensor:
    """Bicubic resampling, as in `torch.nn.functional.interpolate`.

    Written as two matrix products: torch 2.15 cannot differentiate its own with symbolic sizes.

    Args:
        x: (N, L, C), L the cells of the grid.
        old: Height and width of the grid.
        new: Height and width of the result.
        antialias: Stretch the kernel when shrinking. Without, the kernel is different (a = -0.75,
            not -0.5), and edge cells are repeated.

    Returns:
        (N, L', C), L' the cells of the result.
    """
    if antialias:
        rows, columns = _smooth_weights(old[0], new[0], x), _smooth_weights(old[1], new[1], x)
    else:
        rows, columns = _cubic_weights(old[0], new[0], x), _cubic_weights(old[1], new[1], x)
    wide = columns @ x.float().unflatten(1, (old[0], old[1]))
    resampled = rows @ wide.flatten(2)
    return resampled.reshape(x.shape[0], new[0] * new[1], x.shape[2]).to(x.dtype)


def _smooth_weights(old: int, new: int, like: Tensor) -> Tensor:
    """(new, old): weight of each old sample in each new one (Keys' kernel, a = -0.5)."""
    scale = old / torch.full((1,), new, device=like.device, dtype=torch.float32)
    center = (torch.arange(new, dtype=torch.float32, device=like.device) + 0.5) * scale
    place = torch.arange(old, dtype=torch.float32, device=like.device) + 0.5
    distance = (place - center.unsqueeze(1)).abs()
    # when shrinking, the kernel is stretched over the cells that become one
    weight = _keys_kernel(distance / scale.clamp(min=1.0), -0.5)
    return weight / weight.sum(1, keepdim=True)


def _cubic_weights(old: int, new: int, like: Tensor) -> Tensor:
    """(new, old): the same without antialiasing (a = -0.75); samples beyond an end repeat it."""
    scale = old / torch.full((1,), new, device=like.device, dtype=torch.float64)
    center = (torch.arange(new, dtype=torch.float64, device=like.device) + 0.5) * scale - 0.5
    taps = torch.arange(-1, 3, dtype=torch.float64, device=like.device)
    place = center.floor().unsqueeze(1) + taps
    weight = _keys_kernel((place - center.unsqueeze(1)).abs(), -0.75)
    cells = torch.arange(old, dtype=torch.float64, device=like.device)
    taken = place.clamp(0, old - 1).unsqueeze(2) == cells
    return (weight.unsqueeze(2) * taken).sum(1).float()


def _keys_kernel(x: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution kernel (1981) at distances x >= 0."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1.0
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x < 1.0, near, torch.where(x < 2.0, far, torch.zeros_like(x)))
