"""Every scan order of the package, one function each.

Sizes: H, W grid of an image; n axes of a grid; L cells; K paths; T steps of a path, L unless padded
    or divided among paths.
"""

import math
import random

import torch
from torch import Tensor

from vimamba.scan_orders.registry import num_steps, path_function, register_scan_order


def _count(cells: int) -> Tensor:
    """0, 1, ..., on the CPU."""
    return torch.arange(cells, dtype=torch.int64, device="cpu")


def _grid(*grid: int) -> Tensor:
    """Raster indices in int32, in the shape of the grid."""
    return torch.arange(math.prod(grid), dtype=torch.int32, device="cpu").view(grid)


def _along_each_axis(cells: Tensor) -> list[Tensor]:
    """Views of the cells with each axis in turn, last axis first, moved to the end: n views."""
    return [cells.movedim(axis, -1) for axis in reversed(range(cells.ndim))]


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
            raise ValueError(f"{name}={value} must be at least 1")


@register_scan_order
def raster(*grid: int) -> Tensor:
    """Row by row, left to right; slice by slice. K = 1."""
    return _grid(1, *grid).flatten(1)


@register_scan_order
def columns(height: int, width: int) -> Tensor:
    """Column by column, downwards. K = 1."""
    return _grid(height, width).T.flatten()[None]


@register_scan_order
def transposed(*grid: int) -> Tensor:
    """Raster of the grid with its first two axes swapped. K = 1.

    On an image these are the columns; on a volume, one of VMambaMorph's paths (arXiv:2404.05105).
    """
    cells = _grid(*grid)
    return (cells.transpose(0, 1) if len(grid) > 1 else cells).flatten()[None]


@register_scan_order
def bidirectional(*grid: int) -> Tensor:
    """Raster and its reverse, as in Vim (arXiv:2401.09417). K = 2."""
    return _both_ways(_grid(*grid).flatten())


@register_scan_order
def cross(*grid: int) -> Tensor:
    """Along each axis, and reversed. K = 2 n.

    On an image rows, columns and both reversed, as in VMamba (arXiv:2401.10166).
    """
    return _both_ways(*(view.flatten() for view in _along_each_axis(_grid(*grid))))


@register_scan_order
def cross_rot90(height: int, width: int) -> Tensor:
    """Raster of the grid rotated left by 0, 90, 180 and 270 degrees (VMamba's code). K = 4."""
    grid = _grid(height, width)
    return torch.stack([grid.rot90(turns).flatten() for turns in range(4)])


def _snake(cells: Tensor) -> Tensor:
    """Row by row, every second row backwards; likewise for the slices of a volume."""
    while cells.ndim > 1:
        odd = _count(cells.shape[-2]) % 2 == 1
        cells = torch.where(odd[:, None], cells.flip(-1), cells).flatten(-2)
    return cells


@register_scan_order(adjacent=True)
def serpentine(*grid: int) -> Tensor:
    """Along each axis in alternating direction, each followed by its reverse. K = 2 n.

    On an image it is the continuous scan of PlainMamba (arXiv:2403.17695).
    """
    views = _along_each_axis(_grid(*grid))
    return torch.cat([_both_ways(_snake(view)) for view in views])


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


def _pad_grid(grid: tuple[int, ...], side: int) -> Tensor:
    """The grid with -1 at the end of each axis, up to multiples of `side`."""
    sides = [_ceil(size, side) * side for size in grid]
    padded = torch.full(sides, -1, dtype=torch.int32, device="cpu")
    padded[tuple(slice(size) for size in grid)] = _grid(*grid)
    return padded


def _ceil(size: int, side: int) -> int:
    return -(-size // side)


def _windows_steps(*grid: int, size: int) -> int:
    return math.prod(_ceil(length, size) * size for length in grid)


@register_scan_order(steps=_windows_steps)
def windows(*grid: int, size: int = 7) -> Tensor:
    """Row by row inside windows, windows row by row. K = 1.

    Incomplete windows are padded, so T is a multiple of size ** n.
    """
    _require_positive(size=size)
    n = len(grid)
    shape = [part for length in grid for part in (_ceil(length, size), size)]
    cells = _pad_grid(grid, size).view(shape)
    return cells.permute(*range(0, 2 * n, 2), *range(1, 2 * n, 2)).flatten()[None]


def _local_steps(*grid: int, window: int) -> int:
    return _windows_steps(*grid, size=window)


@register_scan_order(steps=_local_steps)
def local(*grid: int, window: int = 7) -> Tensor:
    """Row by row inside windows, windows row by row, and reversed. K = 2.

    As in LocalMamba (arXiv:2403.09338) with windows of 2 and 7. Incomplete windows are padded, so T
    is a multiple of window ** n.
    """
    _require_positive(window=window)
    return _both_ways(windows(*grid, size=window)[0])


def _atrous_steps(*grid: int, step: int) -> int:
    return math.prod(_ceil(length, step) for length in grid)


@register_scan_order(steps=_atrous_steps)
def atrous(*grid: int, step: int = 2) -> Tensor:
    """Every `step`-th cell along each axis; each cell is in one of the paths. K = step ** n.

    On an image with step 2 it is the efficient scan of EfficientVMamba (arXiv:2403.09977): path
    (column offset) * step + row offset goes row by row if the row offset is even, column by column
    if odd. In general the offset of the first axis changes fastest from path to path, and the sum
    of all offsets except the last, modulo n, is the axis that runs fastest, counted from the last.
    Incomplete ends are padded.
    """
    _require_positive(step=step)
    n = len(grid)
    padded = _pad_grid(grid, step)
    paths = []
    for digits in range(step**n):
        offsets = [digits // step**axis % step for axis in range(n)]
        route = padded[tuple(slice(offset, None, step) for offset in offsets)]
        paths.append(_along_each_axis(route)[sum(offsets[:-1]) % n].flatten())
    return torch.stack(paths)


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
    """Cross, then diagonals, anti-diagonals and both reversed, as in RS-Mamba's paper. K = 8.

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
def hilbert(*grid: int) -> Tensor:
    """Hilbert curve, the same from the opposite corner, both reversed. K = 4.

    For images and volumes of any size, without jumps. The curve connects two corners of the longest
    side, or of the longest even one if there is any: on a checkerboard, corners of an odd side have
    the same color, but a walk over an even number of cells must end on the other color.
    """
    if len(grid) > 3:
        raise ValueError(f"hilbert is for grids of 1 to 3 axes, not {len(grid)}")
    sides = [(size, math.prod(grid[axis + 1 :])) for axis, size in enumerate(grid)]
    along = max(reversed(sides), key=lambda side: (side[0] % 2 == 0, side[0]))
    sides.remove(along)
    path = torch.tensor(_hilbert_walk(0, along, *sides), dtype=torch.int64, device="cpu")
    return _both_ways(path, math.prod(grid) - 1 - path)


Side = tuple[int, int]
"""Cells along a side of a box, and the difference of raster indices from one to the next."""


def _hilbert_walk(start: int, along: Side, *across: Side) -> list[int]:
    """Walk over all cells of a box, from the corner `start` to the other end of `along`.

    Either the number of cells of `along` is even, or those of all sides are odd. Every part
    preserves this: a part that leads away from `along` gets an even number of cells where possible.
    """
    size, step = along
    across = tuple(side for side in across if side[0] > 1)
    if not across:
        return [start + index * step for index in range(size)]
    # the longest of the even sides, of all sides if none is even
    far = max(across, key=lambda side: (side[0] % 2 == 0, side[0]))
    longest = max(across, key=lambda side: side[0])
    if 2 * size > 3 * longest[0]:
        half = _even_half(size)
        first = _hilbert_walk(start, (half, step), *across)
        return first + _hilbert_walk(start + half * step, (size - half, step), *across)
    if len(across) == 2 and size % 2 == 0 and far[0] % 2 == 0:
        (near,) = (side for side in across if side is not far)
        if near[0] > 2 or size == far[0] == 2:
            return _hilbert_octants(start, along, near, far)
    # up on one half, along the far side, down on the other half
    half, up, (_, side) = size // 2, _even_half(longest[0]), longest
    others = [other for other in across if other is not longest]
    back = start + (size - 1) * step + (up - 1) * side
    return [
        *_hilbert_walk(start, (up, side), (half, step), *others),
        *_hilbert_walk(start + up * side, along, (longest[0] - up, side), *others),
        *_hilbert_walk(back, (up, -side), (size - half, -step), *others),
    ]


def _hilbert_octants(start: int, along: Side, near: Side, far: Side) -> list[int]:
    """`_hilbert_walk` over the octants of a box, some of which are walked in pairs.

    Up `near`, out along `far`, `along`, back along `far` and down `near`. The numbers of cells of
    `along` and `far` are even.
    """
    (size, step), (height, up), (depth, out) = along, near, far
    half, rise, reach = size // 2, _even_half(height), depth // 2
    end = start + (size - 1) * step
    return [
        *_hilbert_walk(start, (rise, up), (reach, out), (half, step)),
        *_hilbert_walk(start + rise * up, far, (half, step), (height - rise, up)),
        *_hilbert_walk(
            start + (rise - 1) * up + (depth - 1) * out, along, (rise, -up), (depth - reach, -out)
        ),
        *_hilbert_walk(
            end + rise * up + (depth - 1) * out,
            (depth, -out),
            (size - half, -step),
            (height - rise, up),
        ),
        *_hilbert_walk(end + (rise - 1) * up, (rise, -up), (reach, out), (size - half, -step)),
    ]


def _even_half(size: int) -> int:
    """Half of a side, even unless that would be the whole side."""
    half = size // 2
    return half + half % 2 if size > 2 else half


@register_scan_order
def morton(*grid: int) -> Tensor:
    """Z-order: by interleaved bits of the coordinates, each axis in turn last; reversed. K = 2 n.

    On an image it is MambaAD's zorder (arXiv:2404.06564): bits of row and column, then of column
    and row. If sides are not powers of two, missing cells are skipped.
    """
    cells = _count(math.prod(grid))
    n, places = len(grid), []
    for axis in range(n):
        coordinate = cells // math.prod(grid[axis + 1 :]) % grid[axis]
        spread = torch.zeros_like(cells)
        for bit in range(max(grid).bit_length()):
            spread |= (coordinate >> bit & 1) << n * bit
        places.append(spread)
    keys = []
    for last in reversed(range(n)):
        major = [place for axis, place in enumerate(places) if axis != last]
        keys.append(sum(place << n - 1 - i for i, place in enumerate([*major, places[last]])))
    return _both_ways(*(key.argsort() for key in keys))


@register_scan_order(adjacent=True)
def spiral(height: int, width: int) -> Tensor:
    """Clockwise from the top left corner inwards, and reversed. K = 2."""
    rest, rounds = _grid(height, width), []
    while rest.numel():
        rounds.append(rest[0])
        rest = rest[1:].rot90()
    return _both_ways(torch.cat(rounds))


@register_scan_order
def shuffle(*grid: int, seed: int = 0) -> Tensor:
    """A shuffle that depends only on the size and the seed. K = 1.

    As the third path of RSMamba (arXiv:2403.19654), whose code reshuffles in every pass.
    """
    if seed < 0:
        raise ValueError(f"seed={seed} must be at least 0")
    # only random.random() is guaranteed to be stable across Python versions
    draw = random.Random(seed).random
    keys = [draw() for _ in range(math.prod(grid))]
    return torch.tensor(keys, dtype=torch.float64, device="cpu").argsort()[None]


@register_scan_order(name="random")
def shuffled(*grid: int, seed: int = 0) -> Tensor:
    """`shuffle` and its reverse. K = 2."""
    return _both_ways(shuffle(*grid, seed=seed)[0])


def _frames_steps(time: int, height: int, width: int, order: str) -> int:
    return time * num_steps(order, height, width)


@register_scan_order(steps=_frames_steps)
def frames(time: int, height: int, width: int, order: str = "cross") -> Tensor:
    """An image scan order in every frame, frames one after another. K is the order's."""
    paths = path_function(order)(height, width)[:, None]
    shifted = paths + height * width * _count(time)[:, None]
    return torch.where(paths < 0, -1, shifted).flatten(1)


@register_scan_order(num_paths=1)
def interslice(*grid: int, pieces: int = 0) -> Tensor:
    """The first cell of every slice, then the second: SegMamba (arXiv:2401.13560). K = 1.

    With `pieces`, that many equal parts of the raster are used instead of slices. The official code
    uses 64, 32, 16 and 8 in its four stages, which are slices only if the volume has 128 of them.
    """
    cells = _grid(*grid).flatten()
    if pieces < 0 or (pieces and len(cells) % pieces):
        raise ValueError(f"pieces={pieces} must divide the {len(cells)} cells")
    return cells.view(pieces or grid[0], -1).T.flatten()[None]
