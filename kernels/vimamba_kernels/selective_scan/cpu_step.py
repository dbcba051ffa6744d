"""Numba kernel of one step of the selective scan; step.py drives it.

A task handles `w` channels of one batch element and does the step of all its paths. Arguments in
the frame:

    inputs   the states (B, K, D, N); u, delta, A, B, C, D, bias as the operator takes them, without
             the token dimension; z or empty; flat float32
    outputs  y, the new states
    scratch  per thread: rows of the step
    sizes    B, K, 1, 1, D, G, N, channels of a task
    strides  of u: batch, path; of y: batch, path
    enabled  whether delta passes through softplus
"""

from typing import Any

from numba import boolean, types, uint64

from vimamba_kernels.cpu_math import (
    LOG2E,
    ONE,
    ROW,
    TWO,
    ZERO,
    F,
    arguments,
    exp2,
    helper,
    kernel,
    own,
    place,
    share,
    silu,
    softplus,
    use_wide_vectors,
)
from vimamba_kernels.selective_scan.cpu_forward import FLOATS

ARGUMENTS = types.Tuple(
    (
        types.UniTuple(FLOATS, 9),
        types.UniTuple(FLOATS, 2),
        types.UniTuple(FLOATS, 1),
        types.UniTuple(uint64, 8),
        types.UniTuple(uint64, 4),
        boolean,
    )
)
# rows of a step: dt * log2(e), the input to the states, the output
DT, WRITE, ACC = ZERO, ROW, TWO * ROW


@helper
def _advance(
    state: Any, A: Any, B: Any, C: Any, out: Any, S: Any, at: Any, a: Any, bc: Any, N: Any, w: Any
) -> None:
    """New states of `w` channels, and the output read from them."""
    use_wide_vectors()
    if N == ONE:
        b0, c0 = B[bc], C[bc]
        for d in range(w):
            h = exp2(S[DT + d] * A[a + d]) * state[at + d] + S[WRITE + d] * b0
            out[at + d] = h
            S[ACC + d] += h * c0
        return
    for d in range(w):
        s, v = S[DT + d], S[WRITE + d]
        i, j = at + d * N, a + d * N
        total = F(0.0)
        for n in range(N):
            h = exp2(s * A[j + n]) * state[i + n] + v * B[bc + n]
            out[i + n] = h
            total += h * C[bc + n]
        S[ACC + d] += total


@kernel
def step(frame: Any) -> None:
    """One step, from the states in memory to new ones."""
    use_wide_vectors()
    member, first, last = share(frame)
    inputs, outputs, scratch, sizes, strides, enabled = arguments(frame, ARGUMENTS)
    state, u, delta, A, B, C, D, bias, z = inputs
    y, out = outputs
    S = own(scratch[0], member)
    K, channels, groups, N = sizes[1], sizes[4], sizes[5], sizes[6]
    u_batch, u_path, y_batch, y_path = strides
    for task in range(first, last):
        b, group, _, start, w = place(task, sizes)
        for k in range(K):
            bk = b * K + k
            uk = b * u_batch + k * u_path + start
            yk = b * y_batch + k * y_path + start
            row = k * channels + start
            for d in range(w):
                s = softplus(delta[bk * channels + start + d] + bias[row + d], enabled)
                v = u[uk + d]
                S[DT + d] = s * LOG2E
                S[WRITE + d] = s * v
                S[ACC + d] = D[row + d] * v
            at = (bk * channels + start) * N
            bc = (bk * groups + group) * N
            _advance(state, A, B, C, out, S, at, row * N, bc, N, w)
            adds = k > ZERO and y_path == ZERO
            for d in range(w):
                y[yk + d] = S[ACC + d] + (y[yk + d] if adds else F(0.0))
            if z.size > 0 and (k == K - ONE or y_path > ZERO):
                for d in range(w):
                    v = z[b * channels + start + d]
                    y[yk + d] *= silu(v)
