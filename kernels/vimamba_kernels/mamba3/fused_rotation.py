"""Triton kernels that bias and rotate Mamba-3's B and C, for by_token.py.

The elements 2i and 2i + 1 of a row are rotated by angle i; separate tiles, (ROWS, PAIRS), hold the
first and the second elements of all pairs. Pairs without an angle are rotated by 0.

Sizes: B batch, K paths, L tokens, T steps, R ranks, G groups of H heads, N states, S angles.
"""

# Kernels are compiled once for images of all sizes.
# Names in a kernel are Triton tensors, which have no types.
# ruff: noqa: ANN001, ANN201, ANN202
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

import triton
import triton.language as tl

from vimamba_kernels.gpu_kernels import sigmoid, tokens_at

PI = tl.constexpr(3.141592653589793)
# pi / 2 in two parts: the second is the rounding error of the first in float32
HALF_PI, HALF_PI_REST = tl.constexpr(1.5707963705062866), tl.constexpr(-4.371139000186241e-08)


@triton.jit
def _sin_cos(angle):
    """Sine and cosine of angles in [0, 2 pi]; absolute error 2e-7.

    Taylor series around the nearest multiple of a quarter turn; the GPU's library function would
    include code for angles of any size.
    """
    quarter = tl.floor(angle * (2 / PI) + 0.5)
    x = angle - quarter * HALF_PI - quarter * HALF_PI_REST
    square = x * x
    sin = ((square / 362880 - 1.0 / 5040) * square + 1.0 / 120) * square - 1.0 / 6
    sin = x + x * square * sin
    cos = ((square / 40320 - 1.0 / 720) * square + 1.0 / 24) * square - 0.5
    cos = 1.0 + square * cos
    turn = quarter.to(tl.int32) & 3
    odd = (turn & 1) == 1
    rotated_sin = tl.where(odd, cos, sin)
    rotated_cos = tl.where(odd, sin, cos)
    rotated_sin = tl.where(turn >= 2, -rotated_sin, rotated_sin)
    return rotated_sin, tl.where((turn == 1) | (turn == 2), -rotated_cos, rotated_cos)


@triton.jit
def _load_pairs(pointer, place, i, real, N: tl.constexpr):
    """First and second elements of the pairs of rows, in float32."""
    first = real[:, None] & (2 * i < N)[None, :]
    second = real[:, None] & (2 * i + 1 < N)[None, :]
    at = pointer + place[:, None] + 2 * i[None, :]
    a = tl.load(at, mask=first, other=0.0).to(tl.float32)
    b = tl.load(at + 1, mask=second, other=0.0).to(tl.float32)
    return a, b


@triton.jit
def _store_pairs(pointer, place, i, real, a, b, N: tl.constexpr):
    at = pointer + place[:, None] + 2 * i[None, :]
    tl.store(at, a, mask=real[:, None] & (2 * i < N)[None, :])
    tl.store(at + 1, b, mask=real[:, None] & (2 * i + 1 < N)[None, :])


@triton.jit
def _rotated(rows, bias, place, bias_place, i, real, sin, cos, N: tl.constexpr):
    """Rows, biased and rotated, in float32, rounded to their dtype."""
    a, b = _load_pairs(rows, place, i, real, N)
    if bias is not None:
        at = bias + bias_place + 2 * i
        a += tl.load(at, mask=2 * i < N, other=0.0).to(tl.float32)[None, :]
        b += tl.load(at + 1, mask=2 * i + 1 < N, other=0.0).to(tl.float32)[None, :]
    dtype: tl.constexpr = rows.dtype.element_ty
    first = (a * cos - b * sin).to(dtype)
    second = (a * sin + b * cos).to(dtype)
    return first.to(tl.float32), second.to(tl.float32)


@triton.jit
def _locate(L, groups, ROWS: tl.constexpr, PAIRS: tl.constexpr):
    """Indices of a program: batch element and path in one, rows of tokens, group; and the pairs."""
    tiles = tl.cdiv(L, ROWS)
    group = tl.program_id(0) % groups
    tile = tl.program_id(0) // groups % tiles
    bk = (tl.program_id(0) // groups // tiles).to(tl.int64)
    token = tile * ROWS + tl.arange(0, ROWS)
    return bk, tile, group, bk * L + token, token < L, tl.arange(0, PAIRS)


@triton.jit
def _load_rotation(angles, row, head, H, i, real, S: tl.constexpr):
    """Sines and cosines of a head's angles, (ROWS, PAIRS)."""
    at = angles + ((row * H + head) * S)[:, None] + i[None, :]
    return _sin_cos(tl.load(at, mask=real[:, None] & (i < S)[None, :], other=0.0))


@triton.jit(do_not_specialize=["L"])
def rotate_rows(
    B,
    C,
    B_bias,
    C_bias,
    angles,
    b,
    c,
    scores,
    K,
    L,
    R,
    groups,
    H,
    N: tl.constexpr,
    S: tl.constexpr,
    ROWS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """`b` and `c` (B, K, L, R, H, N), and the products `scores` (B, K, L, H, R, R) of c with b."""
    bk, _tile, group, row, real, i = _locate(L, groups, ROWS, PAIRS)
    per_group = H // groups
    for head in range(group * per_group, (group + 1) * per_group):
        sin, cos = _load_rotation(angles, row, head, H, i, real, S)
        bias_row = (bk % K * H + head) * R * N
        for r in range(R):
            place = ((row * R + r) * groups + group) * N
            c_first, c_second = _rotated(C, C_bias, place, bias_row + r * N, i, real, sin, cos, N)
            _store_pairs(c, ((row * R + r) * H + head) * N, i, real, c_first, c_second, N)
            for s in range(R):
                place = ((row * R + s) * groups + group) * N
                first, second = _rotated(B, B_bias, place, bias_row + s * N, i, real, sin, cos, N)
                if r == 0:
                    _store_pairs(b, ((row * R + s) * H + head) * N, i, real, first, second, N)
                score = tl.sum(c_first * first + c_second * second, axis=1)
                tl.store(scores + ((row * H + head) * R + r) * R + s, score, mask=real)


@triton.jit(do_not_specialize=["L"])
def rotate_gradients(
    grad,
    grad_scores,
    own,
    other,
    own_bias,
    other_bias,
    angles,
    down,
    dbias,
    dangles,
    K,
    L,
    R,
    groups,
    H,
    own_stride,
    other_stride,
    N: tl.constexpr,
    S: tl.constexpr,
    ROWS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """Gradients of B (or C) in `own`, whose rotated rows the scores multiply with those of `other`.

    `grad` is the gradient of the rotated rows (B, K, L, R, H, N). The score of rank r of `own` and
    rank s of `other` is at offset `own_stride` r + `other_stride` s. `down` is like `own`; `dbias`
    (B, K, tiles, H, R, N) receives the bias's gradient of each tile of tokens; `dangles` is
    (B, K, L, R, H, S).
    """
    bk, tile, group, row, real, i = _locate(L, groups, ROWS, PAIRS)
    per_group = H // groups
    tiles = tl.cdiv(L, ROWS)
    for r in range(R):
        own_place = ((row * R + r) * groups + group) * N
        a_sum = tl.zeros((ROWS, PAIRS), tl.float32)
        b_sum = tl.zeros((ROWS, PAIRS), tl.float32)
        for head in range(group * per_group, (group + 1) * per_group):
            sin, cos = _load_rotation(angles, row, head, H, i, real, S)
            bias_row = (bk % K * H + head) * R * N
            grad_place = ((row * R + r) * H + head) * N
            g, h = _load_pairs(grad, grad_place, i, real, N)
            for s in range(R):
                place = ((row * R + s) * groups + group) * N
                first, second = _rotated(
                    other, other_bias, place, bias_row + s * N, i, real, sin, cos, N
                )  # fmt: skip
                at = (row * H + head) * R * R + r * own_stride + s * other_stride
                weight = tl.load(grad_scores + at, mask=real, other=0.0)[:, None]
                g += weight * first
                h += weight * second
            first, second = _rotated(
                own, own_bias, own_place, bias_row + r * N, i, real, sin, cos, N
            )  # fmt: skip
            at = dangles + (((row * R + r) * H + head) * S)[:, None] + i[None, :]
            tl.store(at, h * first - g * second, mask=real[:, None] & (i < S)[None, :])
            da = g * cos + h * sin
            db = h * cos - g * sin
            a_sum += da
            b_sum += db
            if dbias is not None:
                at = dbias + (((bk * tiles + tile) * H + head) * R + r) * N + 2 * i
                tl.store(at, tl.sum(da, axis=0), mask=2 * i < N)
                tl.store(at + 1, tl.sum(db, axis=0), mask=2 * i + 1 < N)
        _store_pairs(down, own_place, i, real, a_sum, b_sum, N)


@triton.jit
def _rates(angles, dt, token, head, H, heads, s, S: tl.constexpr):
    """tanh(angles), (ROWS, SB), and dt, (ROWS,), of a head's tokens; zero for zero tokens."""
    mask = (token >= 0)[:, None] & (s < S)[None, :]
    at = ((token * heads + head % heads) * S)[:, None] + s[None, :]
    rate = 2.0 * sigmoid(2.0 * tl.load(angles + at, mask=mask, other=0.0).to(tl.float32)) - 1.0
    size = tl.load(dt + token * H + head, mask=token >= 0, other=0.0)
    return rate, size, mask


@triton.jit(do_not_specialize=["tables", "L", "T"])
def lay_angles(
    angles,
    dt,
    first,
    paths,
    out,
    last,
    tables,
    L,
    T,
    H,
    heads,
    S: tl.constexpr,
    ROWS: tl.constexpr,
    SB: tl.constexpr,
):
    """Cumulative sums of pi tanh(angles) dt along a path for one head, modulo 2 pi, by token.

    `angles` has `heads` heads, H or 1; `first` and `last` are (B, K, H, S). `paths` has `tables`
    rows, which batch elements and paths use cyclically.
    """
    head = tl.program_id(0) % H
    bk = (tl.program_id(0) // H).to(tl.int64)
    s = tl.arange(0, SB)
    own = (bk * H + head) * S + s
    total = tl.zeros((SB,), tl.float32)
    if first is not None:
        total += tl.load(first + own, mask=s < S, other=0.0).to(tl.float32) / (2 * PI)
    path = None if paths is None else paths + bk % tables * T
    # a sum of zeros and one number does not depend on the order of summation
    last_row = (tl.arange(0, ROWS) == ROWS - 1)[:, None]
    for start in range(0, T, ROWS):
        token = tokens_at(path, start + tl.arange(0, ROWS), T)
        rate, size, mask = _rates(
            angles + bk * L * heads * S, dt + bk * L * H, token, head, H, heads, s, S
        )  # fmt: skip
        # in full turns, of which the integer part is dropped
        step = rate * (0.5 * size)[:, None]
        sums = total[None, :] + tl.cumsum(step, axis=0)
        sums -= tl.floor(sums)
        at = ((bk * L + token) * H * S)[:, None] + (head * S + s)[None, :]
        tl.store(out + at, sums * (2 * PI), mask=mask)
        total = tl.sum(tl.where(last_row, sums, 0.0), axis=0)
    tl.store(last + own, total * (2 * PI), mask=s < S)


@triton.jit(do_not_specialize=["tables", "L", "T"])
def finish_angles(
    grad,
    grad_last,
    angles,
    dt,
    paths,
    dangles,
    ddt,
    dfirst,
    tables,
    L,
    T,
    H,
    heads,
    S: tl.constexpr,
    ROWS: tl.constexpr,
    SB: tl.constexpr,
):
    """Gradients of the angles' rates (B, K, L, H, S), of dt, and of the angle before the first."""
    head = tl.program_id(0) % H
    bk = (tl.program_id(0) // H).to(tl.int64)
    s = tl.arange(0, SB)
    own = (bk * H + head) * S + s
    total = tl.load(grad_last + own, mask=s < S, other=0.0)
    path = None if paths is None else paths + bk % tables * T
    tiles = tl.cdiv(T, ROWS)
    first_row = (tl.arange(0, ROWS) == 0)[:, None]
    for i in range(tiles):
        token = tokens_at(path, (tiles - 1 - i) * ROWS + tl.arange(0, ROWS), T)
        rate, size, mask = _rates(
            angles + bk * L * heads * S, dt + bk * L * H, token, head, H, heads, s, S
        )  # fmt: skip
        at = ((bk * L + token) * H * S)[:, None] + (head * S + s)[None, :]
        given = tl.load(grad + at, mask=mask, other=0.0)
        sums = total[None, :] + tl.cumsum(given, axis=0, reverse=True)
        later = sums * PI
        tl.store(dangles + at, later * size[:, None] * (1.0 - rate * rate), mask=mask)
        row = ddt + (bk * L + token) * H + head
        tl.store(row, tl.sum(tl.where(mask, later * rate, 0.0), axis=1), mask=token >= 0)
        total = tl.sum(tl.where(first_row, sums, 0.0), axis=0)
    if dfirst is not None:
        tl.store(dfirst + own, total, mask=s < S)
