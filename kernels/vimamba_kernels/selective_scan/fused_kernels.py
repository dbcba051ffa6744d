"""Triton kernels of the selective scan; fused.py chooses their sizes and launches them.

A program owns one batch element and one block of channels. It walks its steps through the path
table and reads and writes rows of channels at the tokens' own places. The rows of several steps
are loaded ahead of the arithmetic, because a store in between would hold later loads back.

B and C of a step are shared by the block. Their gradients are summed over it inside the program
and leave it as one partial sum for each block.

Sizes: B batch, K paths, L tokens, T steps, D channels, N states. A group of `width` neighbouring
channels shares B and C. `token` is -1 for a zero token and for steps past the end.
"""

# In a kernel names stand for Triton's tensors, which have no types, and tuples are of fixed length.
# ruff: noqa: ANN001, ANN201, ANN202, RUF005
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _softplus(x):
    """log(1 + exp(x)); in float32 this equals x above 20."""
    e = tl.exp2(-tl.abs(x) * LOG2E)
    # log(1 + e) / e on [0, 1], fitted at Chebyshev nodes; relative error 3.2e-7 in float32
    p = -0.00833649754 * e + 0.0433708499
    p = p * e - 0.106677904
    p = p * e + 0.176754933
    p = p * e - 0.244704696
    p = p * e + 0.332711867
    p = p * e - 0.499971261
    p = p * e + 0.999999775
    return tl.maximum(x, 0.0) + e * p


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(-x * LOG2E))


@triton.jit
def _place(D, width, segments, path_programs, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    """What this program owns: batch element, first path, segment, block and channels."""
    per_group = tl.cdiv(width, BLOCK)
    blocks = D // width * per_group
    program = tl.program_id(0)
    block = program % blocks
    segment = program // blocks % segments
    rest = program // blocks // segments
    within = block % per_group * BLOCK + tl.arange(0, BLOCK)
    # a constant mask disappears
    inside = tl.full((BLOCK,), 1, tl.int32) > 0 if EVEN else within < width
    channels = block // per_group * width + within
    b = (rest // path_programs).to(tl.int64)
    return b, rest % path_programs, segment, block, blocks, block // per_group, channels, inside


@triton.jit
def _token(paths, t, last, TAIL: tl.constexpr):
    """The token of step t."""
    token = t
    if paths is not None:
        token = tl.load(paths + t, mask=t < last, other=-1) if TAIL else tl.load(paths + t)
        token = token.to(tl.int32)
    elif TAIL:
        token = tl.where(t < last, t, -1)
    return token


@triton.jit
def _where(mask, value):
    """`mask` where the number `value` is not negative; the interpreter cannot mask by a scalar."""
    return mask & (tl.full(mask.shape, value, tl.int32) >= 0)


@triton.jit
def _row(pointers, token, D, inside, SKIPS: tl.constexpr):
    """A row of channels, zeros for no token."""
    mask = _where(inside, token) if SKIPS else inside
    return tl.load(pointers + token * D, mask=mask, other=0.0)


@triton.jit
def _weights(pointer, token, n, N: tl.constexpr, SKIPS: tl.constexpr):
    """B or C of one token, zeros for no token."""
    mask = _where(n < N, token) if SKIPS else n < N
    return tl.load(pointer + token * N + n, mask=mask, other=0.0)


@triton.jit
def _parameter(pointer, place, inside):
    """A row of an optional parameter in float32."""
    row = 0.0
    if pointer is not None:
        row = tl.load(pointer + place, mask=inside, other=0.0).to(tl.float32)
    return row


@triton.jit
def _old(total, place, inside, k, SKIPS: tl.constexpr, token, COMPLETE: tl.constexpr):
    """What earlier paths have added up at a row."""
    mask = _where(inside, k - 1) if COMPLETE else inside
    if SKIPS:
        mask = _where(mask, token)
    return tl.load(total + place, mask=mask, other=0.0)


@triton.jit
def _emit(value, old, gate, place, mask, k, K, total, ungated, out, MERGE: tl.constexpr):
    """Put a row of one path where MERGE says."""
    if MERGE == "atomic":
        tl.atomic_add(total + place, value, mask=mask, sem="relaxed")
    else:
        if MERGE == "own":
            value += old
            tl.store(total + place, value, mask=mask if out is None else _where(mask, K - 2 - k))
            mask = _where(mask, k - (K - 1))
        if out is not None:
            if ungated is not None:
                tl.store(ungated + place, value, mask=mask)
            if gate is not None:
                value *= gate.to(tl.float32) * _sigmoid(gate.to(tl.float32))
            tl.store(out + place, value, mask=mask)


@triton.jit(do_not_specialize=["path_first"])
def scan_forward(
    u,
    delta,
    A,
    B,
    C,
    skip,
    bias,
    z,
    paths,
    total,
    ungated,
    out,
    states,
    starts,
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
    SOFTPLUS: tl.constexpr,
    SHARED_U: tl.constexpr,
    COMPLETE: tl.constexpr,
    TAIL: tl.constexpr,
    EVEN: tl.constexpr,
    MERGE: tl.constexpr,
    SPACING: tl.constexpr,
    BLOCK: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Outputs, or the states at every SPACING-th step, or both, whichever pointers are given.

    MERGE "rows": every path has rows of its own in `out`. "own": paths add up in `total` one after
    the other, within a program or in several launches, and the last one writes `out` if given.
    "atomic": paths add up in `total` in any order. `A` is (K, N, D) and holds A * log2(e).
    """
    SKIPS: tl.constexpr = TAIL or not COMPLETE
    EMIT: tl.constexpr = out is not None or total is not None
    NP: tl.constexpr = triton.next_power_of_2(N)
    b, k_program, segment, _, _, group, d, inside = _place(
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
        delta_rows = delta + bk * L * D + d
        weights = (bk * (D // width) + group) * L * N
        row = (bk if MERGE == "rows" else b) * L * D + d
        path = None if paths is None else paths + k * T
        decay = tl.load(A + k * N * D + cells, mask=real, other=0.0)
        bias_row = _parameter(bias, k * D + d, inside)
        skip_row = _parameter(skip, k * D + d, inside)
        h = tl.zeros((NP, BLOCK), tl.float32)
        if starts is not None:
            slot = bk * segments + segment
            h = tl.load(starts + slot * N * D + cells, mask=real, other=0.0)
        for t in range(first, last, UNROLL):
            tokens, us, deltas, Bs, Cs, olds, gates = (), (), (), (), (), (), ()
            for j in tl.static_range(UNROLL):
                token = _token(path, t + j, last, TAIL)
                tokens = tokens + (token,)
                us = us + (_row(u_rows, token, D, inside, SKIPS),)
                deltas = deltas + (_row(delta_rows, token, D, inside, SKIPS),)
                Bs = Bs + (_weights(B + weights, token, n, N, SKIPS),)
                if EMIT:
                    Cs = Cs + (_weights(C + weights, token, n, N, SKIPS),)
                if EMIT and MERGE == "own":
                    place = row + token * D
                    olds = olds + (_old(total, place, inside, k, SKIPS, token, out is not None),)
                if z is not None:
                    final = _where(inside, k - (K - 1)) if MERGE == "own" else inside
                    gates = gates + (_row(z + b * L * D + d, token, D, final, SKIPS),)
            for j in tl.static_range(UNROLL):
                if states is not None and j % SPACING == 0:
                    slot = bk * tl.cdiv(T, SPACING) + (t + j) // SPACING
                    # of SPACING and UNROLL one divides the other
                    if SPACING <= UNROLL:
                        mask = _where(real, last - 1 - t - j) if TAIL else real
                        tl.store(states + slot * N * D + cells, h, mask=mask)
                    elif t % SPACING == 0:
                        tl.store(states + slot * N * D + cells, h, mask=real)
                dt = deltas[j].to(tl.float32) + bias_row
                if SOFTPLUS:
                    dt = _softplus(dt)
                x = us[j].to(tl.float32)
                write = Bs[j].to(tl.float32)[:, None] * (dt * x)[None, :]
                h = tl.exp2(decay * dt[None, :]) * h + write
                if EMIT:
                    value = tl.sum(h * Cs[j].to(tl.float32)[:, None], axis=0) + skip_row * x
                    mask = _where(inside, tokens[j]) if SKIPS else inside
                    old = olds[j] if MERGE == "own" else None
                    gate = None if z is None else gates[j]
                    place = row + tokens[j] * D
                    _emit(value, old, gate, place, mask, k, K, total, ungated, out, MERGE)
        if EMIT and MERGE == "own":
            # the next path meets rows that other threads may have written
            tl.debug_barrier()


@triton.jit(do_not_specialize=["path_first"])
def scan_backward(
    grad,
    u,
    delta,
    A,
    B,
    C,
    skip,
    bias,
    z,
    paths,
    states,
    carry,
    total,
    du,
    ddelta,
    dA,
    dB,
    dC,
    dskip,
    dbias,
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
    SOFTPLUS: tl.constexpr,
    SHARED_U: tl.constexpr,
    SHARED_GRAD: tl.constexpr,
    COMPLETE: tl.constexpr,
    TAIL: tl.constexpr,
    EVEN: tl.constexpr,
    MERGE: tl.constexpr,
    BLOCK: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """All gradients, walking every path back by UNROLL steps; `states` holds their first states.

    `carry` (B, K, segments, N, D) holds the gradient that enters a segment from behind, and is
    overwritten; `dA`, alike, must be zero. Both are written by one program only, as are the partial
    sums `dB` and `dC` (B, K, blocks, T up to a multiple of UNROLL, N), by steps, and `dskip` and
    `dbias` (B, K, segments, D). MERGE is about `du` and means what it means for the output.
    """
    SKIPS: tl.constexpr = TAIL or not COMPLETE
    b, k_program, segment, block, blocks, group, d, inside = _place(
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
        delta_row = bk * L * D + d
        weights = (bk * (D // width) + group) * L * N
        row = (bk if MERGE == "rows" else b) * L * D + d
        path = None if paths is None else paths + k * T
        own = (bk * segments + segment) * N * D + d
        bias_row = _parameter(bias, k * D + d, inside)
        skip_row = _parameter(skip, k * D + d, inside)
        skip_sum = tl.zeros((BLOCK,), tl.float32)
        bias_sum = tl.zeros((BLOCK,), tl.float32)
        for reverse in range(groups):
            t = first + (groups - 1 - reverse) * UNROLL
            slot = (bk * tl.cdiv(T, UNROLL) + t // UNROLL) * N * D + d
            partial = ((bk * blocks + block) * tl.cdiv(T, UNROLL) * UNROLL + t) * N
            tokens, us, deltas, grads, gates, olds = (), (), (), (), (), ()
            for j in tl.static_range(UNROLL):
                token = _token(path, t + j, last, TAIL)
                tokens = tokens + (token,)
                us = us + (_row(u_rows, token, D, inside, SKIPS),)
                deltas = deltas + (_row(delta + delta_row, token, D, inside, SKIPS),)
                grads = grads + (_row(grad_rows, token, D, inside, SKIPS),)
                if z is not None:
                    gates = gates + (_row(z + b * L * D + d, token, D, inside, SKIPS),)
                if MERGE == "own":
                    place = row + token * D
                    olds = olds + (_old(total, place, inside, k, SKIPS, token, du is not None),)
            dts, writes, gys, dwrites, ddts = (), (), (), (), ()
            for j in tl.static_range(UNROLL):
                dt = deltas[j].to(tl.float32) + bias_row
                if SOFTPLUS:
                    dt = _softplus(dt)
                gy = grads[j].to(tl.float32)
                if z is not None:
                    gate = gates[j].to(tl.float32)
                    gy *= gate * _sigmoid(gate)
                dts = dts + (dt,)
                writes = writes + (dt * us[j].to(tl.float32),)
                gys = gys + (gy,)
                dwrites = dwrites + (tl.zeros((BLOCK,), tl.float32),)
                ddts = ddts + (tl.zeros((BLOCK,), tl.float32),)
            for n in range(N):
                dwrites, ddts = _one_state(
                    A + k * N * D + n * D + d, states + slot + n * D, carry + own + n * D,
                    dA + own + n * D, B + weights + n, C + weights + n, dB + partial + n,
                    dC + partial + n, tokens, dts, writes, gys, dwrites, ddts, inside,
                    N, SKIPS, UNROLL,
                )  # fmt: skip
            for j in tl.static_range(UNROLL):
                x, gy = us[j].to(tl.float32), gys[j]
                ddt = dwrites[j] * x + ddts[j] * LN2
                if SOFTPLUS:
                    ddt *= _sigmoid(deltas[j].to(tl.float32) + bias_row)
                mask = _where(inside, tokens[j]) if SKIPS else inside
                tl.store(ddelta + delta_row + tokens[j] * D, ddt, mask=mask)
                value = dwrites[j] * dts[j] + skip_row * gy
                old = olds[j] if MERGE == "own" else None
                _emit(value, old, None, row + tokens[j] * D, mask, k, K, total, None, du, MERGE)
                skip_sum += gy * x
                bias_sum += ddt
            # `carry` and `dA` are read again by the next group
            tl.debug_barrier()
        if dskip is not None:
            tl.store(dskip + (bk * segments + segment) * D + d, skip_sum, mask=inside)
        if dbias is not None:
            tl.store(dbias + (bk * segments + segment) * D + d, bias_sum, mask=inside)


@triton.jit
def _one_state(
    A,
    states,
    carry,
    dA,
    B,
    C,
    dB,
    dC,
    tokens,
    dts,
    writes,
    gys,
    dwrites,
    ddts,
    inside,
    N: tl.constexpr,
    SKIPS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """One of the N states through a group of steps, there and back; pointers are that state's.

    Returns the gradients of dt * u and of dt * log2(e), with this state's share added.
    """
    decay = tl.load(A, mask=inside, other=0.0)
    h = tl.load(states, mask=inside, other=0.0)
    g = tl.load(carry, mask=inside, other=0.0)
    a_sum = tl.load(dA, mask=inside, other=0.0)
    Bs, Cs = (), ()
    for j in tl.static_range(UNROLL):
        if SKIPS:
            Bs = Bs + (tl.load(B + tokens[j] * N, mask=tokens[j] >= 0, other=0.0).to(tl.float32),)
            Cs = Cs + (tl.load(C + tokens[j] * N, mask=tokens[j] >= 0, other=0.0).to(tl.float32),)
        else:
            Bs = Bs + (tl.load(B + tokens[j] * N).to(tl.float32),)
            Cs = Cs + (tl.load(C + tokens[j] * N).to(tl.float32),)
    decays, kepts = (), ()
    for j in tl.static_range(UNROLL):
        a = tl.exp2(decay * dts[j])
        kept = a * h
        h = kept + writes[j] * Bs[j]
        decays = decays + (a,)
        kepts = kepts + (kept,)
        tl.store(dC + j * N, tl.sum(h * gys[j]))
    new_dwrites, new_ddts = (), ()
    for j in tl.static_range(UNROLL - 1, -1, -1):
        g += gys[j] * Cs[j]
        q = g * kepts[j]
        a_sum += dts[j] * q
        new_dwrites = (dwrites[j] + g * Bs[j],) + new_dwrites
        new_ddts = (ddts[j] + decay * q,) + new_ddts
        tl.store(dB + j * N, tl.sum(g * writes[j]))
        g *= decays[j]
    tl.store(carry, g, mask=inside)
    tl.store(dA, a_sum, mask=inside)
    return new_dwrites, new_ddts


@triton.jit
def sum_weights(
    dB_blocks,
    dC_blocks,
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
    ROWS: tl.constexpr,
):
    """Add the partial sums that scan_backward left, and put them at the tokens' own places."""
    NP: tl.constexpr = triton.next_power_of_2(N)
    chunks = tl.cdiv(T, ROWS)
    # a batch element, a path and a group
    owner = (tl.program_id(0) // chunks).to(tl.int64)
    t = tl.program_id(0) % chunks * ROWS + tl.arange(0, ROWS)
    n = tl.arange(0, NP)
    mask = (t < T)[:, None] & (n < N)[None, :]
    place = owner * per_group * T_padded * N + (t * N)[:, None] + n[None, :]
    b_sum = tl.zeros((ROWS, NP), tl.float32)
    c_sum = tl.zeros((ROWS, NP), tl.float32)
    for _ in range(per_group):
        b_sum += tl.load(dB_blocks + place, mask=mask, other=0.0)
        c_sum += tl.load(dC_blocks + place, mask=mask, other=0.0)
        place += T_padded * N
    token = t
    if paths is not None:
        k = owner // groups % K
        token = tl.load(paths + k * T + t, mask=t < T, other=-1).to(tl.int32)
        mask = mask & (token >= 0)[:, None]
    place = owner * L * N + (token * N)[:, None] + n[None, :]
    tl.store(dB + place, b_sum, mask=mask)
    tl.store(dC + place, c_sum, mask=mask)


@triton.jit
def scan_summary(
    value,
    delta,
    A,
    weight,
    bias,
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
    SOFTPLUS: tl.constexpr,
    SHARED: tl.constexpr,
    COMPLETE: tl.constexpr,
    TAIL: tl.constexpr,
    EVEN: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """What each segment does to a state: what it adds (`ends`), and the sum of dt, its decay.

    Forward, `value` and `weight` are u and B. With REVERSE they are the output's gradient and C,
    and the state's gradient is walked from the last step to the first.
    """
    SKIPS: tl.constexpr = TAIL or not COMPLETE
    NP: tl.constexpr = triton.next_power_of_2(N)
    b, k, segment, _, _, group, d, inside = _place(D, width, segments, K, BLOCK, EVEN)
    bk = b * K + k
    n = tl.arange(0, NP)
    cells = n[:, None] * D + d[None, :]
    real = (n < N)[:, None] & inside[None, :]
    first = segment * segment_steps
    last = tl.minimum(first + segment_steps, T)
    values = value + (b if SHARED else bk) * L * D + d
    delta_rows = delta + bk * L * D + d
    weights = weight + (bk * (D // width) + group) * L * N
    path = None if paths is None else paths + k * T
    decay = tl.load(A + k * N * D + cells, mask=real, other=0.0)
    bias_row = _parameter(bias, k * D + d, inside)
    h = tl.zeros((NP, BLOCK), tl.float32)
    dt_sum = tl.zeros((BLOCK,), tl.float32)
    for i in range(tl.cdiv(last - first, UNROLL)):
        t = first + i * UNROLL
        if REVERSE:
            t = first + (tl.cdiv(last - first, UNROLL) - 1 - i) * UNROLL
        xs, deltas, rows, gates = (), (), (), ()
        for j in tl.static_range(UNROLL):
            # in the order of the walk
            step = t + (UNROLL - 1 - j if REVERSE else j)
            token = _token(path, step, last, TAIL)
            xs = xs + (_row(values, token, D, inside, SKIPS),)
            deltas = deltas + (_row(delta_rows, token, D, inside, SKIPS),)
            rows = rows + (_weights(weights, token, n, N, SKIPS),)
            if z is not None:
                gates = gates + (_row(z + b * L * D + d, token, D, inside, SKIPS),)
        for j in tl.static_range(UNROLL):
            dt = deltas[j].to(tl.float32) + bias_row
            if SOFTPLUS:
                dt = _softplus(dt)
            x = xs[j].to(tl.float32)
            if z is not None:
                gate = gates[j].to(tl.float32)
                x *= gate * _sigmoid(gate)
            if not REVERSE:
                x *= dt
            a = tl.exp2(decay * dt[None, :])
            new = rows[j].to(tl.float32)[:, None] * x[None, :]
            h = (h + new) * a if REVERSE else h * a + new
            dt_sum += dt
    slot = bk * segments + segment
    tl.store(ends + slot * N * D + cells, h, mask=real)
    tl.store(sums + slot * D + d, dt_sum, mask=inside)


@triton.jit
def carry_segments(
    ends,
    sums,
    A,
    K,
    D,
    segments,
    N: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Turn what every segment adds into the state that enters it, in place."""
    NP: tl.constexpr = triton.next_power_of_2(N)
    blocks = tl.cdiv(D, BLOCK)
    bk = (tl.program_id(0) // blocks).to(tl.int64)
    d = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, NP)
    cells = n[:, None] * D + d[None, :]
    real = (n < N)[:, None] & (d < D)[None, :]
    decay = tl.load(A + bk % K * N * D + cells, mask=real, other=0.0)
    h = tl.zeros((NP, BLOCK), tl.float32)
    for i in range(segments):
        slot = bk * segments + (segments - 1 - i if REVERSE else i)
        added = tl.load(ends + slot * N * D + cells, mask=real, other=0.0)
        tl.store(ends + slot * N * D + cells, h, mask=real)
        dt_sum = tl.load(sums + slot * D + d, mask=d < D, other=0.0)
        h = tl.exp2(decay * dt_sum[None, :]) * h + added
