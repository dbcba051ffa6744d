"""Triton kernels of the convolution along paths; fused.py launches them.

A tile is some steps, or tokens, by a block of channels. Rows of the W steps that a step reads are
gathered one tap after another: all but the first are then in the multiprocessor's cache.

Sizes: B batch, K paths, L tokens, T steps, D channels, W taps. The kernels by steps process
`per_program` of the `items`, the tiles of steps of the whole batch, with one path's weights.
"""

# Names in a kernel are Triton tensors, which have no types, and tuples have a fixed length.
# ruff: noqa: ANN001, ANN201, ANN202, RUF005
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

import triton
import triton.language as tl

from vimamba_kernels.gpu_kernels import silu, silu_slope, tokens_at


@triton.jit
def _channels(D, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    """The program's block of channels, a mask of those that exist, and its index otherwise."""
    blocks = tl.cdiv(D, BLOCK)
    d = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    # a constant mask is optimized away
    inside = tl.full((BLOCK,), 1, tl.int32) > 0 if EVEN else d < D
    return d, inside, tl.program_id(0) // blocks


@triton.jit
def _load_rows(rows, index, D, d, inside):
    """Rows of channels in float32, by index; -1 gives a row of zeros."""
    mask = (index >= 0)[:, None] & inside[None, :]
    return tl.load(rows + (index * D)[:, None] + d[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _load_taps(weight, k, D, d, inside, W: tl.constexpr):
    """The W rows of weights of path k, by distance back."""
    taps = ()
    for lag in tl.static_range(W):
        tap = tl.load(weight + (k * D + d) * W + W - 1 - lag, mask=inside, other=0.0)
        taps = taps + (tap.to(tl.float32),)
    return taps


@triton.jit
def _load_bias(bias, k, D, d, inside, BLOCK: tl.constexpr):
    row = tl.zeros((BLOCK,), tl.float32)
    if bias is not None:
        row = tl.load(bias + k * D + d, mask=inside, other=0.0).to(tl.float32)
    return row


@triton.jit
def _convolve(x, path, t, T, D, d, inside, taps, bias_row, W: tl.constexpr):
    """The rows that steps `t` read, by distance back, and their sums over the taps and the bias."""
    seen = ()
    total = bias_row[None, :]
    for lag in tl.static_range(W):
        rows = _load_rows(x, tokens_at(path, t - lag, T), D, d, inside)
        seen = seen + (rows,)
        total += taps[lag][None, :] * rows
    return seen, total


@triton.jit(do_not_specialize=["items", "per_program", "L", "T"])
def conv_forward(
    x,
    weight,
    bias,
    paths,
    y,
    items,
    per_program,
    K,
    L,
    T,
    D,
    W: tl.constexpr,
    SILU: tl.constexpr,
    SHARED_PATHS: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Outputs, at their tokens in `y` (B, K, L, D)."""
    d, inside, rest = _channels(D, BLOCK, EVEN)
    k = rest % K
    tiles = tl.cdiv(T, ROWS)
    taps = _load_taps(weight, k, D, d, inside, W)
    bias_row = _load_bias(bias, k, D, d, inside, BLOCK)
    first = rest // K * per_program
    for item in range(first, tl.minimum(first + per_program, items)):
        b = (item // tiles).to(tl.int64)
        path = None if paths is None else paths + (k if SHARED_PATHS else b * K + k) * T
        t = item % tiles * ROWS + tl.arange(0, ROWS)
        _, total = _convolve(x + b * L * D, path, t, T, D, d, inside, taps, bias_row, W)
        if SILU:
            total = silu(total)
        token = tokens_at(path, t, T)
        mask = (token >= 0)[:, None] & inside[None, :]
        tl.store(y + (b * K + k) * L * D + (token * D)[:, None] + d[None, :], total, mask=mask)


@triton.jit(do_not_specialize=["items", "per_program", "L", "T"])
def conv_slopes(
    grad,
    x,
    weight,
    bias,
    paths,
    slopes,
    sums,
    items,
    per_program,
    K,
    L,
    T,
    D,
    W: tl.constexpr,
    SILU: tl.constexpr,
    SHARED_PATHS: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of the sums before the activation, by step, and of weight and bias.

    `slopes` is (B, K, T, D). `sums` (programs, K, W + 1, D) receives each program's contribution to
    the gradient of the weight, by distance back, and of the bias.
    """
    d, inside, rest = _channels(D, BLOCK, EVEN)
    k = rest % K
    tiles = tl.cdiv(T, ROWS)
    taps = _load_taps(weight, k, D, d, inside, W)
    bias_row = _load_bias(bias, k, D, d, inside, BLOCK)
    # summed over the rows only at the end, because that crosses threads
    shares = ()
    for _ in tl.static_range(W + 1):
        shares = shares + (tl.zeros((ROWS, BLOCK), tl.float32),)
    first = rest // K * per_program
    for item in range(first, tl.minimum(first + per_program, items)):
        b = (item // tiles).to(tl.int64)
        path = None if paths is None else paths + (k if SHARED_PATHS else b * K + k) * T
        t = item % tiles * ROWS + tl.arange(0, ROWS)
        seen, total = _convolve(x + b * L * D, path, t, T, D, d, inside, taps, bias_row, W)
        token = tokens_at(path, t, T)
        g = _load_rows(grad + (b * K + k) * L * D, token, D, d, inside)
        if SILU:
            g *= silu_slope(total)
        mask = (t < T)[:, None] & inside[None, :]
        tl.store(slopes + (b * K + k) * T * D + (t * D)[:, None] + d[None, :], g, mask=mask)
        new = ()
        for lag in tl.static_range(W):
            new = new + (shares[lag] + g * seen[lag],)
        shares = new + (shares[W] + g,)
    for row in tl.static_range(W + 1):
        place = (rest * (W + 1) + row) * D + d
        tl.store(sums + place, tl.sum(shares[row], axis=0), mask=inside)


@triton.jit(do_not_specialize=["L", "T"])
def conv_inputs(
    slopes,
    weight,
    inverse,
    dx,
    K,
    L,
    T,
    D,
    W: tl.constexpr,
    SHARED_PATHS: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of a tile of tokens: from each path, those of the W steps that read a token."""
    d, inside, rest = _channels(D, BLOCK, EVEN)
    tiles = tl.cdiv(L, ROWS)
    token = rest % tiles * ROWS + tl.arange(0, ROWS)
    b = (rest // tiles).to(tl.int64)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for k in range(K):
        taps = _load_taps(weight, k, D, d, inside, W)
        row = k if SHARED_PATHS else b * K + k
        step = tokens_at(None if inverse is None else inverse + row * L, token, L)
        for lag in tl.static_range(W):
            index = tl.where((step >= 0) & (step + lag < T), step + lag, -1)
            rows = _load_rows(slopes + (b * K + k) * T * D, index, D, d, inside)
            total += taps[lag][None, :] * rows
    mask = (token < L)[:, None] & inside[None, :]
    tl.store(dx + b * L * D + (token * D)[:, None] + d[None, :], total, mask=mask)
