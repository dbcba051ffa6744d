"""Triton kernels of the step sizes of Mamba-2's scan and their gradients; fused.py launches them.

The per-step values that the matrix products need are computed once, by head and step, because for
narrow heads they take longer than the products. A program handles one chunk and some heads.

Sizes: B batch, K paths, L tokens, T steps in chunks of Q, H heads.
"""

# Names in a kernel are Triton tensors, which have no types.
# ruff: noqa: ANN001, ANN201, ANN202
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

import triton
import triton.language as tl

from vimamba_kernels.gpu_kernels import LOG2E, softplus_and_slope, tokens_at

# log2 of a decay: 2**-149 is the smallest number in float32
LOWEST_LOG = tl.constexpr(-150.0)


@triton.jit
def _locate(
    paths, K, T, H, chunks, SHARED_PATHS: tl.constexpr, Q: tl.constexpr, HEADS: tl.constexpr
):
    """Indices of a program: path, chunk, heads, steps, tokens; and its steps' offsets by head."""
    blocks = tl.cdiv(H, HEADS)
    head = tl.program_id(0) % blocks * HEADS + tl.arange(0, HEADS)
    chunk = tl.program_id(0) // blocks % chunks
    bk = (tl.program_id(0) // blocks // chunks).to(tl.int64)
    i = tl.arange(0, Q)
    t = chunk * Q + i
    row = bk % K if SHARED_PATHS else bk
    token = tokens_at(None if paths is None else paths + row * T, t, T)
    place = (bk * H + head[None, :]) * (chunks * Q) + t[:, None]
    return bk, chunk, head, t, token, place


@triton.jit
def _load_sizes(dt, bias, bk, K, L, T, H, head, t, token, lowest, highest, SOFTPLUS: tl.constexpr):
    """Step sizes and their derivative with respect to dt, (Q, HEADS); both zero past the end."""
    real = head < H
    mask = (token >= 0)[:, None] & real[None, :]
    rows = dt + bk * L * H + (token * H)[:, None] + head[None, :]
    size = tl.load(rows, mask=mask, other=0.0).to(tl.float32)
    if bias is not None:
        row = tl.load(bias + bk % K * H + head, mask=real, other=0.0)
        size += row.to(tl.float32)[None, :]
    slope = tl.full(size.shape, 1.0, tl.float32)
    if SOFTPLUS:
        size, slope = softplus_and_slope(size)
    past = (t >= T)[:, None]
    slope = tl.where((size < lowest) | (size > highest) | past, 0.0, slope)
    size = tl.where(past, 0.0, tl.minimum(tl.maximum(size, lowest), highest))
    return size, slope


@triton.jit
def _load_rates(A, bk, K, H, head):
    return tl.load(A + bk % K * H + head, mask=head < H, other=0.0).to(tl.float32)


@triton.jit
def _load_logs(A, size, bk, K, L, H, head, token, GIVEN: tl.constexpr):
    """Base-2 logarithms of the decays, (Q, HEADS): given, or sizes times rates."""
    if GIVEN:
        mask = (token >= 0)[:, None] & (head < H)[None, :]
        rows = A + bk * L * H + (token * H)[:, None] + head[None, :]
        log = tl.load(rows, mask=mask, other=0.0).to(tl.float32) * LOG2E
    else:
        log = size * (_load_rates(A, bk, K, H, head) * LOG2E)[None, :]
    return log


@triton.jit(do_not_specialize=["L", "T", "chunks"])
def lay_sizes(
    dt,
    A,
    bias,
    paths,
    sizes,
    wholes,
    parts,
    K,
    L,
    T,
    H,
    chunks,
    lowest,
    highest,
    SOFTPLUS: tl.constexpr,
    GIVEN: tl.constexpr,
    SHARED_PATHS: tl.constexpr,
    Q: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Step sizes, and inclusive cumulative sums of log2 of the decays within chunks.

    `A` is (K, H), or with GIVEN the decays' logarithms by token, (B, K, L, H). `sizes`, `wholes`
    and `parts` are (B, K, H, chunks * Q). A sum is stored in two parts, a whole number and a small
    remainder. A single number would have a rounding error relative to its size, and so would the
    difference of two sums that are large because of a few large steps before both. Hence multiples
    of 1 / 64, whose sums are exact, are summed separately from the remainders.
    """
    bk, _chunk, head, t, token, place = _locate(
        paths, K, T, H, chunks, SHARED_PATHS, Q, HEADS
    )  # fmt: skip
    size, _slope = _load_sizes(
        dt, bias, bk, K, L, T, H, head, t, token, lowest, highest, SOFTPLUS
    )  # fmt: skip
    log = _load_logs(A, size, bk, K, L, H, head, token, GIVEN)
    log = tl.minimum(tl.maximum(log, LOWEST_LOG), -LOWEST_LOG)
    coarse = tl.floor(log * 64.0 + 0.5) * 0.015625
    total = tl.cumsum(coarse, axis=0)
    whole = tl.floor(total)
    part = (total - whole) + tl.cumsum(log - coarse, axis=0)
    mask = tl.full(place.shape, 1, tl.int32) * (head < H)[None, :].to(tl.int32) > 0
    tl.store(sizes + place, size, mask=mask)
    tl.store(wholes + place, whole.to(tl.int32), mask=mask)
    tl.store(parts + place, part, mask=mask)


@triton.jit(do_not_specialize=["L", "T", "chunks"])
def finish_sizes(
    dt,
    A,
    bias,
    paths,
    wholes,
    parts,
    reads,
    writes,
    dsizes,
    kept,
    ddt,
    dlogs,
    sums,
    K,
    L,
    T,
    H,
    chunks,
    lowest,
    highest,
    SOFTPLUS: tl.constexpr,
    GIVEN: tl.constexpr,
    SHARED_PATHS: tl.constexpr,
    Q: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Gradients of dt, by token, and in `sums` (2, B, K, chunks, H) those of A and the bias.

    With GIVEN, the gradient of the decays' logarithms goes to `dlogs`, by token, instead of A's.

    By head and step, `reads` is the contribution of each read to the gradient of the log decays up
    to its step, `writes` that of each write to those after its step, and `dsizes` the gradient of
    the sizes without the decays. `kept` (B, K, chunks, H) is the contribution of the state before a
    chunk to the gradient of the chunk's log decay.
    """
    bk, chunk, head, t, token, place = _locate(
        paths, K, T, H, chunks, SHARED_PATHS, Q, HEADS
    )  # fmt: skip
    size, slope = _load_sizes(
        dt, bias, bk, K, L, T, H, head, t, token, lowest, highest, SOFTPLUS
    )  # fmt: skip
    real = head < H
    mask = tl.full(place.shape, 1, tl.int32) * real[None, :].to(tl.int32) > 0
    last = (bk * H + head) * (chunks * Q) + chunk * Q + Q - 1
    decay = tl.exp2(
        tl.load(wholes + last, mask=real, other=0.0) + tl.load(parts + last, mask=real, other=0.0)
    )
    own = (bk * chunks + chunk) * H + head
    dlog = (decay * tl.load(kept + own, mask=real, other=0.0))[None, :]
    dlog += tl.cumsum(tl.load(reads + place, mask=mask, other=0.0), axis=0, reverse=True)
    write = tl.load(writes + place, mask=mask, other=0.0)
    dlog += tl.cumsum(write, axis=0) - write
    # nothing passes a decay of zero: there, the sums are rounding errors times a large step
    log = _load_logs(A, size, bk, K, L, H, head, token, GIVEN)
    dlog = tl.where(log > LOWEST_LOG, dlog, 0.0)
    ddelta = tl.load(dsizes + place, mask=mask, other=0.0)
    if not GIVEN:
        ddelta += dlog * _load_rates(A, bk, K, H, head)[None, :]
    ddelta *= slope
    own_rows = bk * L * H + (token * H)[:, None] + head[None, :]
    by_token = mask & (token >= 0)[:, None]
    tl.store(ddt + own_rows, ddelta, mask=by_token)
    if GIVEN:
        tl.store(dlogs + own_rows, dlog, mask=by_token)
    pairs = tl.num_programs(0) // tl.cdiv(H, HEADS) * H
    tl.store(sums + own, tl.sum(dlog * size, axis=0), mask=real)
    tl.store(sums + pairs + own, tl.sum(ddelta, axis=0), mask=real)
