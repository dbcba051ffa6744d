"""Numba kernels of the selective scan: serial, float32, without the GIL; cpu.py drives them.

How they become vector code: all temporaries of a task are rows of one buffer at distances that the
compiler knows; indices are uint64, so that no wrap-around of negative indices is checked; exp2 and
log1p are polynomials; nothing is captured, so the on-disk cache works.

Two kernels each way are compiled, when first used: states in fours, for any N (Vim's 16), and one
state (VMamba), where three of four lanes would be wasted and everything fits into one loop.

A task owns channels [start, start + width) of one batch element and walks its paths one after the
other, so sums over the paths are deterministic and need no K-fold output.

Sizes: B batch, K paths, L tokens, T steps, D channels, G groups of channels, N states.
"""

from typing import Any

import numpy as np
from numba import boolean, float32, int32, njit, types, uint64
from numba.extending import intrinsic

U = np.uint64
F = np.float32
ZERO, ONE, TWO, THREE, FOUR = U(0), U(1), U(2), U(3), U(4)
# the widest block of channels; rows are longer, so that rows 4 kB apart do not alias
MAX_WIDTH = 96
ROW = U(112)
LOG2E = F(1.4426950408889634)
LN2 = F(0.6931471805599453)
# adding and subtracting 1.5 * 2**23 rounds to an integer, whose bits end the sum's mantissa
ROUND = F(12582912.0)
# Python's error model would test every division; `reassoc` lets sums over channels be vectorised
_KERNEL_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "reassoc", "nsz"},
}
# no reassociation here: it would cancel `+ ROUND - ROUND`
helper = njit(error_model="numpy", fastmath={"contract"})
LOWEST, HIGHEST = F(-126.0), F(127.0)


def kernel(function: Any) -> Any:
    """`numba.njit` with an on-disk cache, or without one where no directory for it can be written."""
    try:
        return njit(cache=True, **_KERNEL_OPTIONS)(function)
    except RuntimeError:
        return njit(**_KERNEL_OPTIONS)(function)


def without_cache(kernel: Any) -> Any:
    """The same kernel, not yet compiled and never to be cached."""
    return njit(**_KERNEL_OPTIONS)(kernel.py_func)


@intrinsic
def _use_wide_vectors(typing_context: Any) -> Any:
    """Let LLVM use 512-bit vectors in the calling function, where the processor has them.

    It prefers 256 bits on most; these loops are pure arithmetic and run 1.3 times as fast with 512.
    llvmlite has no name for the attribute, hence the detour around its list of known ones.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), generate


@helper
def _exp2(x: Any) -> Any:
    """2**x to 1.2e-7 relative, exact at 0, for x clamped to [-126, 127]; nan stays nan."""
    x = LOWEST if x < LOWEST else x
    x = HIGHEST if x > HIGHEST else x
    shifted = x + ROUND
    f = x - (shifted - ROUND)
    # minimax for 2**f - 1 on [-0.5, 0.5], divisible by f, relative error 9.2e-8
    p = F(0.001326472731307149) * f + F(0.009671512991189957)
    p = p * f + F(0.05550733581185341)
    p = p * f + F(0.24022242426872253)
    p = p * f + F(0.6931470036506653)
    p = p * f + F(1.0)
    return np.int32(F(p).view(np.int32) + (F(shifted).view(np.int32) << np.int32(23))).view(F)


@helper
def _log1p(z: Any) -> Any:
    """log(1 + z) on [0, 1]: minimax divisible by z, relative error 3e-8."""
    p = F(0.005214902572333813) * z + F(-0.0294294785708189)
    p = p * z + F(0.07809307426214218)
    p = p * z + F(-0.1365087330341339)
    p = p * z + F(0.19099442660808563)
    p = p * z + F(-0.24841004610061646)
    p = p * z + F(0.3331878185272217)
    p = p * z + F(-0.499994695186615)
    p = p * z + F(0.9999999403953552)
    return p * z


@helper
def _softplus(x: Any, enabled: Any) -> Any:
    """log(1 + exp(x)); above 17 that is x itself in float32, so the usual branch at 20 is met."""
    positive = F(0.0) if x < F(0.0) else x
    y = positive + _log1p(_exp2(-abs(x) * LOG2E))
    return y if enabled else x


@helper
def _sigmoid(x: Any, enabled: Any) -> Any:
    """The slope of `_softplus`."""
    z = _exp2(-abs(x) * LOG2E)
    r = F(1.0) / (F(1.0) + z)
    y = r * z if x < F(0.0) else r
    return y if enabled else F(1.0)


@kernel
def forward_fours(
    u, delta, A, B, C, D, bias, paths, y, states, rows, tiles, sizes, strides, first, last, enabled
):
    """Output of tasks [first, last); states are rows of `scratch` behind the rows of a step."""
    _use_wide_vectors()
    _, K, L, T, channels, groups, N, width, chunk = sizes
    u_batch, u_path, y_batch, y_path, paths_path = strides
    DT, WRITE, ACC, BIAS, SKIP, BC = ZERO, ROW, TWO * ROW, THREE * ROW, FOUR * ROW, U(5) * ROW
    N4 = (N + THREE) // FOUR * FOUR
    S, Q = rows, tiles
    group_width = channels // groups
    per_group = (group_width + width - ONE) // width
    blocks = groups * per_group
    chunks = (T + chunk - ONE) // chunk
    for task in range(first, last):
        b = task // blocks
        group = task % blocks // per_group
        inside = task % per_group * width
        start = group * group_width + inside
        w = min(width, group_width - inside)
        for k in range(K):
            yk = b * y_batch + k * y_path + start
            if k == ZERO or y_path > ZERO:
                for token in range(L):
                    for d in range(w):
                        y[yk + token * channels + d] = F(0.0)
            for n in range(N4):
                for d in range(w):
                    Q[n * TWO * ROW + d] = F(0.0)
                    Q[n * TWO * ROW + ROW + d] = F(0.0)
                S[BC + n] = F(0.0)
                S[BC + N4 + n] = F(0.0)
            for d in range(w):
                S[BIAS + d] = bias[k * channels + start + d]
                S[SKIP + d] = D[k * channels + start + d]
            for n in range(N):
                for d in range(w):
                    Q[n * TWO * ROW + ROW + d] = A[(k * N + n) * channels + start + d] * LOG2E
            for t in range(T):
                if states.size > 0 and t % chunk == ZERO:
                    for n in range(N):
                        s0 = (((b * K + k) * chunks + t // chunk) * N + n) * channels + start
                        for d in range(w):
                            states[s0 + d] = Q[n * TWO * ROW + d]
                index = paths[k * paths_path + t]
                if index >= 0:
                    token = U(index)
                    u0 = b * u_batch + k * u_path + token * channels + start
                    d0 = ((b * K + k) * L + token) * channels + start
                    for d in range(w):
                        s = _softplus(delta[d0 + d] + S[BIAS + d], enabled)
                        S[DT + d] = s
                        S[WRITE + d] = s * u[u0 + d]
                        S[ACC + d] = S[SKIP + d] * u[u0 + d]
                    bc = (((b * K + k) * groups + group) * L + token) * N
                    for n in range(N):
                        S[BC + n] = B[bc + n]
                        S[BC + N4 + n] = C[bc + n]
                else:
                    for d in range(w):
                        S[DT + d] = _softplus(S[BIAS + d], enabled)
                        S[WRITE + d] = F(0.0)
                        S[ACC + d] = F(0.0)
                for n in range(ZERO, N4, FOUR):
                    b0, b1, b2, b3 = S[BC + n], S[BC + n + ONE], S[BC + n + TWO], S[BC + n + THREE]
                    c0, c1 = S[BC + N4 + n], S[BC + N4 + n + ONE]
                    c2, c3 = S[BC + N4 + n + TWO], S[BC + N4 + n + THREE]
                    h = n * TWO * ROW
                    for d in range(w):
                        s = S[DT + d]
                        v = S[WRITE + d]
                        h0 = _exp2(s * Q[h + ROW + d]) * Q[h + d] + v * b0
                        h1 = _exp2(s * Q[h + U(3) * ROW + d]) * Q[h + U(2) * ROW + d] + v * b1
                        h2 = _exp2(s * Q[h + U(5) * ROW + d]) * Q[h + U(4) * ROW + d] + v * b2
                        h3 = _exp2(s * Q[h + U(7) * ROW + d]) * Q[h + U(6) * ROW + d] + v * b3
                        Q[h + d] = h0
                        Q[h + U(2) * ROW + d] = h1
                        Q[h + U(4) * ROW + d] = h2
                        Q[h + U(6) * ROW + d] = h3
                        S[ACC + d] += (h0 * c0 + h1 * c1) + (h2 * c2 + h3 * c3)
                if index >= 0:
                    y0 = yk + U(index) * channels
                    for d in range(w):
                        y[y0 + d] += S[ACC + d]


@kernel
def forward_one(
    u, delta, A, B, C, D, bias, paths, y, states, rows, tiles, sizes, strides, first, last, enabled
):
    """`forward_fours` for N = 1."""
    _use_wide_vectors()
    _, K, L, T, channels, groups, N, width, chunk = sizes
    u_batch, u_path, y_batch, y_path, paths_path = strides
    H, DECAY, BIAS, SKIP = ZERO, ROW, TWO * ROW, THREE * ROW
    S = rows
    group_width = channels // groups
    per_group = (group_width + width - ONE) // width
    blocks = groups * per_group
    chunks = (T + chunk - ONE) // chunk
    for task in range(first, last):
        b = task // blocks
        group = task % blocks // per_group
        inside = task % per_group * width
        start = group * group_width + inside
        w = min(width, group_width - inside)
        for k in range(K):
            yk = b * y_batch + k * y_path + start
            if k == ZERO or y_path > ZERO:
                for token in range(L):
                    for d in range(w):
                        y[yk + token * channels + d] = F(0.0)
            for d in range(w):
                S[H + d] = F(0.0)
                S[DECAY + d] = A[k * channels + start + d] * LOG2E
                S[BIAS + d] = bias[k * channels + start + d]
                S[SKIP + d] = D[k * channels + start + d]
            for t in range(T):
                if states.size > 0 and t % chunk == ZERO:
                    s0 = ((b * K + k) * chunks + t // chunk) * channels + start
                    for d in range(w):
                        states[s0 + d] = S[H + d]
                index = paths[k * paths_path + t]
                if index >= 0:
                    token = U(index)
                    u0 = b * u_batch + k * u_path + token * channels + start
                    d0 = ((b * K + k) * L + token) * channels + start
                    y0 = yk + token * channels
                    b0 = B[((b * K + k) * groups + group) * L + token]
                    c0 = C[((b * K + k) * groups + group) * L + token]
                    for d in range(w):
                        s = _softplus(delta[d0 + d] + S[BIAS + d], enabled)
                        v = u[u0 + d]
                        h = _exp2(s * S[DECAY + d]) * S[H + d] + s * v * b0
                        S[H + d] = h
                        y[y0 + d] += h * c0 + S[SKIP + d] * v
                else:
                    for d in range(w):
                        S[H + d] *= _exp2(_softplus(S[BIAS + d], enabled) * S[DECAY + d])


@kernel
def backward_fours(
    u,
    delta,
    A,
    B,
    C,
    D,
    bias,
    paths,
    states,
    dy,
    du,
    ddelta,
    dA,
    dB,
    dC,
    dD,
    dbias,
    rows,
    tiles,
    steps,
    history,
    past,
    sizes,
    strides,
    first,
    last,
    enabled,
):
    """Gradients from tasks [first, last); dA, dD, dbias per batch element, dB, dC per block."""
    _use_wide_vectors()
    batch, K, L, T, channels, groups, N, width, chunk = sizes
    u_batch, u_path, y_batch, y_path, paths_path = strides
    DY, GW, GDT, BIAS, SKIP = ZERO, ROW, TWO * ROW, THREE * ROW, FOUR * ROW
    DD, DBIAS, BC = U(5) * ROW, U(6) * ROW, U(7) * ROW
    N4 = (N + THREE) // FOUR * FOUR
    S, Q, X = rows, tiles, steps
    # one memory under two names: that a step's states are apart from the last ones' is checked at run
    # time then, once a loop, instead of keeping it from being vectorised
    H, P = history, past
    slot = N4 * TWO * ROW
    group_width = channels // groups
    per_group = (group_width + width - ONE) // width
    blocks = groups * per_group
    chunks = (T + chunk - ONE) // chunk
    for task in range(first, last):
        b = task // blocks
        group = task % blocks // per_group
        block = task % per_group
        start = group * group_width + block * width
        w = min(width, group_width - block * width)
        for n in range(BC + TWO * N4):
            S[n] = F(0.0)
        for k in range(K):
            bk = b * K + k
            uk = b * u_batch + k * u_path + start
            yk = b * y_batch + k * y_path + start
            part = (((block * batch + b) * K + k) * groups + group) * L * N
            for token in range(L):
                for d in range(w):
                    ddelta[(bk * L + token) * channels + start + d] = F(0.0)
                if k == ZERO or u_path > ZERO:
                    for d in range(w):
                        du[uk + token * channels + d] = F(0.0)
                for n in range(N):
                    dB[part + token * N + n] = F(0.0)
                    dC[part + token * N + n] = F(0.0)
            for d in range(w):
                S[BIAS + d] = bias[k * channels + start + d]
                S[SKIP + d] = D[k * channels + start + d]
                S[DD + d] = F(0.0)
                S[DBIAS + d] = F(0.0)
            for n in range(N4):
                for d in range(THREE * ROW):
                    Q[n * THREE * ROW + d] = F(0.0)
                for d in range(TWO * ROW):
                    H[n * TWO * ROW + d] = F(0.0)
            for n in range(N):
                for d in range(w):
                    Q[n * THREE * ROW + d] = A[(k * N + n) * channels + start + d] * LOG2E
            for reverse in range(chunks):
                c = chunks - ONE - reverse
                t0 = c * chunk
                count = min(chunk, T - t0)
                for n in range(N):
                    s0 = ((bk * chunks + c) * N + n) * channels + start
                    for d in range(w):
                        H[n * TWO * ROW + d] = states[s0 + d]
                for i in range(count):
                    index = paths[k * paths_path + t0 + i]
                    x = i * THREE * ROW
                    if index >= 0:
                        token = U(index)
                        u0 = uk + token * channels
                        d0 = (bk * L + token) * channels + start
                        for d in range(w):
                            v = delta[d0 + d] + S[BIAS + d]
                            X[x + d] = u[u0 + d]
                            X[x + ROW + d] = _softplus(v, enabled)
                            X[x + TWO * ROW + d] = _sigmoid(v, enabled)
                        bc = ((bk * groups + group) * L + token) * N
                        for n in range(N):
                            S[BC + n] = B[bc + n]
                    else:
                        for d in range(w):
                            X[x + d] = F(0.0)
                            X[x + ROW + d] = _softplus(S[BIAS + d], enabled)
                            X[x + TWO * ROW + d] = _sigmoid(S[BIAS + d], enabled)
                        for n in range(N):
                            S[BC + n] = F(0.0)
                    for n in range(ZERO, N4, FOUR):
                        b0, b1 = S[BC + n], S[BC + n + ONE]
                        b2, b3 = S[BC + n + TWO], S[BC + n + THREE]
                        q = n * THREE * ROW
                        old = i * slot + n * TWO * ROW
                        new = old + slot
                        for d in range(w):
                            s = X[x + ROW + d]
                            v = s * X[x + d]
                            a0 = _exp2(s * Q[q + d])
                            a1 = _exp2(s * Q[q + THREE * ROW + d])
                            a2 = _exp2(s * Q[q + U(6) * ROW + d])
                            a3 = _exp2(s * Q[q + U(9) * ROW + d])
                            H[new + d] = a0 * P[old + d] + v * b0
                            H[new + ROW + d] = a0
                            H[new + U(2) * ROW + d] = a1 * P[old + U(2) * ROW + d] + v * b1
                            H[new + U(3) * ROW + d] = a1
                            H[new + U(4) * ROW + d] = a2 * P[old + U(4) * ROW + d] + v * b2
                            H[new + U(5) * ROW + d] = a2
                            H[new + U(6) * ROW + d] = a3 * P[old + U(6) * ROW + d] + v * b3
                            H[new + U(7) * ROW + d] = a3
                for back in range(count):
                    i = count - ONE - back
                    index = paths[k * paths_path + t0 + i]
                    x = i * THREE * ROW
                    token = U(index) if index >= 0 else ZERO
                    bc = ((bk * groups + group) * L + token) * N
                    if index >= 0:
                        for d in range(w):
                            S[DY + d] = dy[yk + token * channels + d]
                        for n in range(N):
                            S[BC + n] = B[bc + n]
                            S[BC + N4 + n] = C[bc + n]
                    else:
                        for d in range(w):
                            S[DY + d] = F(0.0)
                        for n in range(N):
                            S[BC + n] = F(0.0)
                            S[BC + N4 + n] = F(0.0)
                    for d in range(w):
                        S[GW + d] = F(0.0)
                        S[GDT + d] = F(0.0)
                    for n in range(ZERO, N4, TWO):
                        b1, b2 = S[BC + n], S[BC + n + ONE]
                        c1, c2 = S[BC + N4 + n], S[BC + N4 + n + ONE]
                        q = n * THREE * ROW
                        old = i * slot + n * TWO * ROW
                        new = old + slot
                        sB1, sB2, sC1, sC2 = F(0.0), F(0.0), F(0.0), F(0.0)
                        for d in range(w):
                            g = S[DY + d]
                            s = X[x + ROW + d]
                            v = s * X[x + d]
                            g1 = Q[q + ROW + d] + g * c1
                            g2 = Q[q + FOUR * ROW + d] + g * c2
                            sC1 += g * H[new + d]
                            sC2 += g * H[new + TWO * ROW + d]
                            sB1 += g1 * v
                            sB2 += g2 * v
                            a1 = g1 * H[new + ROW + d]
                            a2 = g2 * H[new + THREE * ROW + d]
                            Q[q + ROW + d] = a1
                            Q[q + FOUR * ROW + d] = a2
                            e1 = a1 * P[old + d]
                            e2 = a2 * P[old + TWO * ROW + d]
                            Q[q + TWO * ROW + d] += e1 * s
                            Q[q + U(5) * ROW + d] += e2 * s
                            S[GW + d] += g1 * b1 + g2 * b2
                            S[GDT + d] += e1 * Q[q + d] + e2 * Q[q + THREE * ROW + d]
                        S[BC + n], S[BC + n + ONE] = sB1, sB2
                        S[BC + N4 + n], S[BC + N4 + n + ONE] = sC1, sC2
                    if index >= 0:
                        u0 = uk + token * channels
                        d0 = (bk * L + token) * channels + start
                        for d in range(w):
                            g = S[DY + d]
                            v = X[x + d]
                            e = (S[GDT + d] * LN2 + S[GW + d] * v) * X[x + TWO * ROW + d]
                            ddelta[d0 + d] = e
                            S[DBIAS + d] += e
                            S[DD + d] += g * v
                            du[u0 + d] += S[GW + d] * X[x + ROW + d] + S[SKIP + d] * g
                        for n in range(N):
                            dB[part + token * N + n] = S[BC + n]
                            dC[part + token * N + n] = S[BC + N4 + n]
                    else:
                        for d in range(w):
                            S[DBIAS + d] += S[GDT + d] * LN2 * X[x + TWO * ROW + d]
            for d in range(w):
                dD[bk * channels + start + d] = S[DD + d]
                dbias[bk * channels + start + d] = S[DBIAS + d]
            for n in range(N):
                for d in range(w):
                    dA[(bk * N + n) * channels + start + d] = Q[n * THREE * ROW + TWO * ROW + d]


@kernel
def backward_one(
    u,
    delta,
    A,
    B,
    C,
    D,
    bias,
    paths,
    states,
    dy,
    du,
    ddelta,
    dA,
    dB,
    dC,
    dD,
    dbias,
    rows,
    tiles,
    steps,
    history,
    past,
    sizes,
    strides,
    first,
    last,
    enabled,
):
    """`backward_fours` for N = 1."""
    _use_wide_vectors()
    batch, K, L, T, channels, groups, N, width, chunk = sizes
    u_batch, u_path, y_batch, y_path, paths_path = strides
    # rows of the task, and rows of each step: state, decay, u, dt, slope of softplus, dy
    DECAY, BIAS, SKIP, G, DA, DD, DBIAS = (
        ZERO,
        ROW,
        TWO * ROW,
        THREE * ROW,
        FOUR * ROW,
        U(5) * ROW,
        U(6) * ROW,
    )
    S, X = rows, steps
    slot = U(6) * ROW
    a_, u_, s_, e_, y_ = (
        slot + ROW,
        slot + TWO * ROW,
        slot + THREE * ROW,
        slot + FOUR * ROW,
        slot + U(5) * ROW,
    )
    group_width = channels // groups
    per_group = (group_width + width - ONE) // width
    blocks = groups * per_group
    chunks = (T + chunk - ONE) // chunk
    for task in range(first, last):
        b = task // blocks
        group = task % blocks // per_group
        block = task % per_group
        start = group * group_width + block * width
        w = min(width, group_width - block * width)
        for k in range(K):
            bk = b * K + k
            uk = b * u_batch + k * u_path + start
            yk = b * y_batch + k * y_path + start
            part = (((block * batch + b) * K + k) * groups + group) * L
            for token in range(L):
                for d in range(w):
                    ddelta[(bk * L + token) * channels + start + d] = F(0.0)
                if k == ZERO or u_path > ZERO:
                    for d in range(w):
                        du[uk + token * channels + d] = F(0.0)
                dB[part + token] = F(0.0)
                dC[part + token] = F(0.0)
            for d in range(w):
                S[DECAY + d] = A[k * channels + start + d] * LOG2E
                S[BIAS + d] = bias[k * channels + start + d]
                S[SKIP + d] = D[k * channels + start + d]
                S[G + d] = F(0.0)
                S[DA + d] = F(0.0)
                S[DD + d] = F(0.0)
                S[DBIAS + d] = F(0.0)
            for reverse in range(chunks):
                c = chunks - ONE - reverse
                t0 = c * chunk
                count = min(chunk, T - t0)
                for d in range(w):
                    X[d] = states[(bk * chunks + c) * channels + start + d]
                for i in range(count):
                    index = paths[k * paths_path + t0 + i]
                    x = i * slot
                    if index >= 0:
                        token = U(index)
                        u0 = uk + token * channels
                        y0 = yk + token * channels
                        d0 = (bk * L + token) * channels + start
                        b0 = B[(bk * groups + group) * L + token]
                        for d in range(w):
                            v = delta[d0 + d] + S[BIAS + d]
                            s = _softplus(v, enabled)
                            a = _exp2(s * S[DECAY + d])
                            X[x + slot + d] = a * X[x + d] + s * u[u0 + d] * b0
                            X[x + a_ + d] = a
                            X[x + u_ + d] = u[u0 + d]
                            X[x + s_ + d] = s
                            X[x + e_ + d] = _sigmoid(v, enabled)
                            X[x + y_ + d] = dy[y0 + d]
                    else:
                        for d in range(w):
                            s = _softplus(S[BIAS + d], enabled)
                            a = _exp2(s * S[DECAY + d])
                            X[x + slot + d] = a * X[x + d]
                            X[x + a_ + d] = a
                            X[x + s_ + d] = s
                            X[x + e_ + d] = _sigmoid(S[BIAS + d], enabled)
                for back in range(count):
                    i = count - ONE - back
                    index = paths[k * paths_path + t0 + i]
                    x = i * slot
                    if index >= 0:
                        token = U(index)
                        u0 = uk + token * channels
                        d0 = (bk * L + token) * channels + start
                        b0 = B[(bk * groups + group) * L + token]
                        c0 = C[(bk * groups + group) * L + token]
                        sB, sC = F(0.0), F(0.0)
                        for d in range(w):
                            g, v, s = X[x + y_ + d], X[x + u_ + d], X[x + s_ + d]
                            gh = S[G + d] + g * c0
                            sC += g * X[x + slot + d]
                            sB += gh * s * v
                            ga = gh * X[x + a_ + d]
                            q = ga * X[x + d]
                            e = (q * S[DECAY + d] * LN2 + gh * b0 * v) * X[x + e_ + d]
                            S[G + d] = ga
                            S[DA + d] += q * s
                            S[DD + d] += g * v
                            S[DBIAS + d] += e
                            ddelta[d0 + d] = e
                            du[u0 + d] += gh * b0 * s + S[SKIP + d] * g
                        dB[part + token] = sB
                        dC[part + token] = sC
                    else:
                        for d in range(w):
                            ga = S[G + d] * X[x + a_ + d]
                            q = ga * X[x + d]
                            S[G + d] = ga
                            S[DA + d] += q * X[x + s_ + d]
                            S[DBIAS + d] += q * S[DECAY + d] * LN2 * X[x + e_ + d]
            for d in range(w):
                dA[bk * channels + start + d] = S[DA + d]
                dD[bk * channels + start + d] = S[DD + d]
                dbias[bk * channels + start + d] = S[DBIAS + d]


_floats = float32[::1]
_tail = (types.UniTuple(uint64, 9), types.UniTuple(uint64, 5), uint64, uint64, boolean)
_forward = (_floats,) * 7 + (int32[::1],) + (_floats,) * 4 + _tail
_backward = (_floats,) * 7 + (int32[::1],) + (_floats,) * 14 + _tail
SIGNATURES = {
    "forward_one": _forward,
    "forward_fours": _forward,
    "backward_one": _backward,
    "backward_fours": _backward,
}
