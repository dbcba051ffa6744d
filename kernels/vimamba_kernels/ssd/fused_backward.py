"""Triton kernel of Mamba-2's backward pass; fused.py launches it after `walk_states`.

Within a chunk, with the scores S = C B^T, the decays R between steps and the writes w = dt x, the
outputs are (S * R) w plus the contribution of the chunk's initial state, and the last state is what
remains of the writes and of the initial state. A program processes the heads of a group one after
another, so that the gradients of S, B and C, which the heads share, accumulate in place. It does so
three times, because the tiles do not fit in the registers together.
"""

# Names in a kernel are Triton tensors, which have no types.
# ruff: noqa: ANN001, ANN201, ANN202
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

import triton
import triton.language as tl

from vimamba_kernels.gpu_kernels import tokens_at
from vimamba_kernels.ssd.fused_steps import (
    cells_of,
    columns,
    load_rows,
    load_steps,
    lower,
    product,
    store_rows,
    whole_decays,
)


@triton.jit
def _load_tiles(x, grad, token, H, head, p_first, n, real_n, P: tl.constexpr, PB: tl.constexpr):
    """Channels of a head from `p_first`: rows of `x` and `grad`, and the elements of the state."""
    p, real_p = columns(p_first, P, PB)
    row = load_rows(x, token, H * P, head * P + p, real_p).to(tl.float32)
    gy = load_rows(grad, token, H * P, head * P + p, real_p).to(tl.float32)
    cells, real = cells_of(n, real_n, p, real_p, P)
    return p, real_p, row, gy, cells, real


@triton.jit(do_not_specialize=["batch", "L", "T", "per_program", "chunks"])
def ssd_gradients(
    grad,
    x,
    B,
    C,
    skip,
    paths,
    step_sizes,
    wholes,
    parts,
    states,
    state_grads,
    dx,
    reads,
    writes,
    dsizes,
    kept,
    dB,
    dC,
    skip_sums,
    batch,
    K,
    L,
    T,
    H,
    per_group,
    per_program,
    chunks,
    P: tl.constexpr,
    N: tl.constexpr,
    SHARED: tl.constexpr,
    SHARED_GRAD: tl.constexpr,
    SHARED_PATHS: tl.constexpr,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    Q: tl.constexpr,
    PB: tl.constexpr,
    NB: tl.constexpr,
):
    """All gradients from one chunk and `per_program` heads of one group.

    `grad` is the gradient of the ungated output, `states` (B, K, chunks, H, N, P) the state before
    each chunk, and `state_grads` the gradient of the state after it. `dx` is (B, K, T, H, P), by
    step; `dB` and `dC` are by token, with a leading dimension for the parts of a group. `skip_sums`
    (B, K, chunks, H, P) receives the gradient of D; see `finish_sizes` for `reads`, `writes`,
    `dsizes` and `kept`.
    """
    programs = per_group // per_program
    groups = H // per_group
    share = tl.program_id(0) % programs
    group = tl.program_id(0) // programs % groups
    rest = tl.program_id(0) // programs // groups
    chunk = rest % chunks
    k = rest // chunks % K
    b = (rest // chunks // K).to(tl.int64)
    bk = b * K + k
    n, real_n = columns(0, N, NB)
    i = tl.arange(0, Q)
    t = chunk * Q + i
    path = None if paths is None else paths + (k if SHARED_PATHS else bk) * T
    token = tokens_at(path, t, T)
    step = tl.where(t < T, t, -1)
    weights = bk * L * groups * N + group * N
    Bs = load_rows(B + weights, token, groups * N, n, real_n)
    Cs = load_rows(C + weights, token, groups * N, n, real_n)
    scores = lower(product(Cs, tl.trans(Bs), None, HALF, PRECISION), Q)
    first = group * per_group + share * per_program
    x_rows = x + (b if SHARED else bk) * L * H * P
    grad_rows = grad + (b if SHARED_GRAD else bk) * L * H * P
    steps = bk * H * (chunks * Q) + chunk * Q
    slots = (bk * chunks + chunk) * H

    # of the writes
    for head in range(first, first + per_program):
        own = steps + head * (chunks * Q)
        size, whole, part, left, _decay = load_steps(step_sizes, wholes, parts, own, Q)
        weighted = tl.trans(scores * whole_decays(whole))
        written = tl.zeros((Q,), tl.float32)
        dsize = tl.zeros((Q,), tl.float32)
        for p_first in range(0, P, PB):
            p, real_p, row, gy, cells, real = _load_tiles(
                x_rows, grad_rows, token, H, head, p_first, n, real_n, P, PB
            )
            dh = tl.load(state_grads + (slots + head) * N * P + cells, mask=real, other=0.0)
            dwrite = product(weighted, gy * tl.exp2(part)[:, None], None, HALF, PRECISION)
            dwrite *= tl.exp2(-part)[:, None]
            later = product(Bs, dh, None, HALF, PRECISION) * left[:, None]
            dwrite += later
            written += tl.sum(later * row, axis=1) * size
            dsize += tl.sum(dwrite * row, axis=1)
            drow = dwrite * size[:, None]
            if skip is not None:
                weight = tl.load(skip + (k * H + head) * P + p, mask=real_p, other=0.0)
                drow += gy * weight[None, :]
                place = skip_sums + (slots + head) * P + p
                tl.store(place, tl.sum(gy * row, axis=0), mask=real_p)
            store_rows(dx + bk * T * H * P, step, H * P, head * P + p, real_p, drow)
        tl.store(writes + own + i, written)
        tl.store(dsizes + own + i, dsize)

    # of the scores
    dscores = tl.zeros((Q, Q), tl.float32)
    for head in range(first, first + per_program):
        own = steps + head * (chunks * Q)
        size, whole, part, _left, _decay = load_steps(step_sizes, wholes, parts, own, Q)
        between = whole_decays(whole)
        read = tl.zeros((Q,), tl.float32)
        for p_first in range(0, P, PB):
            _p, _real_p, row, gy, cells, real = _load_tiles(
                x_rows, grad_rows, token, H, head, p_first, n, real_n, P, PB
            )
            h = tl.load(states + (slots + head) * N * P + cells, mask=real, other=0.0)
            gy *= tl.exp2(part)[:, None]
            write = row * (size * tl.exp2(-part))[:, None]
            inner = product(gy, tl.trans(write), None, HALF, PRECISION) * between
            dscores += inner
            # the diagonal has no decay
            inner = tl.where(i[:, None] > i[None, :], inner * scores, 0.0)
            read += tl.sum(inner, axis=1) - tl.sum(inner, axis=0)
            earlier = tl.sum(product(Cs, h, None, HALF, PRECISION) * gy, axis=1)
            read += earlier * tl.exp2(whole.to(tl.float32))
        tl.store(reads + own + i, read)

    # of B and C
    dscores = lower(dscores, Q)
    B_sum = product(tl.trans(dscores), Cs, None, HALF, PRECISION)
    C_sum = product(dscores, Bs, None, HALF, PRECISION)
    for head in range(first, first + per_program):
        own = steps + head * (chunks * Q)
        size, whole, part, left, _decay = load_steps(step_sizes, wholes, parts, own, Q)
        keeps = 0.0
        for p_first in range(0, P, PB):
            _p, _real_p, row, gy, cells, real = _load_tiles(
                x_rows, grad_rows, token, H, head, p_first, n, real_n, P, PB
            )
            h = tl.load(states + (slots + head) * N * P + cells, mask=real, other=0.0)
            dh = tl.load(state_grads + (slots + head) * N * P + cells, mask=real, other=0.0)
            keeps += tl.sum(h.to(tl.float32) * dh.to(tl.float32))
            gy *= tl.exp2(whole + part)[:, None]
            C_sum = product(gy, tl.trans(h), C_sum, HALF, PRECISION)
            write = row * (size * left)[:, None]
            B_sum = product(write, tl.trans(dh), B_sum, HALF, PRECISION)
        tl.store(kept + slots + head, keeps)
    part_of_group = share.to(tl.int64) * batch * K * L * groups * N + weights
    store_rows(dC + part_of_group, token, groups * N, n, real_n, C_sum)
    store_rows(dB + part_of_group, token, groups * N, n, real_n, B_sum)
