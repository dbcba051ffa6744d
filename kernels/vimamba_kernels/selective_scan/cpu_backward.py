"""Numba kernels of the selective scan's backward pass; cpu.py drives them.

From the last chunk of a path to the first, the states of the chunk are recomputed from the saved
state, then the chunk is traversed backward. Tasks, arguments and the two cases are those of
cpu_forward.py, and

    inputs     followed by the saved states and the gradients of y and of the last state
    gradients  u and delta, at token positions; A, D and bias by batch element; B and C by block;
               the first state (empty: not requested)
    scratch    first the states of a chunk's steps, twice, so that the states before and after a
               step provably do not overlap: the check runs once per loop instead of preventing
               vectorization; then rows of a chunk's steps
"""

from typing import Any

from numba import boolean, int32, types, uint64

from vimamba_kernels.cpu_math import (
    FOUR,
    LN2,
    LOG2E,
    ONE,
    ROW,
    THREE,
    TWO,
    ZERO,
    F,
    U,
    ahead,
    arguments,
    behind,
    clear,
    copy,
    exp2,
    fetch,
    helper,
    kernel,
    own,
    place,
    share,
    sigmoid,
    softplus,
    use_wide_vectors,
)
from vimamba_kernels.selective_scan.cpu_forward import FLOATS, STRIDES, places
from vimamba_kernels.selective_scan.cpu_steps import fetch_steps, load_steps, load_weights

ARGUMENTS = types.Tuple(
    (
        types.UniTuple(FLOATS, 11),
        int32[::1],
        types.UniTuple(FLOATS, 8),
        types.UniTuple(FLOATS, 6),
        types.UniTuple(uint64, 10),
        STRIDES,
        types.UniTuple(boolean, 2),
    )
)

# rows of a task
GW, GDT, DY, BIAS, SKIP, DD, DBIAS = (
    ZERO,
    ROW,
    TWO * ROW,
    THREE * ROW,
    FOUR * ROW,
    U(5) * ROW,
    U(6) * ROW,
)
BC = U(7) * ROW
# for one state
DECAY, G, DA, STEP = ZERO, ROW, TWO * ROW, U(7) * ROW
# rows of a step with one state: state before it, its state, decay, u, dt, slope and dy
SLOT = U(6) * ROW
OWN, STEP_A, STEP_U, STEP_DT, STEP_SLOPE, STEP_DY = (
    SLOT,
    U(7) * ROW,
    U(8) * ROW,
    U(9) * ROW,
    U(10) * ROW,
    U(11) * ROW,
)


@helper
def _clear_gradients(
    gradients: Any, sizes: Any, strides: Any, at: Any, k: Any, w: Any, visits_all: Any
) -> None:
    """Zero what paths accumulate into, and what a path may never write because it skips tokens."""
    L, channels, N = sizes[2], sizes[4], sizes[6]
    uk, dk, part = at
    if k == ZERO or strides[0][1] > ZERO:
        clear(gradients[0], uk, L, channels, w)
    if not visits_all:
        clear(gradients[1], dk, L, channels, w)
        clear(gradients[3], part, ONE, ZERO, L * N)
        clear(gradients[4], part, ONE, ZERO, L * N)


@helper
def _recompute_fours(
    inputs: Any,
    paths: Any,
    scratch: Any,
    sizes: Any,
    strides: Any,
    at: Any,
    path: Any,
    count: Any,
    w: Any,
    enabled: Any,
) -> None:
    """Rows and states of `count` steps of a chunk."""
    use_wide_vectors()
    u, delta, B = inputs[0], inputs[1], inputs[3]
    channels, N, rank = sizes[4], sizes[6], sizes[9]
    (uk, dk, Bk, _, _), start = at
    delta_row, B_row = strides[1][2], strides[2][3]
    N4 = (N + THREE) // FOUR * FOUR
    S, Q, W, X, H, P = scratch
    for i in range(count):
        index = paths[path + i]
        token = U(index)
        later = ahead(paths, path + i)
        fetch(u, uk + later * channels, w)
        fetch_steps(delta, dk + later * delta_row, start, rank, w)
        x = i * THREE * ROW
        if index >= 0:
            u0 = uk + token * channels
            load_steps(delta, dk + token * delta_row, start, rank, W, S, BIAS, GDT, w)
            for d in range(w):
                v = S[GDT + d]
                X[x + d] = u[u0 + d]
                X[x + ROW + d] = softplus(v, enabled)
                X[x + TWO * ROW + d] = sigmoid(v, enabled)
            copy(B, Bk + token * B_row, S, BC, N)
        else:
            for d in range(w):
                X[x + d] = F(0.0)
                X[x + ROW + d] = softplus(S[BIAS + d], enabled)
                X[x + TWO * ROW + d] = sigmoid(S[BIAS + d], enabled)
            clear(S, BC, ONE, ZERO, N)
        for n in range(ZERO, N4, FOUR):
            b0, b1, b2, b3 = S[BC + n], S[BC + n + ONE], S[BC + n + TWO], S[BC + n + THREE]
            q = n * THREE * ROW
            p = (i * N4 + n) * TWO * ROW
            h = p + N4 * TWO * ROW
            for d in range(w):
                s = X[x + ROW + d]
                v = s * X[x + d]
                a0 = exp2(s * Q[q + d])
                a1 = exp2(s * Q[q + THREE * ROW + d])
                a2 = exp2(s * Q[q + U(6) * ROW + d])
                a3 = exp2(s * Q[q + U(9) * ROW + d])
                H[h + d] = a0 * P[p + d] + v * b0
                H[h + ROW + d] = a0
                H[h + TWO * ROW + d] = a1 * P[p + TWO * ROW + d] + v * b1
                H[h + THREE * ROW + d] = a1
                H[h + FOUR * ROW + d] = a2 * P[p + FOUR * ROW + d] + v * b2
                H[h + U(5) * ROW + d] = a2
                H[h + U(6) * ROW + d] = a3 * P[p + U(6) * ROW + d] + v * b3
                H[h + U(7) * ROW + d] = a3


@helper
def _walk_back_fours(
    inputs: Any,
    paths: Any,
    gradients: Any,
    scratch: Any,
    sizes: Any,
    strides: Any,
    at: Any,
    path: Any,
    count: Any,
    w: Any,
) -> None:
    """Gradients of `count` steps of a chunk whose rows and states are in scratch memory."""
    use_wide_vectors()
    B, C, dy = inputs[3], inputs[4], inputs[9]
    channels, N = sizes[4], sizes[6]
    (uk, _, Bk, Ck, yk), dk, part = at
    B_row, C_row = strides[2][3], strides[3][3]
    N4 = (N + THREE) // FOUR * FOUR
    SUMS = BC + TWO * N4
    S, Q, _, X, H, P = scratch
    for back in range(count):
        i = count - ONE - back
        index = paths[path + i]
        token = U(index)
        earlier = behind(paths, path + i) * channels
        fetch(dy, yk + earlier, w)
        fetch(gradients[0], uk + earlier, w)
        fetch(gradients[1], dk + earlier, w)
        x = i * THREE * ROW
        if index >= 0:
            copy(dy, yk + token * channels, S, DY, w)
            copy(B, Bk + token * B_row, S, BC, N)
            copy(C, Ck + token * C_row, S, BC + N4, N)
        else:
            clear(S, DY, ONE, ZERO, w)
            clear(S, BC, ONE, ZERO, TWO * N4)
        clear(S, GW, ONE, ZERO, TWO * ROW)
        # pairs, not fours: more sums would not fit in registers
        for n in range(ZERO, N4, TWO):
            b0, b1 = S[BC + n], S[BC + n + ONE]
            c0, c1 = S[BC + N4 + n], S[BC + N4 + n + ONE]
            q = n * THREE * ROW
            p = (i * N4 + n) * TWO * ROW
            h = p + N4 * TWO * ROW
            dB0, dB1, dC0, dC1 = F(0.0), F(0.0), F(0.0), F(0.0)
            for d in range(w):
                g = S[DY + d]
                s = X[x + ROW + d]
                v = s * X[x + d]
                g0 = Q[q + ROW + d] + g * c0
                g1 = Q[q + FOUR * ROW + d] + g * c1
                dC0 += g * H[h + d]
                dC1 += g * H[h + TWO * ROW + d]
                dB0 += g0 * v
                dB1 += g1 * v
                a0 = g0 * H[h + ROW + d]
                a1 = g1 * H[h + THREE * ROW + d]
                Q[q + ROW + d] = a0
                Q[q + FOUR * ROW + d] = a1
                e0 = a0 * P[p + d]
                e1 = a1 * P[p + TWO * ROW + d]
                Q[q + TWO * ROW + d] += e0 * s
                Q[q + U(5) * ROW + d] += e1 * s
                S[GW + d] += g0 * b0 + g1 * b1
                S[GDT + d] += e0 * Q[q + d] + e1 * Q[q + THREE * ROW + d]
            # not over B and C, whose padded states must stay zero
            S[SUMS + n], S[SUMS + n + ONE] = dB0, dB1
            S[SUMS + N4 + n], S[SUMS + N4 + n + ONE] = dC0, dC1
        if index >= 0:
            _finish_step(gradients, S, X, x, uk + token * channels, dk + token * channels, w)
            copy(S, SUMS, gradients[3], part + token * N, N)
            copy(S, SUMS + N4, gradients[4], part + token * N, N)
        else:
            for d in range(w):
                S[DBIAS + d] += S[GDT + d] * LN2 * X[x + TWO * ROW + d]


@helper
def _finish_step(gradients: Any, S: Any, X: Any, x: Any, u0: Any, d0: Any, w: Any) -> None:
    """Gradients of a step's u and delta, and its contributions to those of D and bias."""
    use_wide_vectors()
    du, ddelta = gradients[0], gradients[1]
    for d in range(w):
        g = S[DY + d]
        v = X[x + d]
        e = (S[GDT + d] * LN2 + S[GW + d] * v) * X[x + TWO * ROW + d]
        ddelta[d0 + d] = e
        S[DBIAS + d] += e
        S[DD + d] += g * v
        du[u0 + d] += S[GW + d] * X[x + ROW + d] + S[SKIP + d] * g


@kernel
def backward_fours(frame: Any) -> None:
    """Any number of states, padded to a multiple of four."""
    member, first, last = share(frame)
    inputs, paths, gradients, rows, sizes, strides, flags = arguments(frame, ARGUMENTS)
    enabled, visits_all = flags
    H, P, S = own(rows[0], member), own(rows[1], member), own(rows[2], member)
    Q, W, X = own(rows[3], member), own(rows[4], member), own(rows[5], member)
    scratch = S, Q, W, X, H, P
    A, D, bias, weights, states = inputs[2], inputs[5], inputs[6], inputs[7], inputs[8]
    dA, dD, dbias, dfirst = gradients[2], gradients[5], gradients[6], gradients[7]
    dlast = inputs[10]
    batch, K, L, T, channels, groups, N, _, chunk, rank = sizes
    of_paths = strides[6]
    N4 = (N + THREE) // FOUR * FOUR
    chunks = (T + chunk - ONE) // chunk
    # Q: A, the gradient of h and that of A for each state; H: h and the decay for each state
    for task in range(first, last):
        b, group, block, start, w = place(task, sizes)
        clear(S, BC, ONE, ZERO, TWO * N4)
        for k in range(K):
            bk = (b * K + k) * channels + start
            read_at = places(strides, b, k, group, start)
            dk = (b * K + k) * L * channels + start
            part = (((block * batch + b) * K + k) * groups + group) * L * N
            _clear_gradients(gradients, sizes, strides, (read_at[0], dk, part), k, w, visits_all)
            copy(bias, k * channels + start, S, BIAS, w)
            copy(D, k * channels + start, S, SKIP, w)
            load_weights(weights, k, channels, start, rank, W, w)
            clear(S, DD, ONE, ZERO, TWO * ROW)
            clear(Q, ZERO, THREE * N4, ROW, ROW)
            clear(H, ZERO, TWO * N4, ROW, ROW)
            for n in range(N):
                for d in range(w):
                    Q[n * THREE * ROW + d] = A[(k * channels + start + d) * N + n] * LOG2E
                if dlast.size > 0:
                    at = ((b * K + k) * N + n) * channels + start
                    copy(dlast, at, Q, (THREE * n + ONE) * ROW, w)
            for reverse in range(chunks):
                c = chunks - ONE - reverse
                count = min(chunk, T - c * chunk)
                path = b * of_paths[0] + k * of_paths[1] + c * chunk
                for n in range(N):
                    at = (((b * K + k) * chunks + c) * N + n) * channels + start
                    copy(states, at, H, TWO * n * ROW, w)
                _recompute_fours(
                    *(inputs, paths, scratch, sizes, strides, (read_at, start)),
                    *(path, count, w, enabled),
                )
                _walk_back_fours(
                    *(inputs, paths, gradients, scratch, sizes, strides, (read_at, dk, part)),
                    *(path, count, w),
                )
            copy(S, DD, dD, bk, w)
            copy(S, DBIAS, dbias, bk, w)
            for n in range(N):
                at = ((b * K + k) * N + n) * channels + start
                copy(Q, (THREE * n + TWO) * ROW, dA, at, w)
                if dfirst.size > 0:
                    copy(Q, (THREE * n + ONE) * ROW, dfirst, at, w)


@helper
def _recompute_one(
    inputs: Any,
    paths: Any,
    scratch: Any,
    sizes: Any,
    strides: Any,
    at: Any,
    path: Any,
    count: Any,
    w: Any,
    enabled: Any,
) -> None:
    """Rows of `count` steps of a chunk."""
    use_wide_vectors()
    u, delta, B, dy = inputs[0], inputs[1], inputs[3], inputs[9]
    channels, rank = sizes[4], sizes[9]
    (uk, dk, Bk, _, yk), start = at
    delta_row, B_row = strides[1][2], strides[2][3]
    S, W, X = scratch[0], scratch[2], scratch[3]
    for i in range(count):
        index = paths[path + i]
        later = ahead(paths, path + i)
        fetch(u, uk + later * channels, w)
        fetch_steps(delta, dk + later * delta_row, start, rank, w)
        fetch(dy, yk + later * channels, w)
        x = i * SLOT
        if index >= 0:
            token = U(index)
            u0 = uk + token * channels
            y0 = yk + token * channels
            b0 = B[Bk + token * B_row]
            load_steps(delta, dk + token * delta_row, start, rank, W, S, BIAS, STEP, w)
            for d in range(w):
                v = S[STEP + d]
                s = softplus(v, enabled)
                a = exp2(s * S[DECAY + d])
                X[x + OWN + d] = a * X[x + d] + s * u[u0 + d] * b0
                X[x + STEP_A + d] = a
                X[x + STEP_U + d] = u[u0 + d]
                X[x + STEP_DT + d] = s
                X[x + STEP_SLOPE + d] = sigmoid(v, enabled)
                X[x + STEP_DY + d] = dy[y0 + d]
        else:
            for d in range(w):
                s = softplus(S[BIAS + d], enabled)
                a = exp2(s * S[DECAY + d])
                X[x + OWN + d] = a * X[x + d]
                X[x + STEP_A + d] = a
                X[x + STEP_DT + d] = s
                X[x + STEP_SLOPE + d] = sigmoid(S[BIAS + d], enabled)


# a separate function: inlined, LLVM sees how `x` changes between steps and does not vectorize
@helper
def _step_back_one(
    S: Any, X: Any, x: Any, du: Any, u0: Any, ddelta: Any, d0: Any, b0: Any, c0: Any, w: Any
) -> Any:
    """Gradients of one step; returns those of its B and C."""
    use_wide_vectors()
    dB0, dC0 = F(0.0), F(0.0)
    for d in range(w):
        g, v, s = X[x + STEP_DY + d], X[x + STEP_U + d], X[x + STEP_DT + d]
        gh = S[G + d] + g * c0
        dC0 += g * X[x + OWN + d]
        dB0 += gh * s * v
        ga = gh * X[x + STEP_A + d]
        q = ga * X[x + d]
        e = (q * S[DECAY + d] * LN2 + gh * b0 * v) * X[x + STEP_SLOPE + d]
        S[G + d] = ga
        S[DA + d] += q * s
        S[DD + d] += g * v
        S[DBIAS + d] += e
        ddelta[d0 + d] = e
        du[u0 + d] += gh * b0 * s + S[SKIP + d] * g
    return dB0, dC0


@helper
def _walk_back_one(
    inputs: Any,
    paths: Any,
    gradients: Any,
    scratch: Any,
    sizes: Any,
    strides: Any,
    at: Any,
    path: Any,
    count: Any,
    w: Any,
) -> None:
    """Gradients of `count` steps of a chunk whose rows are in scratch memory."""
    use_wide_vectors()
    B, C = inputs[3], inputs[4]
    du, ddelta, dB, dC = gradients[0], gradients[1], gradients[3], gradients[4]
    channels = sizes[4]
    (uk, _, Bk, Ck, _), dk, part = at
    B_row, C_row = strides[2][3], strides[3][3]
    S, X = scratch[0], scratch[3]
    for back in range(count):
        i = count - ONE - back
        index = paths[path + i]
        earlier = behind(paths, path + i) * channels
        fetch(du, uk + earlier, w)
        fetch(ddelta, dk + earlier, w)
        x = i * SLOT
        if index >= 0:
            token = U(index)
            u0 = uk + token * channels
            d0 = dk + token * channels
            b0, c0 = B[Bk + token * B_row], C[Ck + token * C_row]
            dB0, dC0 = _step_back_one(S, X, x, du, u0, ddelta, d0, b0, c0, w)
            dB[part + token] = dB0
            dC[part + token] = dC0
        else:
            for d in range(w):
                ga = S[G + d] * X[x + STEP_A + d]
                q = ga * X[x + d]
                S[G + d] = ga
                S[DA + d] += q * X[x + STEP_DT + d]
                S[DBIAS + d] += q * S[DECAY + d] * LN2 * X[x + STEP_SLOPE + d]


@kernel
def backward_one(frame: Any) -> None:
    """One state."""
    member, first, last = share(frame)
    inputs, paths, gradients, rows, sizes, strides, flags = arguments(frame, ARGUMENTS)
    enabled, visits_all = flags
    H, P, S = own(rows[0], member), own(rows[1], member), own(rows[2], member)
    Q, W, X = own(rows[3], member), own(rows[4], member), own(rows[5], member)
    scratch = S, Q, W, X, H, P
    A, D, bias, weights, states = inputs[2], inputs[5], inputs[6], inputs[7], inputs[8]
    dA, dD, dbias, dfirst = gradients[2], gradients[5], gradients[6], gradients[7]
    dlast = inputs[10]
    batch, K, L, T, channels, groups, _, _, chunk, rank = sizes
    of_paths = strides[6]
    chunks = (T + chunk - ONE) // chunk
    for task in range(first, last):
        b, group, block, start, w = place(task, sizes)
        for k in range(K):
            bk = (b * K + k) * channels + start
            read_at = places(strides, b, k, group, start)
            dk = (b * K + k) * L * channels + start
            part = (((block * batch + b) * K + k) * groups + group) * L
            _clear_gradients(gradients, sizes, strides, (read_at[0], dk, part), k, w, visits_all)
            copy(bias, k * channels + start, S, BIAS, w)
            copy(D, k * channels + start, S, SKIP, w)
            load_weights(weights, k, channels, start, rank, W, w)
            clear(S, DD, ONE, ZERO, TWO * ROW)
            clear(S, G, ONE, ZERO, TWO * ROW)
            if dlast.size > 0:
                copy(dlast, bk, S, G, w)
            for d in range(w):
                S[DECAY + d] = A[k * channels + start + d] * LOG2E
            for reverse in range(chunks):
                c = chunks - ONE - reverse
                count = min(chunk, T - c * chunk)
                path = b * of_paths[0] + k * of_paths[1] + c * chunk
                copy(states, ((b * K + k) * chunks + c) * channels + start, X, ZERO, w)
                _recompute_one(
                    *(inputs, paths, scratch, sizes, strides, (read_at, start)),
                    *(path, count, w, enabled),
                )
                _walk_back_one(
                    *(inputs, paths, gradients, scratch, sizes, strides, (read_at, dk, part)),
                    *(path, count, w),
                )
            copy(S, DA, dA, bk, w)
            if dfirst.size > 0:
                copy(S, G, dfirst, bk, w)
            copy(S, DD, dD, bk, w)
            copy(S, DBIAS, dbias, bk, w)
