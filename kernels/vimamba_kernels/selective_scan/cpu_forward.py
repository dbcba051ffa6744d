"""Numba kernels of the selective scan's forward pass; cpu.py drives them.

Two are compiled, when first used: states in fours for any N (Vim's 16), and a single state
(VMamba), where three lanes of four would be wasted and a step fits into one loop.

A task owns `w` channels of one batch element and walks its paths one after the other, so the sum
over the paths needs no K-fold output and does not depend on threads. Arguments in the frame:

    inputs   u, delta, A, B, C, D, bias as the operator takes them, flat float32
    paths    (K, T) int32, or (1, T) with a path stride of 0
    outputs  y, states at every chunk's begin (empty: not wanted)
    scratch  for each thread rows of a step; tiles of the states
    sizes    B, K, L, T, D, G, N, channels of a task, steps of a chunk
    strides  of u: batch, path; of y: batch, path; of paths: path
    enabled  whether delta passes through softplus
"""

from typing import Any

from numba import boolean, float32, int32, types, uint64

from vimamba_kernels.cpu_math import (
    FOUR,
    LOG2E,
    ONE,
    ROW,
    THREE,
    TWO,
    ZERO,
    F,
    U,
    arguments,
    clear,
    copy,
    exp2,
    kernel,
    own,
    place,
    share,
    softplus,
    use_wide_vectors,
)

FLOATS = float32[::1]
ARGUMENTS = types.Tuple(
    (
        types.UniTuple(FLOATS, 7),
        int32[::1],
        types.UniTuple(FLOATS, 2),
        types.UniTuple(FLOATS, 2),
        types.UniTuple(uint64, 9),
        types.UniTuple(uint64, 5),
        boolean,
    )
)


@kernel
def forward_fours(frame: Any) -> None:
    """Any number of states, padded to a multiple of four."""
    use_wide_vectors()
    member, first, last = share(frame)
    inputs, paths, outputs, scratch, sizes, strides, enabled = arguments(frame, ARGUMENTS)
    u, delta, A, B, C, D, bias = inputs
    y, states = outputs
    _, K, L, T, channels, groups, N, _, chunk = sizes
    u_batch, u_path, y_batch, y_path, paths_path = strides
    N4 = (N + THREE) // FOUR * FOUR
    chunks = (T + chunk - ONE) // chunk
    # S: rows of the step, then its B and C; Q: h and A of each state
    S, Q = own(scratch[0], member), own(scratch[1], member)
    DT, WRITE, ACC, BIAS, SKIP, BC = ZERO, ROW, TWO * ROW, THREE * ROW, FOUR * ROW, U(5) * ROW
    for task in range(first, last):
        b, group, _, start, w = place(task, sizes)
        for k in range(K):
            bk = b * K + k
            uk = b * u_batch + k * u_path + start
            yk = b * y_batch + k * y_path + start
            if k == ZERO or y_path > ZERO:
                clear(y, yk, L, channels, w)
            clear(Q, ZERO, TWO * N4, ROW, ROW)
            clear(S, BC, ONE, ZERO, TWO * N4)
            copy(bias, k * channels + start, S, BIAS, w)
            copy(D, k * channels + start, S, SKIP, w)
            for n in range(N):
                for d in range(w):
                    Q[(TWO * n + ONE) * ROW + d] = A[(k * channels + start + d) * N + n] * LOG2E
            for t in range(T):
                if states.size > 0 and t % chunk == ZERO:
                    for n in range(N):
                        at = ((bk * chunks + t // chunk) * N + n) * channels + start
                        copy(Q, TWO * n * ROW, states, at, w)
                index = paths[k * paths_path + t]
                token = U(index)
                if index >= 0:
                    u0 = uk + token * channels
                    d0 = (bk * L + token) * channels + start
                    for d in range(w):
                        s = softplus(delta[d0 + d] + S[BIAS + d], enabled)
                        S[DT + d] = s
                        S[WRITE + d] = s * u[u0 + d]
                        S[ACC + d] = S[SKIP + d] * u[u0 + d]
                    at = ((bk * groups + group) * L + token) * N
                    copy(B, at, S, BC, N)
                    copy(C, at, S, BC + N4, N)
                else:
                    for d in range(w):
                        S[DT + d] = softplus(S[BIAS + d], enabled)
                        S[WRITE + d] = F(0.0)
                for n in range(ZERO, N4, FOUR):
                    i = BC + n
                    b0, b1, b2, b3 = S[i], S[i + ONE], S[i + TWO], S[i + THREE]
                    i += N4
                    c0, c1, c2, c3 = S[i], S[i + ONE], S[i + TWO], S[i + THREE]
                    h = TWO * n * ROW
                    for d in range(w):
                        s = S[DT + d]
                        v = S[WRITE + d]
                        h0 = exp2(s * Q[h + ROW + d]) * Q[h + d] + v * b0
                        h1 = exp2(s * Q[h + THREE * ROW + d]) * Q[h + TWO * ROW + d] + v * b1
                        h2 = exp2(s * Q[h + U(5) * ROW + d]) * Q[h + FOUR * ROW + d] + v * b2
                        h3 = exp2(s * Q[h + U(7) * ROW + d]) * Q[h + U(6) * ROW + d] + v * b3
                        Q[h + d] = h0
                        Q[h + TWO * ROW + d] = h1
                        Q[h + FOUR * ROW + d] = h2
                        Q[h + U(6) * ROW + d] = h3
                        S[ACC + d] += (h0 * c0 + h1 * c1) + (h2 * c2 + h3 * c3)
                if index >= 0:
                    y0 = yk + token * channels
                    for d in range(w):
                        y[y0 + d] += S[ACC + d]


@kernel
def forward_one(frame: Any) -> None:
    """One state."""
    use_wide_vectors()
    member, first, last = share(frame)
    inputs, paths, outputs, scratch, sizes, strides, enabled = arguments(frame, ARGUMENTS)
    u, delta, A, B, C, D, bias = inputs
    y, states = outputs
    _, K, L, T, channels, groups, _, _, chunk = sizes
    u_batch, u_path, y_batch, y_path, paths_path = strides
    chunks = (T + chunk - ONE) // chunk
    S = own(scratch[0], member)
    H, DECAY, BIAS, SKIP = ZERO, ROW, TWO * ROW, THREE * ROW
    for task in range(first, last):
        b, group, _, start, w = place(task, sizes)
        for k in range(K):
            bk = b * K + k
            uk = b * u_batch + k * u_path + start
            yk = b * y_batch + k * y_path + start
            if k == ZERO or y_path > ZERO:
                clear(y, yk, L, channels, w)
            clear(S, H, ONE, ZERO, w)
            copy(bias, k * channels + start, S, BIAS, w)
            copy(D, k * channels + start, S, SKIP, w)
            for d in range(w):
                S[DECAY + d] = A[k * channels + start + d] * LOG2E
            for t in range(T):
                if states.size > 0 and t % chunk == ZERO:
                    copy(S, H, states, (bk * chunks + t // chunk) * channels + start, w)
                index = paths[k * paths_path + t]
                if index >= 0:
                    token = U(index)
                    u0 = uk + token * channels
                    d0 = (bk * L + token) * channels + start
                    y0 = yk + token * channels
                    at = (bk * groups + group) * L + token
                    b0, c0 = B[at], C[at]
                    for d in range(w):
                        s = softplus(delta[d0 + d] + S[BIAS + d], enabled)
                        v = u[u0 + d]
                        h = exp2(s * S[DECAY + d]) * S[H + d] + s * v * b0
                        S[H + d] = h
                        y[y0 + d] += h * c0 + S[SKIP + d] * v
                else:
                    for d in range(w):
                        S[H + d] *= exp2(softplus(S[BIAS + d], enabled) * S[DECAY + d])
