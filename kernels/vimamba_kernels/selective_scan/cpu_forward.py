"""Numba kernels of the selective scan's forward pass; cpu.py drives them.

There are two, compiled on first use: states in groups of four for any N (Vim's 16), and a single
state (VMamba), where three lanes of four would be wasted and a step fits in one loop.

A task handles `w` channels of one batch element and scans its paths one after another, so the sum
over the paths needs no K-fold output and does not depend on the threads. Arguments in the frame:

    inputs   u, delta, A, B, C, D, bias as the operator takes them; weights (K, D, rank), with which
             the factors in delta are projected; z and the initial state (B, K, N, D), or
             empty; float32, flat unless they have strides
    paths    (K, T) int32, (B, K, T), or (1, T) with a path stride of 0
    outputs  y; states before every chunk and after the last step (empty: not requested)
    scratch  per thread: rows of a step; tiles of the states; rows of weights
    sizes    B, K, L, T, D, G, N, channels of a task, steps of a chunk, rank (0: no projection)
    strides  of delta: batch, path, token; of B and C: batch, path, group, token; of z: batch,
             token; of u, y and paths: batch, path
    flags    whether delta passes through softplus, and whether every path visits every token
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
    ahead,
    arguments,
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
from vimamba_kernels.selective_scan.cpu_steps import fetch_steps, load_steps, load_weights

FLOATS = float32[::1]
# those of u, delta, B, C, z, y, paths
STRIDES = types.Tuple(tuple(types.UniTuple(uint64, n) for n in (2, 3, 4, 4, 2, 2, 2)))
ARGUMENTS = types.Tuple(
    (
        types.UniTuple(FLOATS, 10),
        int32[::1],
        types.UniTuple(FLOATS, 3),
        types.UniTuple(FLOATS, 3),
        types.UniTuple(uint64, 10),
        STRIDES,
        types.UniTuple(boolean, 2),
    )
)


@helper
def _gate(y: Any, y0: Any, y_row: Any, z: Any, z0: Any, z_row: Any, L: Any, w: Any) -> None:
    """Multiply `L` rows of y by the SiLU of the rows of z."""
    use_wide_vectors()
    for row in range(L):
        for d in range(w):
            v = z[z0 + row * z_row + d]
            y[y0 + row * y_row + d] *= v * sigmoid(v, True)


@helper
def places(strides: Any, b: Any, k: Any, group: Any, start: Any) -> Any:
    """Offsets at which a task's path starts in u, delta, B, C and y."""
    of_u, of_delta, of_B, of_C, _, of_y, _ = strides
    return (
        b * of_u[0] + k * of_u[1] + start,
        b * of_delta[0] + k * of_delta[1],
        b * of_B[0] + k * of_B[1] + group * of_B[2],
        b * of_C[0] + k * of_C[1] + group * of_C[2],
        b * of_y[0] + k * of_y[1] + start,
    )


@kernel
def forward_fours(frame: Any) -> None:
    """Any number of states, padded to a multiple of four."""
    use_wide_vectors()
    member, first, last = share(frame)
    inputs, paths, outputs, scratch, sizes, strides, flags = arguments(frame, ARGUMENTS)
    enabled, visits_all = flags
    u, delta, A, B, C, D, bias, weights, z, initial = inputs
    y, states, final = outputs
    _, K, L, T, channels, _, N, _, chunk, rank = sizes
    _, of_delta, of_B, of_C, of_z, of_y, of_paths = strides
    N4 = (N + THREE) // FOUR * FOUR
    chunks = (T + chunk - ONE) // chunk
    # S: rows of the step, then its B and C; Q: h and A of each state
    S, Q, W = own(scratch[0], member), own(scratch[1], member), own(scratch[2], member)
    DT, WRITE, ACC, BIAS, SKIP, BC = ZERO, ROW, TWO * ROW, THREE * ROW, FOUR * ROW, U(5) * ROW
    for task in range(first, last):
        b, group, _, start, w = place(task, sizes)
        for k in range(K):
            bk = b * K + k
            uk, dk, Bk, Ck, yk = places(strides, b, k, group, start)
            path = b * of_paths[0] + k * of_paths[1]
            first_visit = k == ZERO or of_y[1] > ZERO
            if first_visit and not visits_all:
                clear(y, yk, L, channels, w)
            keep = not (first_visit and visits_all)
            clear(Q, ZERO, TWO * N4, ROW, ROW)
            clear(S, BC, ONE, ZERO, TWO * N4)
            copy(bias, k * channels + start, S, BIAS, w)
            copy(D, k * channels + start, S, SKIP, w)
            load_weights(weights, k, channels, start, rank, W, w)
            for n in range(N):
                for d in range(w):
                    Q[(TWO * n + ONE) * ROW + d] = A[(k * channels + start + d) * N + n] * LOG2E
                if initial.size > 0:
                    copy(initial, (bk * N + n) * channels + start, Q, TWO * n * ROW, w)
            for t in range(T):
                if states.size > 0 and t % chunk == ZERO:
                    for n in range(N):
                        at = ((bk * chunks + t // chunk) * N + n) * channels + start
                        copy(Q, TWO * n * ROW, states, at, w)
                index = paths[path + t]
                token = U(index)
                later = ahead(paths, path + t)
                fetch(u, uk + later * channels, w)
                fetch_steps(delta, dk + later * of_delta[2], start, rank, w)
                fetch(y, yk + later * channels, w)
                if index >= 0:
                    u0 = uk + token * channels
                    load_steps(delta, dk + token * of_delta[2], start, rank, W, S, BIAS, DT, w)
                    for d in range(w):
                        s = softplus(S[DT + d], enabled)
                        S[DT + d] = s
                        S[WRITE + d] = s * u[u0 + d]
                        S[ACC + d] = S[SKIP + d] * u[u0 + d]
                    copy(B, Bk + token * of_B[3], S, BC, N)
                    copy(C, Ck + token * of_C[3], S, BC + N4, N)
                else:
                    for d in range(w):
                        S[DT + d] = softplus(S[BIAS + d], enabled)
                        S[WRITE + d] = F(0.0)
                    clear(S, BC, ONE, ZERO, N)
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
                        y[y0 + d] = S[ACC + d] + (y[y0 + d] if keep else F(0.0))
            if final.size > 0:
                for n in range(N):
                    copy(Q, TWO * n * ROW, final, (bk * N + n) * channels + start, w)
            if z.size > 0 and (k == K - ONE or of_y[1] > ZERO):
                _gate(y, yk, channels, z, b * of_z[0] + start, of_z[1], L, w)


@kernel
def forward_one(frame: Any) -> None:
    """One state."""
    use_wide_vectors()
    member, first, last = share(frame)
    inputs, paths, outputs, scratch, sizes, strides, flags = arguments(frame, ARGUMENTS)
    enabled, visits_all = flags
    u, delta, A, B, C, D, bias, weights, z, initial = inputs
    y, states, final = outputs
    _, K, L, T, channels, _, _, _, chunk, rank = sizes
    _, of_delta, of_B, of_C, of_z, of_y, of_paths = strides
    chunks = (T + chunk - ONE) // chunk
    S, W = own(scratch[0], member), own(scratch[2], member)
    H, DECAY, BIAS, SKIP, DT = ZERO, ROW, TWO * ROW, THREE * ROW, FOUR * ROW
    for task in range(first, last):
        b, group, _, start, w = place(task, sizes)
        for k in range(K):
            bk = b * K + k
            uk, dk, Bk, Ck, yk = places(strides, b, k, group, start)
            path = b * of_paths[0] + k * of_paths[1]
            first_visit = k == ZERO or of_y[1] > ZERO
            if first_visit and not visits_all:
                clear(y, yk, L, channels, w)
            keep = not (first_visit and visits_all)
            clear(S, H, ONE, ZERO, w)
            if initial.size > 0:
                copy(initial, bk * channels + start, S, H, w)
            copy(bias, k * channels + start, S, BIAS, w)
            copy(D, k * channels + start, S, SKIP, w)
            load_weights(weights, k, channels, start, rank, W, w)
            for d in range(w):
                S[DECAY + d] = A[k * channels + start + d] * LOG2E
            for t in range(T):
                if states.size > 0 and t % chunk == ZERO:
                    copy(S, H, states, (bk * chunks + t // chunk) * channels + start, w)
                index = paths[path + t]
                later = ahead(paths, path + t)
                fetch(u, uk + later * channels, w)
                fetch_steps(delta, dk + later * of_delta[2], start, rank, w)
                fetch(y, yk + later * channels, w)
                if index >= 0:
                    token = U(index)
                    u0 = uk + token * channels
                    y0 = yk + token * channels
                    b0, c0 = B[Bk + token * of_B[3]], C[Ck + token * of_C[3]]
                    load_steps(delta, dk + token * of_delta[2], start, rank, W, S, BIAS, DT, w)
                    for d in range(w):
                        s = softplus(S[DT + d], enabled)
                        v = u[u0 + d]
                        h = exp2(s * S[DECAY + d]) * S[H + d] + s * v * b0
                        S[H + d] = h
                        old = y[y0 + d] if keep else F(0.0)
                        y[y0 + d] = old + (h * c0 + S[SKIP + d] * v)
                else:
                    for d in range(w):
                        S[H + d] *= exp2(softplus(S[BIAS + d], enabled) * S[DECAY + d])
            if final.size > 0:
                copy(S, H, final, bk * channels + start, w)
            if z.size > 0 and (k == K - ONE or of_y[1] > ZERO):
                _gate(y, yk, channels, z, b * of_z[0] + start, of_z[1], L, w)
