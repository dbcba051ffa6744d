"""Which lane of a warp holds which element of a matrix product, according to the PTX manual.

Lane l holds row l // 4 and column pair l % 4 of an 8 x 8 matrix of 16-bit numbers.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np

from ptx_simulator.values import Array, high_half, low_half, round_tf32, widen_half

LANE = np.arange(32)
ROW, PAIR = LANE // 4, LANE % 4


def multiply(shape: str, kind: str, a: list[Array], b: list[Array], c: list[Array]) -> list[Array]:
    """`mma.sync`: a product of fragments, plus a third.

    Args:
        shape: "m16n8k16" for 16-bit numbers, "m16n8k8" for 32-bit numbers.
        kind: Type of the factors: "bf16", "f16" or "tf32".
        a: Registers of the left factor, each (warps, 32) uint32.
        b: Registers of the right factor.
        c: Registers of the sum so far, float32.

    Returns:
        Four registers of the sum, (warps, 32) float32.
    """
    if (shape, kind) == ("m16n8k8", "tf32"):
        right = _fill(b, 8, lambda r: (ROW, PAIR + 4 * r))
    elif shape == "m16n8k16" and kind in ("bf16", "f16"):
        right = _fill(_split(b, kind), 16, lambda i: (ROW, _column(i % 2, i // 2)))
    else:
        raise NotImplementedError(f"mma {shape} of {kind}")
    left = _left_fragment(a, kind)
    product = left.astype(np.float64) @ right.swapaxes(1, 2)
    return [
        (product[:, ROW + 8 * (r // 2), 2 * PAIR + r % 2] + c[r]).astype(np.float32)
        for r in range(4)
    ]


def _left_fragment(registers: Sequence[Array], kind: str) -> Array:
    """The left factor (warps, 16, 8 or 16) of a product from its registers (warps, 32)."""
    if kind == "tf32":
        return _fill(registers, 8, lambda r: (ROW + 8 * (r % 2), PAIR + 4 * (r // 2)))
    halves = _split(registers, kind)
    return _fill(halves, 16, lambda i: (ROW + 8 * (i // 2 % 2), _column(i % 2, i // 4)))


def _column(half: int, block: int) -> Array:
    return 2 * PAIR + half + 8 * block


def _split(registers: Sequence[Array], kind: str) -> list[Array]:
    """Both numbers of each register, in float32."""
    widen = widen_half(kind)
    return [widen(half(register)) for register in registers for half in (low_half, high_half)]


def _fill(
    registers: Sequence[Array], columns: int, place: Callable[[int], tuple[Array, Array]]
) -> Array:
    """A matrix (warps, rows, columns) from registers and the positions of their elements."""
    places = [place(index) for index in range(len(registers))]
    rows = 1 + max(int(row.max()) for row, _ in places)
    matrix = np.zeros((len(registers[0]), rows, columns), np.float32)
    for register, (row, column) in zip(registers, places, strict=True):
        if register.dtype == np.uint32:  # tf32
            register = round_tf32(register).view(np.float32)
        matrix[:, row, column] = register
    return matrix


def matrix_addresses(rows: Array, *, transposed: bool) -> list[tuple[Array, int]]:
    """Where each lane reads or writes an 8 x 8 matrix of `ldmatrix` or `stmatrix`.

    Args:
        rows: (warps, 8), addresses of the rows.
        transposed: Whether lanes hold columns instead.

    Returns:
        (warps, 32) addresses and the bytes there: both numbers of a lane at once, or one at a time.
    """
    if not transposed:
        return [(rows[:, ROW] + 4 * PAIR, 4)]
    return [(rows[:, 2 * PAIR + half] + 2 * ROW, 2) for half in (0, 1)]


def describe_tile(descriptor: Array, rows: int, size: int, *, transposed: bool) -> Array:
    """Addresses of a tile (programs, rows, 32 / size) that `wgmma` takes from shared memory.

    Args:
        descriptor: (programs,) uint64: start, leading and stride offsets in 16 bytes, swizzle.
        rows: M or N.
        size: Of a number, in bytes.
        transposed: Whether a column is contiguous in memory instead of a row; of 16-bit numbers.
    """
    fields = descriptor.astype(np.uint64)

    def field(shift: int) -> Array:
        bits = (fields >> np.uint64(shift)) & np.uint64(0x3FFF)
        return (bits.astype(np.int64) << 4)[:, None, None]

    start, leading, stride = field(0), field(16), field(32)
    swizzle = {1: 128, 2: 64, 3: 32}[int(fields[0] >> np.uint64(62))]
    row, column = np.arange(rows)[None, :, None], np.arange(32 // size)[None, None, :]
    if transposed:
        per_line = swizzle // 2
        at = start + (row % per_line) * 2 + (row // per_line) * leading
        at = at + (column % 8) * swizzle + (column // 8) * stride
    else:
        at = start + (row % 8) * swizzle + (row // 8) * stride + column * size
    return at ^ ((at >> 3) & (swizzle - 16))


def group_fragment(registers: Sequence[Array], kind: str) -> Array:
    """The left factor of `wgmma` from registers (programs, 4 warps, 32); 16 rows are a warp's."""
    by_warp = _left_fragment([register.reshape(-1, 32) for register in registers], kind)
    return by_warp.reshape(-1, 64, by_warp.shape[2])


def group_columns(opcode: str) -> int:
    """N of a `wgmma` instruction."""
    found = re.search(r"m64n(\d+)k(16|8)", opcode)
    if found is None:
        raise NotImplementedError(opcode)
    return int(found[1])


def group_result(product: Array, index: int) -> Array:
    """Register `index` of a product (programs, 64, N): (programs, 4 warps, 32)."""
    block, rest = divmod(index, 4)
    parts = [
        product[:, 16 * warp + ROW + 8 * (rest // 2), 8 * block + 2 * PAIR + rest % 2]
        for warp in range(4)
    ]
    return np.stack(parts, axis=1)
