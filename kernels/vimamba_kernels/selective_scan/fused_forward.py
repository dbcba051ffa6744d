"""Triton kernels of the selective scan's forward pass; fused.py launches them.

`scan_forward` computes outputs or states. For paths in segments, `scan_summary` and
`carry_segments` find the initial state of each. fused_steps.py describes how they work.
"""

# Names in a kernel are Triton tensors, which have no types, and tuples have a fixed length.
# Conditions on constants are separate statements, because they select what is compiled.
# ruff: noqa: ANN001, ANN201, ANN202, RUF005, SIM102
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

import triton
import triton.language as tl

from vimamba_kernels.gpu_kernels import silu, softplus
from vimamba_kernels.selective_scan.fused_steps import (
    CHUNK,
    load_delta,
    load_parameter,
    load_row,
    load_tokens,
    load_weights,
    locate,
    locate_delta,
    mask_by,
    project,
    store_row,
    token_at,
)


@triton.jit
def _load_steps(
    u,
    delta,
    B,
    C,
    z,
    total,
    tokens,
    t,
    k,
    K,
    D,
    n,
    inside,
    N: tl.constexpr,
    RANK: tl.constexpr,
    FINISHES: tl.constexpr,
    MERGE: tl.constexpr,
    SKIPS: tl.constexpr,
    BLOCK: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Inputs of the steps from t; without C no outputs are computed. Pointers are to token 0."""
    us, deltas, Bs, Cs, olds, gates = (), (), (), (), (), ()
    for j in tl.static_range(UNROLL):
        token = tokens[j]
        us = us + (load_row(u, token, D, inside, SKIPS),)
        deltas = deltas + (load_delta(delta, token, t + j, D, inside, SKIPS, RANK, BLOCK),)
        Bs = Bs + (load_weights(B, token, n, N, SKIPS),)
        if C is not None:
            Cs = Cs + (load_weights(C, token, n, N, SKIPS),)
        if MERGE == "own" and total is not None:
            earlier = mask_by(inside, k - 1) if FINISHES else inside
            olds = olds + (load_row(total, token, D, earlier, SKIPS),)
        if z is not None:
            final = mask_by(inside, k - (K - 1)) if MERGE == "own" else inside
            gates = gates + (load_row(z, token, D, final, SKIPS),)
    return us, deltas, Bs, Cs, olds, gates


@triton.jit(do_not_specialize=["L", "T", "path_first"], do_not_specialize_on_alignment=["segments"])
def scan_forward(
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
    total,
    ungated,
    out,
    states,
    starts,
    final,
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
    SHARED_U: tl.constexpr,
    COMPLETE: tl.constexpr,
    SHARED_PATHS: tl.constexpr,
    TAIL: tl.constexpr,
    EVEN: tl.constexpr,
    MERGE: tl.constexpr,
    SPACING: tl.constexpr,
    BLOCK: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Outputs, or the states at every SPACING-th step, or both, depending on the given pointers.

    `starts` (B, K, segments, N, D) holds the initial states of the segments, zero if None; `final`
    (B, K, N, D) receives the state after the last step if given.

    MERGE "rows": every path has separate rows in `out`. "own": paths accumulate in `total` one
    after another, within a program or in several launches, and the last one writes `out` if given.
    "atomic": paths accumulate in `total` in any order. `A` is (K, N, D) and holds A * log2(e).
    """
    SKIPS: tl.constexpr = TAIL or not COMPLETE
    EMIT: tl.constexpr = out is not None or total is not None
    NP: tl.constexpr = triton.next_power_of_2(N)
    b, k_program, segment, block, blocks, group, d, inside = locate(
        D, width, segments, path_programs, BLOCK, EVEN
    )
    n = tl.arange(0, NP)
    cells = n[:, None] * D + d[None, :]
    real = (n < N)[:, None] & inside[None, :]
    first = segment * segment_steps
    last = tl.minimum(first + segment_steps, T)
    for i in range(path_count):
        k = path_first + k_program * path_count + i
        bk = b * K + k
        u_rows = u + (b if SHARED_U else bk) * L * D + d
        delta_rows = locate_delta(delta, scratch, bk, L, D, d, RANK, BLOCK)
        weights = (bk * (D // width) + group) * L * N
        row = (bk if MERGE == "rows" else b) * L * D + d
        path = None if paths is None else paths + (k if SHARED_PATHS else bk) * T
        decay = tl.load(A + k * N * D + cells, mask=real, other=0.0)
        bias_row = load_parameter(bias, k * D + d, inside)
        skip_row = load_parameter(skip, k * D + d, inside)
        h = tl.zeros((NP, BLOCK), tl.float32)
        if starts is not None:
            slot = bk * segments + segment
            h = tl.load(starts + slot * N * D + cells, mask=real, other=0.0)
        z_rows = None if z is None else z + b * L * D + d
        C_rows = C + weights if EMIT else None
        totals = None if total is None else total + row
        # rows are loaded one group ahead of the arithmetic, and tokens two
        tokens = load_tokens(path, first, last, TAIL, UNROLL)
        coming = load_tokens(path, first + UNROLL, last, TAIL, UNROLL)
        if RANK > 0:
            project(
                delta, projection, scratch, path, first, last, bk, k, L, block, blocks, RANK, BLOCK
            )
        rows = _load_steps(
            u_rows, delta_rows, B + weights, C_rows, z_rows, totals, tokens, first, k, K,
            D, n, inside, N, RANK, out is not None, MERGE, SKIPS, BLOCK, UNROLL,
        )  # fmt: skip
        for t in range(first, last, UNROLL):
            here = tokens
            us, deltas, Bs, Cs, olds, gates = rows
            tokens = coming
            coming = load_tokens(path, t + 2 * UNROLL, last, TAIL, UNROLL)
            following = t + UNROLL
            if RANK > 0:
                # all earlier rows of delta have been loaded
                if (following % CHUNK == 0) & (following < last):
                    project(
                        delta, projection, scratch, path, following, last, bk, k, L, block, blocks,
                        RANK, BLOCK,
                    )  # fmt: skip
            rows = _load_steps(
                u_rows, delta_rows, B + weights, C_rows, z_rows, totals, tokens, following, k, K,
                D, n, inside, N, RANK, out is not None, MERGE, SKIPS, BLOCK, UNROLL,
            )  # fmt: skip
            for j in tl.static_range(UNROLL):
                if states is not None and j % SPACING == 0:
                    slot = bk * tl.cdiv(T, SPACING) + (t + j) // SPACING
                    # one of SPACING and UNROLL divides the other
                    if SPACING <= UNROLL:
                        mask = mask_by(real, last - 1 - t - j) if TAIL else real
                        tl.store(states + slot * N * D + cells, h, mask=mask)
                    elif t % SPACING == 0:
                        tl.store(states + slot * N * D + cells, h, mask=real)
                dt = deltas[j].to(tl.float32) + bias_row
                if SOFTPLUS:
                    dt = softplus(dt)
                if TAIL and final is not None:
                    # steps past the end leave the state as it is
                    dt = tl.where(t + j < last, dt, 0.0)
                x = us[j].to(tl.float32)
                write = Bs[j].to(tl.float32)[:, None] * (dt * x)[None, :]
                h = tl.exp2(decay * dt[None, :]) * h + write
                if EMIT:
                    value = tl.sum(h * Cs[j].to(tl.float32)[:, None], axis=0) + skip_row * x
                    mask = mask_by(inside, here[j]) if SKIPS else inside
                    old = olds[j] if MERGE == "own" else None
                    gate = None if z is None else gates[j]
                    place = row + here[j] * D
                    store_row(value, old, gate, place, mask, k, K, total, ungated, out, MERGE)
        if final is not None:
            # two conditions, because Triton before 3.4 compiles both sides of an `and`
            if last == T:
                tl.store(final + bk * N * D + cells, h, mask=real)
        if EMIT and MERGE == "own":
            # the next path reads rows that other threads may have written
            tl.debug_barrier()


@triton.jit(do_not_specialize=["L", "T", "segments"])
def scan_summary(
    value,
    delta,
    A,
    weight,
    bias,
    projection,
    scratch,
    z,
    paths,
    ends,
    sums,
    K,
    L,
    T,
    D,
    width,
    segments,
    segment_steps,
    N: tl.constexpr,
    RANK: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    SHARED: tl.constexpr,
    COMPLETE: tl.constexpr,
    SHARED_PATHS: tl.constexpr,
    TAIL: tl.constexpr,
    EVEN: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Effect of each segment on the state: what it adds (`ends`), and the sum of dt, its decay.

    Forward, `value` and `weight` are u and B. With REVERSE they are the output's gradient and C,
    and the state's gradient is propagated from the last step to the first.
    """
    SKIPS: tl.constexpr = TAIL or not COMPLETE
    NP: tl.constexpr = triton.next_power_of_2(N)
    b, k, segment, block, blocks, group, d, inside = locate(D, width, segments, K, BLOCK, EVEN)
    bk = b * K + k
    n = tl.arange(0, NP)
    cells = n[:, None] * D + d[None, :]
    real = (n < N)[:, None] & inside[None, :]
    first = segment * segment_steps
    last = tl.minimum(first + segment_steps, T)
    values = value + (b if SHARED else bk) * L * D + d
    delta_rows = locate_delta(delta, scratch, bk, L, D, d, RANK, BLOCK)
    weights = weight + (bk * (D // width) + group) * L * N
    path = None if paths is None else paths + (k if SHARED_PATHS else bk) * T
    decay = tl.load(A + k * N * D + cells, mask=real, other=0.0)
    bias_row = load_parameter(bias, k * D + d, inside)
    h = tl.zeros((NP, BLOCK), tl.float32)
    dt_sum = tl.zeros((BLOCK,), tl.float32)
    for i in range(tl.cdiv(last - first, UNROLL)):
        t = first + i * UNROLL
        if REVERSE:
            t = first + (tl.cdiv(last - first, UNROLL) - 1 - i) * UNROLL
        if RANK > 0:
            if (i == 0) | (t % CHUNK == (CHUNK - UNROLL if REVERSE else 0)):
                project(
                    delta, projection, scratch, path, t // CHUNK * CHUNK, last, bk, k, L, block,
                    blocks, RANK, BLOCK,
                )  # fmt: skip
        xs, deltas, rows, gates = (), (), (), ()
        for j in tl.static_range(UNROLL):
            # in the order of the traversal
            step = t + (UNROLL - 1 - j if REVERSE else j)
            token = token_at(path, step, last, TAIL)
            xs = xs + (load_row(values, token, D, inside, SKIPS),)
            delta_row = load_delta(delta_rows, token, step, D, inside, SKIPS, RANK, BLOCK)
            deltas = deltas + (delta_row,)
            rows = rows + (load_weights(weights, token, n, N, SKIPS),)
            if z is not None:
                gates = gates + (load_row(z + b * L * D + d, token, D, inside, SKIPS),)
        for j in tl.static_range(UNROLL):
            dt = deltas[j].to(tl.float32) + bias_row
            if SOFTPLUS:
                dt = softplus(dt)
            if TAIL:
                # steps past the end leave the state as it is
                step = t + (UNROLL - 1 - j if REVERSE else j)
                dt = tl.where(step < last, dt, 0.0)
            x = xs[j].to(tl.float32)
            if z is not None:
                x *= silu(gates[j])
            if not REVERSE:
                x *= dt
            a = tl.exp2(decay * dt[None, :])
            new = rows[j].to(tl.float32)[:, None] * x[None, :]
            h = (h + new) * a if REVERSE else h * a + new
            dt_sum += dt
    slot = bk * segments + segment
    tl.store(ends + slot * N * D + cells, h, mask=real)
    tl.store(sums + slot * D + d, dt_sum, mask=inside)


@triton.jit(do_not_specialize=["segments"])
def carry_segments(
    ends,
    sums,
    start,
    A,
    K,
    D,
    segments,
    N: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Convert what every segment adds into its initial state, in place.

    `start` (B, K, N, D) is the initial state of the first segment, or in REVERSE of the last; None
    for zero.
    """
    NP: tl.constexpr = triton.next_power_of_2(N)
    blocks = tl.cdiv(D, BLOCK)
    bk = (tl.program_id(0) // blocks).to(tl.int64)
    d = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, NP)
    cells = n[:, None] * D + d[None, :]
    real = (n < N)[:, None] & (d < D)[None, :]
    decay = tl.load(A + bk % K * N * D + cells, mask=real, other=0.0)
    h = tl.zeros((NP, BLOCK), tl.float32)
    if start is not None:
        h = tl.load(start + bk * N * D + cells, mask=real, other=0.0)
    for i in range(segments):
        slot = bk * segments + (segments - 1 - i if REVERSE else i)
        added = tl.load(ends + slot * N * D + cells, mask=real, other=0.0)
        tl.store(ends + slot * N * D + cells, h, mask=real)
        dt_sum = tl.load(sums + slot * D + d, mask=d < D, other=0.0)
        h = tl.exp2(decay * dt_sum[None, :]) * h + added
