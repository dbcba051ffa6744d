"""Every scan order of the package, one function each.

Sizes: H, W grid; L = H * W cells; K paths; T steps of a path, L unless padded or shared out.
"""

import random

import torch
from torch import Tensor

from vimamba.scan_orders.registry import register_scan_order


def _count(cells: int) -> Tensor:
    """0, 1, ..., on the CPU."""
    return torch.arange(cells, dtype=torch.int64, device="cpu")


def _grid(height: int, width: int) -> Tensor:
    """Raster indices, (H, W)."""
    return _count(height * width).view(height, width)


def _rows_and_columns(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Row and column of every cell in raster order, (L,) each."""
    cells = _count(height * width)
    return cells // width, cells % width


def _both_ways(*paths: Tensor) -> Tensor:
    """(2n, T): the n paths, then their reverses."""
    forward = torch.stack(paths)
    return torch.cat([forward, forward.flip(1)])


def _sort_cells(major: Tensor, minor: Tensor) -> Tensor:
    """Cells by `major`, then by `minor`; both (L,), the pairs unique."""
    return (major * (minor.max() + 1) + minor).argsort()


def _require_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name}={value} of a scan order must be at least 1")


@register_scan_order
def raster(height: int, width: int) -> Tensor:
    """Row by row, left to right. K = 1."""
    return _count(height * width)[None]


@register_scan_order
def bidirectional(height: int, width: int) -> Tensor:
    """Raster and its reverse, as in Vim (arXiv:2401.09417). K = 2."""
    return _both_ways(_count(height * width))


@register_scan_order
def cross(height: int, width: int) -> Tensor:
    """Rows, columns and both reversed, as in VMamba (arXiv:2401.10166). K = 4."""
    grid = _grid(height, width)
    return _both_ways(grid.flatten(), grid.T.flatten())


@register_scan_order
def cross_rot90(height: int, width: int) -> Tensor:
    """Raster of the grid turned left by 0, 90, 180 and 270 degrees (VMamba's code). K = 4."""
    grid = _grid(height, width)
    return torch.stack([grid.rot90(turns).flatten() for turns in range(4)])


def _snake(grid: Tensor) -> Tensor:
    """Row by row, every second row backwards."""
    odd = _count(grid.shape[0]) % 2 == 1
    return torch.where(odd[:, None], grid.flip(1), grid).flatten()


@register_scan_order(adjacent=True)
def serpentine(height: int, width: int) -> Tensor:
    """Rows in alternating direction, reversed, columns likewise, reversed. K = 4.

    The continuous scan of PlainMamba (arXiv:2403.17695).
    """
    grid = _grid(height, width)
    return torch.cat([_both_ways(_snake(grid)), _both_ways(_snake(grid.T))])


@register_scan_order(adjacent=True)
def serpentine_8(height: int, width: int) -> Tensor:
    """Serpentine rows and columns from each corner, as in ZigMa (arXiv:2403.13802). K = 8.

    Corners: top left, top right, bottom left, bottom right.
    """
    grid = _grid(height, width)
    corners = (grid, grid.flip(1), grid.flip(0), grid.flip(0, 1))
    return torch.stack([_snake(view) for corner in corners for view in (corner, corner.T)])


@register_scan_order
def zigzag(height: int, width: int) -> Tensor:
    """JPEG's zigzag over the anti-diagonals, its mirror image, both reversed. K = 4.

    One of the scans of MambaAD (arXiv:2404.06564).
    """
    row, col = _rows_and_columns(height, width)
    path = _sort_cells(row + col, torch.where((row + col) % 2 == 1, row, col))
    mirrored = _grid(height, width).flip(1).flatten()
    return _both_ways(path, mirrored[path])


def _pad_grid(height: int, width: int, side: int) -> Tensor:
    """The grid with -1 below and to the right, up to multiples of `side`."""
    sides = _ceil(height, side) * side, _ceil(width, side) * side
    padded = torch.full(sides, -1, dtype=torch.int64, device="cpu")
    padded[:height, :width] = _grid(height, width)
    return padded


def _ceil(size: int, side: int) -> int:
    return -(-size // side)


def _local_steps(height: int, width: int, window: int) -> int:
    return _ceil(height, window) * _ceil(width, window) * window**2


@register_scan_order(steps=_local_steps)
def local(height: int, width: int, window: int = 7) -> Tensor:
    """Row by row inside windows, windows row by row, and reversed. K = 2.

    LocalMamba (arXiv:2403.09338) with window 2 and 7. Windows that the grid does not fill are
    padded, so T is a multiple of window ** 2.
    """
    _require_positive(window=window)
    rows, cols = _ceil(height, window), _ceil(width, window)
    windows = _pad_grid(height, width, window).view(rows, window, cols, window)
    return _both_ways(windows.transpose(1, 2).flatten())


def _atrous_steps(height: int, width: int, step: int) -> int:
    return _ceil(height, step) * _ceil(width, step)


@register_scan_order(steps=_atrous_steps)
def atrous(height: int, width: int, step: int = 2) -> Tensor:
    """Every `step`-th row and column; each cell is in one of the paths. K = step ** 2.

    The efficient scan of EfficientVMamba (arXiv:2403.09977), step 2. Path (column offset) * step +
    row offset goes row by row if the row offset is even, column by column if odd. Ends that the
    grid does not fill are padded.
    """
    _require_positive(step=step)
    padded = _pad_grid(height, width, step)
    offsets = [(row, col) for col in range(step) for row in range(step)]
    routes = [padded[row::step, col::step] for row, col in offsets]
    turned = [
        route.T if row % 2 else route for route, (row, _) in zip(routes, offsets, strict=True)
    ]
    return torch.stack([route.flatten() for route in turned])


@register_scan_order
def diagonal(height: int, width: int) -> Tensor:
    """Diagonals from the bottom left corner to the top right, downwards; reversed. K = 2."""
    row, col = _rows_and_columns(height, width)
    return _both_ways(_sort_cells(col - row + height, row))


@register_scan_order
def anti_diagonal(height: int, width: int) -> Tensor:
    """Anti-diagonals from the top left corner to the bottom right, downwards; reversed. K = 2."""
    row, col = _rows_and_columns(height, width)
    return _both_ways(_sort_cells(row + col, row))


@register_scan_order
def diagonal_wrap(height: int, width: int) -> Tensor:
    """As many diagonals as columns, from each cell of the first row, and reversed. K = 2.

    They leave the grid on the right and enter on the left: RS-Mamba's code (arXiv:2404.02668).
    """
    row, col = _rows_and_columns(height, width)
    return _both_ways(_sort_cells((col - row) % width, row))


@register_scan_order
def anti_diagonal_wrap(height: int, width: int) -> Tensor:
    """As many anti-diagonals as columns, from each cell of the first row, and reversed. K = 2.

    They leave the grid on the left and enter on the right: RS-Mamba's code (arXiv:2404.02668).
    """
    row, col = _rows_and_columns(height, width)
    return _both_ways(_sort_cells((col + row) % width, row))


def _omni(cross: Tensor, diagonal: Tensor, anti_diagonal: Tensor) -> Tensor:
    diagonals = torch.stack([diagonal, anti_diagonal], dim=1).flatten(0, 1)
    return torch.cat([cross, diagonals])


@register_scan_order
def omni(height: int, width: int) -> Tensor:
    """Cross, then diagonals, anti-diagonals and both reversed, as RS-Mamba's paper draws it. K = 8.

    arXiv:2404.02668; its code wraps the diagonals around, see `omni_wrap`.
    """
    size = height, width
    return _omni(cross(*size), diagonal(*size), anti_diagonal(*size))


@register_scan_order
def omni_wrap(height: int, width: int) -> Tensor:
    """Cross, then wrapped diagonals, anti-diagonals and both reversed, RS-Mamba's weights. K = 8.

    The order within K is part of the weights (arXiv:2404.02668, official code).
    """
    size = height, width
    return _omni(cross(*size), diagonal_wrap(*size), anti_diagonal_wrap(*size))


@register_scan_order(adjacent=True)
def hilbert(height: int, width: int) -> Tensor:
    """Hilbert's curve, the same turned by 180 degrees, both reversed: one from each corner. K = 4.

    Generalised to every rectangle without a jump. The curve joins two corners of the longer side,
    or of the shorter side if the longer is odd and the shorter even: on a chessboard, corners of
    an odd side have one colour, and a walk over an even number of cells must change it.
    """
    long, short = (width, 1), (height, width)
    if height > width:
        long, short = short, long
    if long[0] % 2 == 1 and short[0] % 2 == 0:
        long, short = short, long
    walk = _hilbert_walk(0, *long, *short)
    path = torch.tensor(walk, dtype=torch.int64, device="cpu")
    return _both_ways(path, height * width - 1 - path)


def _hilbert_walk(start: int, along: int, step: int, across: int, side: int) -> list[int]:
    """Walk over along x across cells, from the corner `start` to the other end of `along`.

    Args:
        start: Raster index of the first cell.
        along: Cells in the direction of the walk.
        step: Difference of raster indices in that direction.
        across: Cells in the other direction.
        side: Difference of raster indices in that other direction.
    """
    if across == 1:
        return [start + index * step for index in range(along)]
    if along == 1:
        return [start + index * side for index in range(across)]
    half = along // 2
    if 2 * along > 3 * across:
        half += half % 2 if along > 2 else 0
        first = _hilbert_walk(start, half, step, across, side)
        return first + _hilbert_walk(start + half * step, along - half, step, across, side)
    # up on one half, along the far side, down on the other half; an even height keeps the parity
    up = across // 2
    up += up % 2 if across > 2 else 0
    back = start + (along - 1) * step + (up - 1) * side
    return [
        *_hilbert_walk(start, up, side, half, step),
        *_hilbert_walk(start + up * side, along, step, across - up, side),
        *_hilbert_walk(back, up, -side, along - half, -step),
    ]


@register_scan_order
def morton(height: int, width: int) -> Tensor:
    """Z-order: by the interleaved bits of row and column; of column and row; both reversed. K = 4.

    MambaAD's zorder (arXiv:2404.06564); grids that are no power of two skip the missing cells.
    """
    row, col = _rows_and_columns(height, width)
    row_bits, col_bits = torch.zeros_like(row), torch.zeros_like(col)
    for bit in range(max(height, width).bit_length()):
        row_bits |= (row >> bit & 1) << 2 * bit
        col_bits |= (col >> bit & 1) << 2 * bit
    return _both_ways((2 * row_bits + col_bits).argsort(), (2 * col_bits + row_bits).argsort())


@register_scan_order(adjacent=True)
def spiral(height: int, width: int) -> Tensor:
    """Clockwise from the top left corner inwards, and reversed. K = 2."""
    rest, rounds = _grid(height, width), []
    while rest.numel():
        rounds.append(rest[0])
        rest = rest[1:].rot90()
    return _both_ways(torch.cat(rounds))


@register_scan_order(name="random")
def shuffled(height: int, width: int, seed: int = 0) -> Tensor:
    """A shuffle that depends on the size and the seed only, and its reverse. K = 2.

    As in RSMamba (arXiv:2403.19654), which however draws a new one in every forward pass.
    """
    if seed < 0:
        raise ValueError(f"seed={seed} of a scan order must be at least 0")
    # of Python's generators, random() alone is documented to give the same numbers for ever
    draw = random.Random(seed).random
    keys = [draw() for _ in range(height * width)]
    return _both_ways(torch.tensor(keys, dtype=torch.float64, device="cpu").argsort())
