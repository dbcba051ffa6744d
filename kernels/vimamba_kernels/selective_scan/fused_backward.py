"""Triton kernels of the selective scan's backward pass; fused.py launches them.

B and C of a step are shared by a block of channels. Each program sums their gradients over its
block and writes one partial sum; `sum_weights` adds these up. fused_steps.py describes how the
kernels work.
"""

# Names in a kernel are Triton tensors, which have no types, and tuples have a fixed length.
# Conditions on constants are separate statements, because they select what is compiled.
# ruff: noqa: ANN001, ANN201, ANN202, RUF005, SIM102
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportPossiblyUnboundVariable=false

import triton
import triton.language as tl

from vimamba_kernels.gpu_kernels import LN2, silu, softplus_and_slope
from vimamba_kernels.selective_scan.fused_steps import (
    CHUNK,
    load_delta,
    load_parameter,
    load_row,
    load_tokens,
    locate,
    locate_delta,
    mask_by,
    project,
    store_row,
)


@triton.jit
def _fold(x, y):
    """Half of the sums of `x` and `y` (values, lanes), side by side: (2 * values, lanes / 2)."""
    VALUES: tl.constexpr = x.shape[0]
    HALF: tl.constexpr = x.shape[1] // 2
    x = tl.sum(tl.reshape(x, (VALUES, 2, HALF)), axis=1)
    y = tl.sum(tl.reshape(y, (VALUES, 2, HALF)), axis=1)
    first = tl.arange(0, 2)[None, :, None] == 0
    return tl.reshape(tl.where(first, x[:, None, :], y[:, None, :]), (2 * VALUES, HALF))


@triton.jit
def _sums(rows, BLOCK: tl.constexpr):
    """Sums of eight rows, in the order 0, 4, 2, 6, 1, 5, 3, 7.

    Every level of the tree sums two rows in the two halves of the warp, which takes half as many
    shuffles as summing the rows one after another.
    """
    lanes = ()
    for i in tl.static_range(8):
        # first the values that a lane holds
        row = tl.sum(tl.reshape(rows[i], (32, BLOCK // 32)), axis=1)
        lanes = lanes + (tl.reshape(row, (1, 32)),)
    a = _fold(_fold(lanes[0], lanes[1]), _fold(lanes[2], lanes[3]))
    b = _fold(_fold(lanes[4], lanes[5]), _fold(lanes[6], lanes[7]))
    return tl.sum(_fold(a, b), axis=1)


@triton.jit
def _one_state(
    decay,
    h,
    g,
    a_sum,
    B,
    C,
    partial,
    tokens,
    dts,
    writes,
    gys,
    dwrites,
    ddts,
    N: tl.constexpr,
    SKIPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One of the N states through four steps, forward and back; pointers are to that state.

    `h` is the state before the steps, `g` the gradient of the state after them.

    Returns the gradients of dt * u and of dt * log2(e), with this state's contribution added, `g`
    before the steps and the sum of A's gradient.
    """
    Bs, Cs = (), ()
    for j in tl.static_range(4):
        if SKIPS:
            Bs = Bs + (tl.load(B + tokens[j] * N, mask=tokens[j] >= 0, other=0.0).to(tl.float32),)
            Cs = Cs + (tl.load(C + tokens[j] * N, mask=tokens[j] >= 0, other=0.0).to(tl.float32),)
        else:
            Bs = Bs + (tl.load(B + tokens[j] * N).to(tl.float32),)
            Cs = Cs + (tl.load(C + tokens[j] * N).to(tl.float32),)
    decays, kepts, sums = (), (), ()
    for j in tl.static_range(4):
        a = tl.exp2(decay * dts[j])
        kept = a * h
        h = kept + writes[j] * Bs[j]
        decays = decays + (a,)
        kepts = kepts + (kept,)
        sums = sums + (h * gys[j],)
    new_dwrites, new_ddts = (), ()
    for j in tl.static_range(3, -1, -1):
        g += gys[j] * Cs[j]
        q = g * kepts[j]
        a_sum += dts[j] * q
        new_dwrites = (dwrites[j] + g * Bs[j],) + new_dwrites
        new_ddts = (ddts[j] + decay * q,) + new_ddts
        sums = sums + (g * writes[j],)
        g *= decays[j]
    # dC of the four steps in order, then dB in reverse order; dB comes first in memory
    i = tl.arange(0, 8)
    i = (i & 1) * 4 + (i & 2) + (i >> 2)
    j = tl.where(i < 4, i, 7 - i)
    tl.store(partial + j * N * 2 + (i < 4).to(tl.int32), _sums(sums, BLOCK))
    return new_dwrites, new_ddts, g, a_sum


@triton.jit
def _load_rows(pointers, tokens, D, inside, SKIPS: tl.constexpr, UNROLL: tl.constexpr):
    rows = ()
    for j in tl.static_range(UNROLL):
        rows = rows + (load_row(pointers, tokens[j], D, inside, SKIPS),)
    return rows


@triton.jit
def _load_deltas(
    rows, tokens, t, D, inside, SKIPS: tl.constexpr, RANK: tl.constexpr, BLOCK, UNROLL: tl.constexpr
):
    deltas = ()
    for j in tl.static_range(UNROLL):
        deltas = deltas + (load_delta(rows, tokens[j], t + j, D, inside, SKIPS, RANK, BLOCK),)
    return deltas


@triton.jit
def _prepare(
    us,
    deltas,
    grads,
    gates,
    bias_row,
    left,
    SOFTPLUS: tl.constexpr,
    PAST: tl.constexpr,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """By step: dt, its slope (for one state), dt * u, the ungated output's gradient; two zeros.

    `left` steps remain; with PAST, dt is zero in the steps after them, which keep the state.
    """
    dts, slopes, writes, gys, zeros = (), (), (), (), ()
    for j in tl.static_range(UNROLL):
        dt = deltas[j].to(tl.float32) + bias_row
        if SOFTPLUS:
            dt, slope = softplus_and_slope(dt)
            if N == 1:
                slopes = slopes + (slope,)
        if PAST:
            dt = tl.where(j < left, dt, 0.0)
        gy = grads[j].to(tl.float32)
        if gates is not None:
            gy *= silu(gates[j])
        dts = dts + (dt,)
        writes = writes + (dt * us[j].to(tl.float32),)
        gys = gys + (gy,)
        zeros = zeros + (tl.zeros((BLOCK,), tl.float32),)
    return dts, slopes, writes, gys, zeros, zeros


@triton.jit
def _slopes(deltas, bias_row, UNROLL: tl.constexpr):
    slopes = ()
    for j in tl.static_range(UNROLL):
        slopes = slopes + (softplus_and_slope(deltas[j].to(tl.float32) + bias_row)[1],)
    return slopes


@triton.jit(do_not_specialize=["L", "T", "path_first"], do_not_specialize_on_alignment=["segments"])
def scan_backward(
    grad,
    u,
    delta,
    A,
    B,
    C,
    skip,
    bias,
    projection,
    scratch,
    z,
    paths,
    states,
    carry,
    total,
    du,
    ddelta,
    sums,
    partial,
    K,
    L,
    T,
    D,
    width,
    segments,
    segment_steps,
    path_first,
    path_programs,
    path_count,
    N: tl.constexpr,
    RANK: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    ENDS: tl.constexpr,
    SHARED_U: tl.constexpr,
    SHARED_GRAD: tl.constexpr,
    COMPLETE: tl.constexpr,
    SHARED_PATHS: tl.constexpr,
    TAIL: tl.constexpr,
    EVEN: tl.constexpr,
    MERGE: tl.constexpr,
    BLOCK: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """All gradients, traversing each path backward by UNROLL = 4 steps from the saved `states`.

    `carry` (B, K, segments, N, D) holds the gradient of the state after a segment, and is
    overwritten by that of the state before it; with ENDS, the last state has a gradient, too.
    `sums` (B, K, segments, N + 2, D), initially zero, receives dA, dD and the bias's gradient
    summed over a segment's steps; `partial` (B, K, blocks, T rounded up to a multiple of UNROLL,
    N, 2) receives dB and dC summed over a block's channels. MERGE applies to `du`; see
    `scan_forward`.
    """
    SKIPS: tl.constexpr = TAIL or not COMPLETE
    # whether there are enough registers for values passed between groups
    HELD: tl.constexpr = N == 1 and not SKIPS
    b, k_program, segment, block, blocks, group, d, inside = locate(
        D, width, segments, path_programs, BLOCK, EVEN
    )
    first = segment * segment_steps
    last = tl.minimum(first + segment_steps, T)
    groups = tl.cdiv(last - first, UNROLL)
    for i in range(path_count):
        k = path_first + k_program * path_count + i
        bk = b * K + k
        u_rows = u + (b if SHARED_U else bk) * L * D + d
        grad_rows = grad + (b if SHARED_GRAD else bk) * L * D + d
        delta_rows = locate_delta(delta, scratch, bk, L, D, d, RANK, BLOCK)
        ddelta_rows = ddelta + bk * L * D + d
        earlier = inside if du is None else mask_by(inside, k - 1)
        z_rows = None if z is None else z + b * L * D + d
        weights = (bk * (D // width) + group) * L * N
        row = (bk if MERGE == "rows" else b) * L * D + d
        path = None if paths is None else paths + (k if SHARED_PATHS else bk) * T
        own = (bk * segments + segment) * N * D + d
        sum_rows = sums + (bk * segments + segment) * (N + 2) * D + d
        end = first + (groups - 1) * UNROLL
        coming = load_tokens(path, end, last, TAIL, UNROLL)
        if HELD:
            decay = tl.load(A + k * D + d, mask=inside, other=0.0)
            g = tl.load(carry + own, mask=inside, other=0.0)
            a_sum = tl.zeros((BLOCK,), tl.float32)
            skip_sum = tl.zeros((BLOCK,), tl.float32)
            bias_sum = tl.zeros((BLOCK,), tl.float32)
        for reverse in range(groups):
            t = end - reverse * UNROLL
            if N == 1:
                # there are enough registers to load tokens one group ahead
                tokens = coming
                coming = load_tokens(path, tl.maximum(t - UNROLL, first), last, TAIL, UNROLL)
            else:
                tokens = load_tokens(path, t, last, TAIL, UNROLL)
            if RANK > 0:
                if (reverse == 0) | (t % CHUNK == CHUNK - UNROLL):
                    project(
                        delta, projection, scratch, path, t // CHUNK * CHUNK, last, bk, k, L, block,
                        blocks, RANK, BLOCK,
                    )  # fmt: skip
            slot = (bk * tl.cdiv(T, UNROLL) + t // UNROLL) * N * D + d
            place = ((bk * blocks + block) * tl.cdiv(T, UNROLL) * UNROLL + t) * N * 2
            us = _load_rows(u_rows, tokens, D, inside, SKIPS, UNROLL)
            deltas = _load_deltas(delta_rows, tokens, t, D, inside, SKIPS, RANK, BLOCK, UNROLL)
            grads = _load_rows(grad_rows, tokens, D, inside, SKIPS, UNROLL)
            gates = None if z is None else _load_rows(z_rows, tokens, D, inside, SKIPS, UNROLL)
            if N == 1 and MERGE == "own":
                olds = _load_rows(total + row, tokens, D, earlier, SKIPS, UNROLL)
            bias_row = load_parameter(bias, k * D + d, inside)
            dts, slopes, writes, gys, dwrites, ddts = _prepare(
                us, deltas, grads, gates, bias_row, last - t, SOFTPLUS, TAIL and ENDS, N, BLOCK,
                UNROLL,
            )  # fmt: skip
            for n in range(N):
                # the order with which the compiler keeps most loads in flight
                if not HELD:
                    decay = tl.load(A + k * N * D + n * D + d, mask=inside, other=0.0)
                h = tl.load(states + slot + n * D, mask=inside, other=0.0)
                if not HELD:
                    g = tl.load(carry + own + n * D, mask=inside, other=0.0)
                    a_sum = tl.load(sum_rows + n * D, mask=inside, other=0.0)
                dwrites, ddts, g, a_sum = _one_state(
                    decay, h, g, a_sum, B + weights + n, C + weights + n, partial + place + n * 2,
                    tokens, dts, writes, gys, dwrites, ddts, N, SKIPS, BLOCK,
                )  # fmt: skip
                if not HELD:
                    tl.store(carry + own + n * D, g, mask=inside)
                    tl.store(sum_rows + n * D, a_sum, mask=inside)
            if N > 1:
                # computed now or again: the loop over the states is short of registers
                us = _load_rows(u_rows, tokens, D, inside, SKIPS, UNROLL)
                deltas = _load_deltas(delta_rows, tokens, t, D, inside, SKIPS, RANK, BLOCK, UNROLL)
                slopes = _slopes(deltas, load_parameter(bias, k * D + d, inside), UNROLL)
                if MERGE == "own":
                    olds = _load_rows(total + row, tokens, D, earlier, SKIPS, UNROLL)
            skip_row = load_parameter(skip, k * D + d, inside)
            if not HELD:
                skip_sum = tl.load(sum_rows + N * D, mask=inside, other=0.0)
                bias_sum = tl.load(sum_rows + (N + 1) * D, mask=inside, other=0.0)
            for j in tl.static_range(UNROLL):
                x, gy = us[j].to(tl.float32), gys[j]
                ddt = dwrites[j] * x + ddts[j] * LN2
                if SOFTPLUS:
                    ddt *= slopes[j]
                if TAIL and ENDS:
                    ddt = tl.where(t + j < last, ddt, 0.0)
                mask = mask_by(inside, tokens[j]) if SKIPS else inside
                tl.store(ddelta_rows + tokens[j] * D, ddt, mask=mask)
                value = dwrites[j] * dts[j] + skip_row * gy
                old = olds[j] if MERGE == "own" else None
                store_row(value, old, None, row + tokens[j] * D, mask, k, K, total, None, du, MERGE)
                skip_sum += gy * x
                bias_sum += ddt
            if not HELD:
                tl.store(sum_rows + N * D, skip_sum, mask=inside)
                tl.store(sum_rows + (N + 1) * D, bias_sum, mask=inside)
                # `carry` and `sums` are read again by the next group
                tl.debug_barrier()
        if HELD:
            tl.store(sum_rows, a_sum, mask=inside)
            tl.store(sum_rows + D, skip_sum, mask=inside)
            tl.store(sum_rows + 2 * D, bias_sum, mask=inside)
            # the next path reads rows of `total` that other threads may have written
            tl.debug_barrier()


@triton.jit(do_not_specialize=["L", "T", "T_padded"])
def sum_weights(
    partial,
    paths,
    dB,
    dC,
    K,
    L,
    T,
    T_padded,
    groups,
    per_group,
    N: tl.constexpr,
    SHARED_PATHS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Add the partial sums written by scan_backward, and store them at the tokens' positions."""
    NP: tl.constexpr = triton.next_power_of_2(N)
    chunks = tl.cdiv(T, ROWS)
    # a batch element, a path and a group
    owner = (tl.program_id(0) // chunks).to(tl.int64)
    t = tl.program_id(0) % chunks * ROWS + tl.arange(0, ROWS)
    n = tl.arange(0, NP)
    mask = (t < T)[:, None] & (n < N)[None, :]
    place = owner * per_group * T_padded * N * 2 + (t * N * 2)[:, None] + n[None, :] * 2
    b_sum = tl.zeros((ROWS, NP), tl.float32)
    c_sum = tl.zeros((ROWS, NP), tl.float32)
    for _ in range(per_group):
        b_sum += tl.load(partial + place, mask=mask, other=0.0)
        c_sum += tl.load(partial + place + 1, mask=mask, other=0.0)
        place += T_padded * N * 2
    token = t
    if paths is not None:
        bk = owner // groups
        row = bk % K if SHARED_PATHS else bk
        token = tl.load(paths + row * T + t, mask=t < T, other=-1).to(tl.int32)
        mask = mask & (token >= 0)[:, None]
    place = owner * L * N + (token * N)[:, None] + n[None, :]
    tl.store(dB + place, b_sum, mask=mask)
    tl.store(dC + place, c_sum, mask=mask)
