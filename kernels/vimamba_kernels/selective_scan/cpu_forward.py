"""Numba kernel of the selective scan's forward pass; cpu.py drives it.

A task handles `w` channels of one batch element and scans its paths one after another, so the sum
over the paths needs no K-fold output and does not depend on the threads. A path is processed in
chunks, 16 channels at a time: vectors are prepared for all steps of a chunk, then four states (or
one) go through the steps in registers. Arguments in the frame:

    inputs   u, delta, A, B, C, D, bias as the operator takes them; weights (K, D, rank), with which
             the factors in delta are projected; z and the initial state (B, K, N, D), or
             empty; float32, flat unless they have strides
    paths    (K, T) int32, (B, K, T), or (1, T) with a path stride of 0
    outputs  y before the gate; the gated y, which can be the same memory; states before every chunk
             and after the last step (empty: not requested)
    scratch  per thread: vectors of a chunk's steps; B and C of a chunk's steps; states and rates;
             constants
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
    THREE,
    TWO,
    ZERO,
    F,
    U,
    ahead,
    arguments,
    call_no_library,
    clear,
    fetch,
    flush_denormals,
    following,
    helper,
    kernel,
    own,
    place,
    restore_mode,
    share,
    silu,
    softplus,
    transpose,
)
from vimamba_kernels.cpu_vectors import (
    LANES,
    PARTS_1,
    PARTS_4,
    add_parts,
    exp2,
    load,
    load_first,
    load_parts,
    repeat,
    spread,
    store,
    store_first,
    store_parts,
)
from vimamba_kernels.selective_scan.cpu_steps import (
    BIAS,
    SKIP,
    constants_at,
    fetch_steps,
    load_constants,
    step_size,
)

FLOATS = float32[::1]
# those of u, delta, B, C, z, y, paths
STRIDES = types.Tuple(tuple(types.UniTuple(uint64, n) for n in (2, 3, 4, 4, 2, 2, 2)))
ARGUMENTS = types.Tuple(
    (
        types.UniTuple(FLOATS, 10),
        int32[::1],
        types.UniTuple(FLOATS, 4),
        types.UniTuple(FLOATS, 4),
        types.UniTuple(uint64, 10),
        STRIDES,
        types.UniTuple(boolean, 2),
    )
)
# of a step's vectors: its size, its input to the states, and its output
SIZE, WRITE, ACC, STEP = ZERO, LANES, TWO * LANES, THREE * LANES
# of a state's vectors: the state, and its rate
RATE, STATE = LANES, TWO * LANES


@helper
def _gate(
    y: Any, gated: Any, y0: Any, y_row: Any, z: Any, z0: Any, z_row: Any, L: Any, w: Any
) -> None:
    """Multiply `L` rows of y by the SiLU of the rows of z."""
    for row in range(L):
        fetch(z, z0 + (row + FOUR) * z_row, w)
        for d in range(ZERO, w, LANES):
            v = load_first(z, z0 + row * z_row + d, w - d)
            at = y0 + row * y_row + d
            store_first(gated, at, load_first(y, at, w - d) * silu(v), w - d)


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


@helper
def load_tokens(
    source: Any, at: Any, row: Any, paths: Any, path: Any, count: Any, n: Any, to: Any, target: Any
) -> None:
    """Copy `n` numbers of each step's token from B or C; zeros for zero tokens."""
    call_no_library()
    whole = n // LANES * LANES
    for i in range(count):
        index = paths[path + i]
        place = to + i * TWO * n
        if index >= 0:
            token = at + U(index) * row
            for d in range(ZERO, whole, LANES):
                store(target, place + d, load(source, token + d))
            for d in range(whole, n):
                target[place + d] = source[token + d]
        else:
            for d in range(n):
                target[place + d] = F(0.0)


@helper
def _advance(Q: Any, q: Any, S: Any, BC: Any, n: Any, N: Any, count: Any, like: Any) -> None:
    """Go through `count` steps with as many states of 16 channels as `like` is long."""
    h, a = load_parts(Q, q, STATE, like), load_parts(Q, q + RATE, STATE, like)
    for i in range(count):
        s, b = i * STEP, i * TWO * N + n
        h = exp2(load(S, s + SIZE) * a) * h + load(S, s + WRITE) * spread(BC, b, like)
        store(S, s + ACC, add_parts(load(S, s + ACC), h * spread(BC, b + N, like)))
    store_parts(Q, q, STATE, h)


@helper
def load_states(
    A: Any,
    row: Any,
    given: Any,
    first: Any,
    channels: Any,
    Q: Any,
    offsets: Any,
    N: Any,
    w: Any,
) -> None:
    """Write the rates and what is given of each state of `w` channels to vectors, or zeros.

    `offsets` are those of the rate and of what is given among a state's vectors, and their size.
    """
    rate, to, state = offsets
    for d in range(ZERO, w, LANES):
        q, part = d // LANES * state * N, min(w - d, LANES)
        transpose(A, (row + d) * N, N, Q, q + rate, state, LOG2E, part)
        for n in range(N):
            v = repeat(F(0.0))
            if given.size > 0:
                v = load_first(given, first + n * channels + d, part)
            store(Q, q + n * state + to, v)


@helper
def _save_states(Q: Any, target: Any, first: Any, channels: Any, N: Any, w: Any) -> None:
    for n in range(N):
        for d in range(ZERO, w, LANES):
            h = load(Q, d * TWO * N + n * STATE)
            store_first(target, first + n * channels + d, h, w - d)


@helper
def _prepare(
    inputs: Any,
    paths: Any,
    outputs: Any,
    S: Any,
    W: Any,
    sizes: Any,
    strides: Any,
    at: Any,
    path: Any,
    count: Any,
    start: Any,
    d: Any,
    w: Any,
    enabled: Any,
) -> None:
    """Write the vectors of `count` steps for the channels from `d`."""
    u, delta, y = inputs[0], inputs[1], outputs[0]
    channels, rank, delta_row = sizes[4], sizes[9], strides[1][2]
    uk, dk, yk = at
    first, part = constants_at(d, rank), w - d
    next_path, next_d = following(path, count, d, w)
    skip = load(W, first + SKIP)
    for i in range(count):
        index = paths[path + i]
        later = ahead(paths, next_path + i)
        fetch(u, uk + later * channels + next_d, ONE)
        fetch_steps(delta, dk + later * delta_row, start + next_d, rank)
        fetch(y, yk + later * channels + next_d, ONE)
        s = i * STEP
        if index >= 0:
            token = U(index)
            row = dk + token * delta_row
            v = load_first(u, uk + token * channels + d, part)
            store(S, s + SIZE, step_size(delta, row, start + d, rank, W, first, part))
            store(S, s + WRITE, v)
            store(S, s + ACC, skip * v)
        else:
            store(S, s + SIZE, load(W, first + BIAS))
            store(S, s + WRITE, repeat(F(0.0)))
    for s in range(ZERO, count * STEP, STEP):
        size = softplus(load(S, s + SIZE), enabled)
        store(S, s + SIZE, size)
        store(S, s + WRITE, size * load(S, s + WRITE))


@helper
def _finish(
    S: Any, y: Any, y0: Any, channels: Any, paths: Any, path: Any, count: Any, keep: Any, part: Any
) -> None:
    """Write or add the outputs of `count` steps."""
    for i in range(count):
        index = paths[path + i]
        if index >= 0:
            at = y0 + U(index) * channels
            v = load(S, i * STEP + ACC)
            store_first(y, at, v + load_first(y, at, part) if keep else v, part)


@kernel
def forward(frame: Any) -> None:
    """Outputs, and the states before every chunk."""
    mode = flush_denormals()
    member, first, last = share(frame)
    inputs, paths, outputs, scratch, sizes, strides, flags = arguments(frame, ARGUMENTS)
    enabled, visits_all = flags
    _, _, A, B, C, D, bias, weights, z, initial = inputs
    y, gated, states, final = outputs
    _, K, L, T, channels, _, N, _, chunk, rank = sizes
    _, _, of_B, of_C, of_z, of_y, of_paths = strides
    chunks = (T + chunk - ONE) // chunk
    S, BC = own(scratch[0], member), own(scratch[1], member)
    Q, W = own(scratch[2], member), own(scratch[3], member)
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
            row = k * channels + start
            load_constants(weights, bias, D, row, rank, W, w)
            saved = bk * N * channels + start
            load_states(A, row, initial, saved, channels, Q, (RATE, ZERO, STATE), N, w)
            for chunk_number in range(chunks):
                t = chunk_number * chunk
                count = min(chunk, T - t)
                if states.size > 0:
                    at = (bk * chunks + chunk_number) * N * channels + start
                    _save_states(Q, states, at, channels, N, w)
                load_tokens(B, Bk, of_B[3], paths, path + t, count, N, ZERO, BC)
                load_tokens(C, Ck, of_C[3], paths, path + t, count, N, N, BC)
                for d in range(ZERO, w, LANES):
                    at = uk, dk, yk
                    _prepare(
                        *(inputs, paths, outputs, S, W, sizes, strides, at, path + t, count),
                        *(start, d, w, enabled),
                    )
                    q = d * TWO * N
                    fours = N // FOUR * FOUR
                    for n in range(ZERO, fours, FOUR):
                        _advance(Q, q + n * STATE, S, BC, n, N, count, PARTS_4)
                    for n in range(fours, N):
                        _advance(Q, q + n * STATE, S, BC, n, N, count, PARTS_1)
                    _finish(S, y, yk + d, channels, paths, path + t, count, keep, w - d)
            if final.size > 0:
                _save_states(Q, final, saved, channels, N, w)
            if z.size > 0 and (k == K - ONE or of_y[1] > ZERO):
                _gate(y, gated, yk, channels, z, b * of_z[0] + start, of_z[1], L, w)
    restore_mode(mode)
