"""Axial rotary embeddings.

Sizes: N batch, L tokens on a grid, C channels.
"""

import torch
from torch import Tensor, nn

from vimamba.layers.resample_tokens import resample_tokens


# a symbolic trace keeps the call, since it has no numbers for the sizes
@torch.fx.wrap
def _grid_angles(
    like: Tensor, height: int, width: int, dim: int, cells: int | None, single: bool
) -> Tensor:
    """(L, C) angles of a grid, in float64 if `like` is and `single` is false."""
    # in half precision, angles of up to 14 would be off by a thirtieth
    is_double = like.dtype == torch.float64 and cells is not None and not single
    dtype = torch.float64 if is_double else torch.float32
    steps = torch.arange(0, dim // 2, 2, device=like.device, dtype=dtype)
    # in float32 a negative exponent would differ from the official tables in the last bit
    frequency = (1.0 / 10000.0 ** (2 * steps / dim)).repeat_interleave(2)
    rows = torch.arange(height, device=like.device, dtype=dtype)
    cols = torch.arange(width, device=like.device, dtype=dtype)
    if cells is not None:
        rows, cols = rows * (cells / height), cols * (cells / width)
    row = (rows[:, None] * frequency)[:, None].expand(height, width, -1)
    col = (cols[:, None] * frequency)[None].expand(height, width, -1)
    return torch.cat([row, col], dim=-1).flatten(0, 1)


class RotaryEmbed(nn.Module):
    """Axial rotary embedding: rows rotate one half of the channels, columns the other.

    No parameters.

    Args:
        dim: C.
        cells: Positions are scaled to this many cells for any grid, as in Vim's first generation;
            not scaled if None, as in MLLA, whose angles are float32 at any precision.
    """

    def __init__(self, dim: int, cells: int | None = 14) -> None:
        super().__init__()
        self.dim = dim
        self.cells = cells

    def angles(self, height: int, width: int, like: Tensor) -> Tensor:
        """(L, C) angles of a grid, at least in float32."""
        return _grid_angles(like, height, width, self.dim, self.cells, False)

    def single_angles(self, height: int, width: int, like: Tensor) -> Tensor:
        """(L, C) angles of a grid in float32, on the device of `like`."""
        return _grid_angles(like, height, width, self.dim, self.cells, True)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """Rotate neighboring pairs of channels of (..., L, C)."""
        return self.turn(x, angles.cos(), angles.sin())

    def turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """As `forward`, by cosines and sines."""
        rotated = torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
        return (x * cos + rotated * sin).to(x.dtype)


class ResampledRotary(RotaryEmbed):
    """Rotary embedding whose sines and cosines, not angles, are resampled for other grids.

    Args:
        dim: C.
        side: Cells per side of the grid that the angles are for.
    """

    def __init__(self, dim: int, side: int = 14) -> None:
        super().__init__(dim, side)
        self.side = side

    def tables(self, height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (1, L, C) in float32, as official files hold them."""
        angles = self.single_angles(self.side, self.side, like)
        tables = torch.stack([angles.cos(), angles.sin()])
        cells = (self.side, self.side)
        tables = resample_tokens(tables, cells, (height, width), antialias=False)
        return tables[:1], tables[1:]
