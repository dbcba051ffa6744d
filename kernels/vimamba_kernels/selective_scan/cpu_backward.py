"""Numba kernel of the selective scan's backward pass; cpu.py drives it.

From the last chunk of a path to the first, 16 channels and four states (or one) at a time: the
chunk's states are recomputed from the saved ones, then the chunk is traversed backward. Tasks and
arguments are those of cpu_forward.py, and

    inputs     followed by the saved states, the gradients of y before the gate (written here if
               there is one) and of the last state; z, y before the gate, and the gradient of the
               gated y, or empty
    gradients  u and delta, at token positions; A, D and bias by batch element; B and C by block;
               the first state (empty: not requested); z
    scratch    vectors of a chunk's steps; B and C of a chunk's steps; rates, gradients of the
               states and of the rates; constants; gradients of D and the bias; states before the
               steps, and decays; gradients of B and C
"""

from typing import Any

from numba import boolean, int32, types, uint64

from vimamba_kernels.cpu_math import (
    FOUR,
    LN2,
    ONE,
    THREE,
    TWO,
    ZERO,
    F,
    U,
    ahead,
    arguments,
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
    sigmoid,
    silu_slope,
    softplus,
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
    store_totals,
)
from vimamba_kernels.selective_scan.cpu_forward import (
    FLOATS,
    STRIDES,
    load_states,
    load_tokens,
    places,
)
from vimamba_kernels.selective_scan.cpu_steps import (
    BIAS,
    SKIP,
    constants_at,
    fetch_steps,
    load_constants,
    step_size,
)

ARGUMENTS = types.Tuple(
    (
        types.UniTuple(FLOATS, 14),
        int32[::1],
        types.UniTuple(FLOATS, 9),
        types.UniTuple(FLOATS, 7),
        types.UniTuple(uint64, 10),
        STRIDES,
        types.UniTuple(boolean, 2),
    )
)
# of a step's vectors: its size and the derivative of that, u and the gradients of y, of what is
# written to the states, and of the size
SIZE, SLOPE, INPUT = ZERO, LANES, TWO * LANES
DY, DWRITE, DSIZE, STEP = THREE * LANES, FOUR * LANES, U(5) * LANES, U(6) * LANES
# of a state's vectors: its rate, and the gradients of the state and of the rate
RATE, GRAD, DRATE, STATE = ZERO, LANES, TWO * LANES, THREE * LANES
# of the gradients of constants
DSKIP, DBIAS = ZERO, LANES


@helper
def _open_gate(inputs: Any, dz: Any, sizes: Any, strides: Any, b: Any, start: Any, w: Any) -> None:
    """Gradients of z, and of y before the gate, for `w` channels of a batch element."""
    dy, z, y, dgated = inputs[9], inputs[11], inputs[12], inputs[13]
    K, L, channels = sizes[1], sizes[2], sizes[4]
    of_z, of_y = strides[4], strides[5]
    outputs = K if of_y[1] > ZERO else ONE
    for row in range(L):
        later = row + FOUR
        fetch(z, b * of_z[0] + later * of_z[1] + start, w)
        for k in range(outputs):
            at = b * of_y[0] + k * of_y[1] + later * channels + start
            fetch(y, at, w)
            fetch(dgated, at, w)
            fetch(dy, at, w)
        fetch(dz, (b * L + later) * channels + start, w)
        for d in range(ZERO, w, LANES):
            part = w - d
            v = load_first(z, b * of_z[0] + row * of_z[1] + start + d, part)
            s = sigmoid(v)
            gate, slope = v * s, silu_slope(v, s)
            total = repeat(F(0.0))
            for k in range(outputs):
                at = b * of_y[0] + k * of_y[1] + row * channels + start + d
                g = load_first(dgated, at, part)
                store_first(dy, at, g * gate, part)
                total = total + g * load_first(y, at, part)
            at = (b * L + row) * channels + start + d
            store_first(dz, at, total * slope, part)


@helper
def _save(Q: Any, which: Any, target: Any, first: Any, channels: Any, N: Any, w: Any) -> None:
    """Write one vector of every state."""
    for n in range(N):
        for d in range(ZERO, w, LANES):
            v = load(Q, (d * THREE * N) + n * STATE + which)
            store_first(target, first + n * channels + d, v, w - d)


@helper
def _prepare(
    inputs: Any,
    paths: Any,
    gradients: Any,
    scratch: Any,
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
    u, delta, dy = inputs[0], inputs[1], inputs[9]
    S, W = scratch[0], scratch[3]
    channels, chunk, rank = sizes[4], sizes[8], sizes[9]
    delta_row = strides[1][2]
    (uk, dk, _, _, yk), to = at
    first, part = constants_at(d, rank), w - d
    here = d * chunk * U(6)
    next_path, next_d = following(path, -chunk, d, w)
    for i in range(count):
        index = paths[path + i]
        later = ahead(paths, next_path + i)
        fetch(u, uk + next_d + later * channels, ONE)
        fetch_steps(delta, dk + later * delta_row, start + next_d, rank)
        fetch(dy, yk + next_d + later * channels, ONE)
        s = here + i * STEP
        if index >= 0:
            token = U(index)
            row = dk + token * delta_row
            # written when all states are done
            fetch(gradients[0], uk + d + token * channels, ONE)
            fetch(gradients[1], to + d + token * channels, ONE)
            store(S, s + SIZE, step_size(delta, row, start + d, rank, W, first, part))
            store(S, s + INPUT, load_first(u, uk + d + token * channels, part))
            store(S, s + DY, load_first(dy, yk + d + token * channels, part))
        else:
            store(S, s + SIZE, load(W, first + BIAS))
            store(S, s + INPUT, repeat(F(0.0)))
            store(S, s + DY, repeat(F(0.0)))
    for s in range(here, here + count * STEP, STEP):
        size = load(S, s + SIZE)
        store(S, s + SIZE, softplus(size, enabled))
        store(S, s + SLOPE, sigmoid(size) if enabled else repeat(F(1.0)))
        store(S, s + DWRITE, repeat(F(0.0)))
        store(S, s + DSIZE, repeat(F(0.0)))


@helper
def _halves(like: Any) -> Any:
    """Of a step's vectors: the decays after the states, or gradients of C after B; their number."""
    return U(len(like)) * LANES, U(len(like)) * TWO * LANES


@helper
def _recompute(
    S: Any, BC: Any, n: Any, N: Any, Q: Any, H: Any, at: Any, count: Any, like: Any
) -> None:
    """States before each of `count` steps, of which the first is given, and the steps' decays."""
    start, q = at
    half, slot = _halves(like)
    a, h = load_parts(Q, q + RATE, STATE, like), load_parts(H, ZERO, LANES, like)
    for i in range(count):
        s, x = start + i * STEP, i * slot
        size = load(S, s + SIZE)
        e = exp2(size * a)
        store_parts(H, x, LANES, h)
        store_parts(H, x + half, LANES, e)
        h = e * h + size * load(S, s + INPUT) * spread(BC, i * TWO * N + n, like)
    store_parts(H, count * slot, LANES, h)


@helper
def _walk_back(
    S: Any, BC: Any, n: Any, N: Any, Q: Any, H: Any, M: Any, at: Any, count: Any, like: Any
) -> None:
    """Gradients of as many states as `like` is long, for `count` steps."""
    start, q = at
    half, slot = _halves(like)
    a, g = load_parts(Q, q + RATE, STATE, like), load_parts(Q, q + GRAD, STATE, like)
    da = load_parts(Q, q + DRATE, STATE, like)
    h = load_parts(H, count * slot, LANES, like)
    for back in range(count):
        i = count - ONE - back
        s, x, b = start + i * STEP, i * slot, i * TWO * N + n
        dy, size = load(S, s + DY), load(S, s + SIZE)
        g = g + dy * spread(BC, b + N, like)
        dB = load_parts(M, x, LANES, like) + g * (size * load(S, s + INPUT))
        store_parts(M, x, LANES, dB)
        dC = load_parts(M, x + half, LANES, like) + dy * h
        store_parts(M, x + half, LANES, dC)
        store(S, s + DWRITE, add_parts(load(S, s + DWRITE), g * spread(BC, b, like)))
        g = g * load_parts(H, x + half, LANES, like)
        h = load_parts(H, x, LANES, like)
        e = g * h
        da = da + e * size
        store(S, s + DSIZE, add_parts(load(S, s + DSIZE), e * a))
    store_parts(Q, q + GRAD, STATE, g)
    store_parts(Q, q + DRATE, STATE, da)


@helper
def _differentiate(
    inputs: Any,
    paths: Any,
    gradients: Any,
    scratch: Any,
    sizes: Any,
    at: Any,
    path: Any,
    n: Any,
    count: Any,
    w: Any,
    like: Any,
) -> None:
    """Gradients of as many states as `like` is long, for a task's channels and `count` steps."""
    states = inputs[8]
    channels, N, chunk = sizes[4], sizes[6], sizes[8]
    S, BC, Q, _, _, H, M = scratch
    saved, part = at
    half, slot = _halves(like)
    clear(M, ZERO, ONE, ZERO, count * slot)
    for d in range(ZERO, w, LANES):
        for i in range(U(len(like))):
            h = load_first(states, saved + (n + i) * channels + d, w - d)
            store(H, i * LANES, h)
        of_d = d * chunk * U(6), d * THREE * N + n * STATE
        _recompute(S, BC, n, N, Q, H, of_d, count, like)
        _walk_back(S, BC, n, N, Q, H, M, of_d, count, like)
    for i in range(count):
        index = paths[path + i]
        if index >= 0:
            token = part + U(index) * N + n
            store_totals(gradients[3], token, load_parts(M, i * slot, LANES, like))
            store_totals(gradients[4], token, load_parts(M, i * slot + half, LANES, like))


@helper
def _finish(
    gradients: Any,
    paths: Any,
    scratch: Any,
    sizes: Any,
    at: Any,
    path: Any,
    count: Any,
    d: Any,
    keep: Any,
    w: Any,
) -> None:
    """Gradients of u and delta of `count` steps, and the steps' shares of those of constants."""
    du, ddelta = gradients[0], gradients[1]
    S, W, G = scratch[0], scratch[3], scratch[4]
    channels, chunk, rank = sizes[4], sizes[8], sizes[9]
    uk, dk = at
    part = w - d
    skip = load(W, constants_at(d, rank) + SKIP)
    dskip, dbias = load(G, d * TWO + DSKIP), load(G, d * TWO + DBIAS)
    for i in range(count):
        index = paths[path + i]
        s = d * chunk * U(6) + i * STEP
        u, dy, dwrite = load(S, s + INPUT), load(S, s + DY), load(S, s + DWRITE)
        e = (load(S, s + DSIZE) * LN2 + dwrite * u) * load(S, s + SLOPE)
        dbias = dbias + e
        dskip = dskip + dy * u
        if index >= 0:
            token = U(index) * channels
            store_first(ddelta, dk + d + token, e, part)
            v = dwrite * load(S, s + SIZE) + skip * dy
            if keep:
                v = v + load_first(du, uk + d + token, part)
            store_first(du, uk + d + token, v, part)
    store(G, d * TWO + DSKIP, dskip)
    store(G, d * TWO + DBIAS, dbias)


@kernel
def backward(frame: Any) -> None:
    """Gradients of everything."""
    mode = flush_denormals()
    member, first, last = share(frame)
    inputs, paths, gradients, memory, sizes, strides, flags = arguments(frame, ARGUMENTS)
    enabled, visits_all = flags
    S, BC, Q = own(memory[0], member), own(memory[1], member), own(memory[2], member)
    W, G = own(memory[3], member), own(memory[4], member)
    H, M = own(memory[5], member), own(memory[6], member)
    scratch = S, BC, Q, W, G, H, M
    A, B, C, D, bias, weights = inputs[2], inputs[3], inputs[4], inputs[5], inputs[6], inputs[7]
    dA, dD, dbias, dfirst = gradients[2], gradients[5], gradients[6], gradients[7]
    dlast, z = inputs[10], inputs[11]
    batch, K, L, T, channels, groups, N, _, chunk, rank = sizes
    of_u, _, of_B, of_C, _, _, of_paths = strides
    chunks = (T + chunk - ONE) // chunk
    fours = N // FOUR * FOUR
    for task in range(first, last):
        b, group, block, start, w = place(task, sizes)
        if z.size > 0:
            _open_gate(inputs, gradients[8], sizes, strides, b, start, w)
        for k in range(K):
            bk = b * K + k
            row, state = k * channels + start, bk * N * channels + start
            read_at = places(strides, b, k, group, start)
            uk, _, Bk, Ck, _ = read_at
            dk = bk * L * channels + start
            part = (((block * batch + b) * K + k) * groups + group) * L * N
            first_visit = k == ZERO or of_u[1] > ZERO
            if not visits_all:
                if first_visit:
                    clear(gradients[0], uk, L, channels, w)
                clear(gradients[1], dk, L, channels, w)
                clear(gradients[3], part, ONE, ZERO, L * N)
                clear(gradients[4], part, ONE, ZERO, L * N)
            keep = not (first_visit and visits_all)
            load_constants(weights, bias, D, row, rank, W, w)
            clear(Q, ZERO, ONE, ZERO, U(Q.size))
            load_states(A, row, dlast, state, channels, Q, (RATE, GRAD, STATE), N, w)
            clear(G, ZERO, ONE, ZERO, U(G.size))
            for reverse in range(chunks):
                c = chunks - ONE - reverse
                count = min(chunk, T - c * chunk)
                path = b * of_paths[0] + k * of_paths[1] + c * chunk
                at = ((bk * chunks + c) * N * channels + start), part
                load_tokens(B, Bk, of_B[3], paths, path, count, N, ZERO, BC)
                load_tokens(C, Ck, of_C[3], paths, path, count, N, N, BC)
                for d in range(ZERO, w, LANES):
                    _prepare(
                        *(
                            inputs,
                            paths,
                            gradients,
                            scratch,
                            sizes,
                            strides,
                            (read_at, dk),
                            path,
                            count,
                        ),
                        *(start, d, w, enabled),
                    )
                for n in range(ZERO, fours, FOUR):
                    _differentiate(
                        *(inputs, paths, gradients, scratch, sizes, at, path, n, count, w),
                        PARTS_4,
                    )
                for n in range(fours, N):
                    _differentiate(
                        *(inputs, paths, gradients, scratch, sizes, at, path, n, count, w),
                        PARTS_1,
                    )
                for d in range(ZERO, w, LANES):
                    _finish(gradients, paths, scratch, sizes, (uk, dk), path, count, d, keep, w)
            _save(Q, DRATE, dA, state, channels, N, w)
            if dfirst.size > 0:
                _save(Q, GRAD, dfirst, state, channels, N, w)
            for d in range(ZERO, w, LANES):
                store_first(dD, bk * channels + start + d, load(G, d * TWO + DSKIP), w - d)
                store_first(dbias, bk * channels + start + d, load(G, d * TWO + DBIAS), w - d)
    restore_mode(mode)
