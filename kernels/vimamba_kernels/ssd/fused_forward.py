"""Triton kernels of Mamba-2's forward pass; fused.py launches them.

`ssd_outputs` goes through the chunks of a block of heads with their states in registers. For paths
in segments, `walk_states` finds what every segment adds to the state, and `carry_segments` the
initial state of each. The outputs are in the order of the steps; `gather_rows` moves them to the
tokens. fused_steps.py holds the shared functions.
"""

# Names in a kernel are Triton tensors, which have no types, and tuples have a fixed length.
# ruff: noqa: ANN001, ANN201, ANN202, RUF005
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

import triton
import triton.language as tl

from vimamba_kernels.gpu_kernels import silu, tokens_at
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
def _locate(H, K, segments, P: tl.constexpr, HEADS: tl.constexpr, PB: tl.constexpr):
    """Indices of a program: batch element, path, segment, first head and first channel in it."""
    PARTS: tl.constexpr = (P + PB - 1) // PB
    blocks = H // HEADS * PARTS
    block = tl.program_id(0) % blocks
    rest = tl.program_id(0) // blocks
    b = (rest // segments // K).to(tl.int64)
    return b, rest // segments % K, rest % segments, block // PARTS * HEADS, block % PARTS * PB


@triton.jit
def _start(
    starts,
    slot,
    head,
    cells,
    real,
    N: tl.constexpr,
    P: tl.constexpr,
    HEADS: tl.constexpr,
):
    """The states of a block of heads before the first step; zero without `starts`."""
    states = ()
    for r in tl.static_range(HEADS):
        h = tl.zeros(cells.shape, tl.float32)
        if starts is not None:
            h = tl.load(starts + (slot + head + r) * N * P + cells, mask=real, other=0.0)
        states = states + (h,)
    return states


@triton.jit(do_not_specialize=["L", "T", "chunks", "segments", "segment_chunks"])
def walk_states(
    value,
    weight,
    paths,
    step_sizes,
    wholes,
    parts,
    starts,
    states,
    ends,
    lefts,
    K,
    L,
    T,
    H,
    per_group,
    chunks,
    segments,
    segment_chunks,
    P: tl.constexpr,
    N: tl.constexpr,
    SHARED: tl.constexpr,
    SHARED_PATHS: tl.constexpr,
    REVERSE: tl.constexpr,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    HEADS: tl.constexpr,
    Q: tl.constexpr,
    PB: tl.constexpr,
    NB: tl.constexpr,
):
    """The states before the chunks, or in REVERSE the gradients of the states after them.

    `value` and `weight` are x and B, or the ungated output's gradient and C. The states are written
    to `states` (B, K, chunks, H, N, P) if given, the state at the end of each segment (its first
    step in REVERSE) to `ends` (B, K, segments, H, N, P), and its decay to `lefts` (B, K, segments,
    H).
    """
    b, k, segment, head, p_first = _locate(H, K, segments, P, HEADS, PB)
    bk = b * K + k
    p, real_p = columns(p_first, P, PB)
    n, real_n = columns(0, N, NB)
    cells, real = cells_of(n, real_n, p, real_p, P)
    groups = H // per_group
    first = segment * segment_chunks
    last = tl.minimum(first + segment_chunks, chunks)
    path = None if paths is None else paths + (k if SHARED_PATHS else bk) * T
    values = value + (b if SHARED else bk) * L * H * P + head * P
    weights = weight + bk * L * groups * N + head // per_group * N
    slot = (bk * segments + segment) * H
    hs = _start(starts, slot, head, cells, real, N, P, HEADS)
    decays = ()
    for _r in tl.static_range(HEADS):
        decays = decays + (1.0,)
    for i in range(first, last):
        chunk = first + last - 1 - i if REVERSE else i
        t = chunk * Q + tl.arange(0, Q)
        token = tokens_at(path, t, T)
        w = load_rows(weights, token, groups * N, n, real_n)
        new_hs, new_decays = (), ()
        for r in tl.static_range(HEADS):
            place = ((bk * chunks + chunk) * H + head + r) * N * P
            if states is not None:
                tl.store(states + place + cells, hs[r], mask=real)
            steps = (bk * H + head + r) * (chunks * Q) + chunk * Q
            size, whole, part, left, decay = load_steps(step_sizes, wholes, parts, steps, Q)
            v = load_rows(values + r * P, token, H * P, p, real_p).to(tl.float32)
            if REVERSE:
                v *= tl.exp2(whole + part)[:, None]
            else:
                v *= (size * left)[:, None]
            h = hs[r] * decay
            new_hs = new_hs + (product(tl.trans(w), v, h, HALF, PRECISION),)
            new_decays = new_decays + (decays[r] * decay,)
        hs, decays = new_hs, new_decays
    for r in tl.static_range(HEADS):
        if ends is not None:
            tl.store(ends + (slot + head + r) * N * P + cells, hs[r], mask=real)
        if lefts is not None:
            # once for all channels of a head
            tl.store(lefts + slot + head + r, decays[r], mask=p_first == 0)


@triton.jit(do_not_specialize=["segments"])
def carry_segments(
    ends,
    lefts,
    start,
    H,
    segments,
    N: tl.constexpr,
    P: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Convert the states at the segments' ends into their initial states, in place.

    `start` (B, K, 1, H, N, P) is the state before the first segment, or None.
    """
    blocks = tl.cdiv(N * P, BLOCK)
    cell = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    real = cell < N * P
    bk = (tl.program_id(0) // blocks // H).to(tl.int64)
    head = tl.program_id(0) // blocks % H
    h = tl.zeros((BLOCK,), tl.float32)
    if start is not None:
        h = tl.load(start + (bk * H + head) * N * P + cell, mask=real, other=0.0)
    for i in range(segments):
        slot = (bk * segments + (segments - 1 - i if REVERSE else i)) * H + head
        added = tl.load(ends + slot * N * P + cell, mask=real, other=0.0)
        tl.store(ends + slot * N * P + cell, h, mask=real)
        h = h * tl.load(lefts + slot) + added


@triton.jit(do_not_specialize=["L", "T", "chunks", "segments", "segment_chunks"])
def ssd_outputs(
    x,
    B,
    C,
    skip,
    paths,
    step_sizes,
    wholes,
    parts,
    starts,
    y,
    final,
    K,
    L,
    T,
    H,
    per_group,
    chunks,
    segments,
    segment_chunks,
    P: tl.constexpr,
    N: tl.constexpr,
    SHARED: tl.constexpr,
    SHARED_PATHS: tl.constexpr,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    HEADS: tl.constexpr,
    Q: tl.constexpr,
    PB: tl.constexpr,
    NB: tl.constexpr,
):
    """Outputs by step, ungated, in `y` (B, K, T, H, P), and the last state in `final` if given.

    `skip` is (K, H, P), `final` (B, K, H, N, P).
    """
    b, k, segment, head, p_first = _locate(H, K, segments, P, HEADS, PB)
    bk = b * K + k
    p, real_p = columns(p_first, P, PB)
    n, real_n = columns(0, N, NB)
    cells, real = cells_of(n, real_n, p, real_p, P)
    groups = H // per_group
    first = segment * segment_chunks
    last = tl.minimum(first + segment_chunks, chunks)
    path = None if paths is None else paths + (k if SHARED_PATHS else bk) * T
    xs = x + (b if SHARED else bk) * L * H * P + head * P
    weights = bk * L * groups * N + head // per_group * N
    rows = y + bk * T * H * P + head * P
    hs = _start(starts, (bk * segments + segment) * H, head, cells, real, N, P, HEADS)
    for chunk in range(first, last):
        t = chunk * Q + tl.arange(0, Q)
        token = tokens_at(path, t, T)
        Bs = load_rows(B + weights, token, groups * N, n, real_n)
        Cs = load_rows(C + weights, token, groups * N, n, real_n)
        scores = lower(product(Cs, tl.trans(Bs), None, HALF, PRECISION), Q)
        step = tl.where(t < T, t, -1)
        new_hs = ()
        for r in tl.static_range(HEADS):
            steps = (bk * H + head + r) * (chunks * Q) + chunk * Q
            size, whole, part, left, decay = load_steps(step_sizes, wholes, parts, steps, Q)
            row = load_rows(xs + r * P, token, H * P, p, real_p).to(tl.float32)
            write = row * size[:, None]
            value = product(Cs, hs[r], None, HALF, PRECISION) * tl.exp2(whole + part)[:, None]
            weighted = scores * whole_decays(whole)
            write_down = write * tl.exp2(-part)[:, None]
            inner = product(weighted, write_down, None, HALF, PRECISION)
            value += inner * tl.exp2(part)[:, None]
            if skip is not None:
                value += tl.load(skip + (k * H + head + r) * P + p, mask=real_p, other=0.0) * row
            store_rows(rows + r * P, step, H * P, p, real_p, value)
            write *= left[:, None]
            h = hs[r] * decay
            new_hs = new_hs + (product(tl.trans(Bs), write, h, HALF, PRECISION),)
        hs = new_hs
    if final is not None:  # noqa: SIM102
        # Triton before 3.4 compiles both sides of an `and`
        if last == chunks:
            for r in tl.static_range(HEADS):
                tl.store(final + (bk * H + head + r) * N * P + cells, hs[r], mask=real)


@triton.jit(do_not_specialize=["L", "T"])
def gather_rows(
    rows,
    inverse,
    z,
    out,
    K,
    L,
    T,
    D,
    MERGE: tl.constexpr,
    SHARED_PATHS: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gather rows by step (B, K, T, D) at their tokens, times silu(z) if given.

    `out` is (B, L, D), the sum over the paths, or without MERGE (B, K, L, D).
    """
    blocks = tl.cdiv(D, BLOCK)
    d = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = tl.full((BLOCK,), 1, tl.int32) > 0 if EVEN else d < D
    rest = tl.program_id(0) // blocks
    tiles = tl.cdiv(L, ROWS)
    token = rest % tiles * ROWS + tl.arange(0, ROWS)
    # the first path, and the number of paths to sum
    first = rest // tiles * K if MERGE else rest // tiles
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for i in range(K if MERGE else 1):
        bk = (first + i).to(tl.int64)
        row = bk % K if SHARED_PATHS else bk
        step = tokens_at(None if inverse is None else inverse + row * L, token, L)
        total += load_rows(rows + bk * T * D, step, D, d, inside).to(tl.float32)
    token = tl.where(token < L, token, -1)
    if z is not None:
        gates = z + (first // K).to(tl.int64) * L * D
        total *= silu(load_rows(gates, token, D, d, inside))
    place = (rest // tiles).to(tl.int64) * L * D
    store_rows(out + place, token, D, d, inside, total)
