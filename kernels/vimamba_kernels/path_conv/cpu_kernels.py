"""Numba kernels of the convolution along paths; cpu.py drives them.

A task handles `w` channels of one batch element; forward it goes through one path, backward through
all of them one after another. A path is processed in chunks, 16 channels at a time: the vectors of
a chunk's tokens, and of the W - 1 tokens before them, are gathered, then combined. The backward
pass starts from the end: a token's gradient is a sum over the W steps that begin with its own.
Arguments in the frame:

    inputs   x, weight (K, D, W), bias; backward: the output's gradient
    paths    (K, T) int32, (B, K, T), or (1, T) with a path stride of 0
    outputs  y; backward: gradients of x, weight (B, K, W, D) and bias (B, K, D)
    scratch  per thread: vectors of a chunk's tokens and those before; of its results; of the taps;
             backward: of gradients of a chunk's steps and those after; of the taps' gradients
    sizes    B, K, L, T, D, 1, W, channels of a task, steps of a chunk
    strides  of x: batch, token; of paths: batch, path
    enabled  whether SiLU follows
"""

from typing import Any

from numba import boolean, float32, int32, types, uint64

from vimamba_kernels.cpu_math import (
    FOUR,
    ONE,
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
    silu,
    silu_slope,
    transpose,
)
from vimamba_kernels.cpu_vectors import (
    LANES,
    PARTS_1,
    PARTS_4,
    add_parts,
    load,
    load_first,
    load_parts,
    repeat,
    store,
    store_first,
    store_parts,
)


def _arguments(inputs: int, outputs: int, buffers: int) -> Any:
    floats = float32[::1]
    return types.Tuple(
        (
            types.UniTuple(floats, inputs),
            int32[::1],
            types.UniTuple(floats, outputs),
            types.UniTuple(floats, buffers),
            types.UniTuple(uint64, 9),
            types.UniTuple(uint64, 4),
            boolean,
        )
    )


FORWARD, BACKWARD = _arguments(3, 1, 3), _arguments(4, 3, 5)


@helper
def gather(
    x: Any,
    at: Any,
    row: Any,
    paths: Any,
    path: Any,
    count: Any,
    X: Any,
    to: Any,
    part: Any,
    later: Any,
) -> None:
    """Copy the tokens of `count` steps to vectors; zeros for zero tokens.

    As many are prefetched from `later`: a position on the path, and an index in the first row.
    """
    for i in range(count):
        fetch(x, later[1] + ahead(paths, later[0] + i) * row, ONE)
        index = paths[path + i]
        v = load_first(x, at + U(index) * row, part) if index >= 0 else repeat(F(0.0))
        store(X, to + i * LANES, v)


@helper
def _add_taps(W: Any, w: Any, X: Any, x: Any, Y: Any, count: Any, like: Any) -> None:
    weights = load_parts(W, w, LANES, like)
    for i in range(ZERO, count * LANES, LANES):
        products = weights * load_parts(X, x + i, LANES, like)
        store(Y, i, add_parts(load(Y, i), products))


@helper
def convolve(W: Any, w: Any, X: Any, x: Any, Y: Any, count: Any, taps: Any) -> None:
    """Add to the vectors of Y those of X from their own on, each times the weights of a tap."""
    fours = taps // FOUR * FOUR
    for tap in range(ZERO, fours * LANES, FOUR * LANES):
        _add_taps(W, w + tap, X, x + tap, Y, count, PARTS_4)
    for tap in range(fours * LANES, taps * LANES, LANES):
        _add_taps(W, w + tap, X, x + tap, Y, count, PARTS_1)


@helper
def fill(array: Any, vector: Any, count: Any) -> None:
    """Write a vector `count` times."""
    for i in range(ZERO, count * LANES, LANES):
        store(array, i, vector)


@helper
def move(array: Any, start: Any, to: Any, count: Any) -> None:
    """Copy `count` vectors within an array, the last one first."""
    for i in range(count):
        offset = (count - ONE - i) * LANES
        store(array, to + offset, load(array, start + offset))


@kernel
def conv_forward(frame: Any) -> None:
    """Output."""
    mode = flush_denormals()
    member, first, last = share(frame)
    inputs, paths, outputs, scratch, sizes, strides, enabled = arguments(frame, FORWARD)
    x, weight, bias = inputs
    (y,) = outputs
    X, Y, W = own(scratch[0], member), own(scratch[1], member), own(scratch[2], member)
    _, K, L, T, channels, _, taps, _, chunk = sizes
    x_batch, x_row, paths_batch, paths_path = strides
    before = taps - ONE
    for task in range(first, last):
        # threads that write to the same rows slow each other down, hence one path per task
        bk, _, _, start, w = place(task, sizes)
        b, k = bk // K, bk % K
        row = k * channels + start
        for d in range(ZERO, w, LANES):
            part = min(w - d, LANES)
            transpose(weight, (row + d) * taps, taps, W, d * taps, LANES, F(1.0), part)
        clear(X, ZERO, ONE, ZERO, U(X.size))
        for t in range(ZERO, T, chunk):
            count = min(chunk, T - t)
            path = b * paths_batch + k * paths_path + t
            for d in range(ZERO, w, LANES):
                # vectors of these channels
                X0, x0 = d * (before + chunk), b * x_batch + start
                next_path, next_d = following(path, count, d, w)
                later = next_path, x0 + next_d
                X1 = X0 + before * LANES
                gather(x, x0 + d, x_row, paths, path, count, X, X1, w - d, later)
                fill(Y, load_first(bias, row + d, w - d), count)
                convolve(W, d * taps, X, X0, Y, count, taps)
                for i in range(count):
                    index = paths[path + i]
                    token = bk * L + ahead(paths, next_path + i)
                    fetch(y, token * channels + start + next_d, ONE)
                    if index >= 0:
                        v = load(Y, i * LANES)
                        at = (bk * L + U(index)) * channels + start + d
                        store_first(y, at, silu(v) if enabled else v, w - d)
                for i in range(ZERO, before * LANES, LANES):
                    store(X, X0 + i, load(X, X0 + count * LANES + i))
    restore_mode(mode)


@helper
def _load_slopes(
    dy: Any,
    at: Any,
    row: Any,
    paths: Any,
    path: Any,
    count: Any,
    Y: Any,
    G: Any,
    g: Any,
    enabled: Any,
    part: Any,
    later: Any,
) -> Any:
    """Write the gradients of `count` sums, and return their sum."""
    result = repeat(F(0.0))
    for i in range(count):
        fetch(dy, later[1] + ahead(paths, later[0] + i) * row, ONE)
        index = paths[path + i]
        slope = repeat(F(0.0))
        if index >= 0:
            slope = load_first(dy, at + U(index) * row, part)
            if enabled:
                v = load(Y, i * LANES)
                slope = slope * silu_slope(v, sigmoid(v))
        store(G, g + i * LANES, slope)
        result = result + slope
    return result


@helper
def _add_slopes(DW: Any, w: Any, X: Any, x: Any, G: Any, g: Any, count: Any, like: Any) -> None:
    """Add a chunk's share to the gradients of as many taps as `like` is long."""
    result = load_parts(DW, w, LANES, like)
    for i in range(ZERO, count * LANES, LANES):
        result = result + load_parts(X, x + i, LANES, like) * load(G, g + i)
    store_parts(DW, w, LANES, result)


@kernel
def conv_backward(frame: Any) -> None:
    """Gradients; those of weight and bias per batch element."""
    mode = flush_denormals()
    member, first, last = share(frame)
    inputs, paths, outputs, scratch, sizes, strides, enabled = arguments(frame, BACKWARD)
    x, weight, bias, dy = inputs
    dx, dweight, dbias = outputs
    X, Y, W = own(scratch[0], member), own(scratch[1], member), own(scratch[2], member)
    G, DW = own(scratch[3], member), own(scratch[4], member)
    _, K, L, T, channels, _, taps, _, chunk = sizes
    x_batch, x_row, paths_batch, paths_path = strides
    before = taps - ONE
    chunks = (T + chunk - ONE) // chunk
    fours = taps // FOUR * FOUR
    for task in range(first, last):
        b, _, _, start, w = place(task, sizes)
        clear(dx, b * L * channels + start, L, channels, w)
        for k in range(K):
            row = k * channels + start
            for d in range(ZERO, w, LANES):
                # the weights, and once more in reverse; then the gradients of weights and bias
                W0 = d * taps * TWO
                part = min(w - d, LANES)
                transpose(weight, (row + d) * taps, taps, W, W0, LANES, F(1.0), part)
                for tap in range(taps):
                    mirrored = load(W, W0 + (before - tap) * LANES)
                    store(W, W0 + (taps + tap) * LANES, mirrored)
            clear(DW, ZERO, ONE, ZERO, U(DW.size))
            clear(G, ZERO, ONE, ZERO, U(G.size))
            for reverse in range(chunks):
                t = (chunks - ONE - reverse) * chunk
                count = min(chunk, T - t)
                earlier = min(before, t)
                path = b * paths_batch + k * paths_path + t
                for d in range(ZERO, w, LANES):
                    part = w - d
                    X0, W0, DW0 = d * (before + chunk), d * taps * TWO, d * (taps + ONE)
                    next_path, next_d = following(path, -chunk, d, w)
                    at, x0 = start + d, b * x_batch + start
                    dx0, y0 = b * L * channels + at, (b * K + k) * L * channels + start
                    clear(X, X0, ONE, ZERO, (before - earlier) * LANES)
                    gather(
                        *(x, x0 + d, x_row, paths, path - earlier, earlier + count),
                        *(X, X0 + (before - earlier) * LANES, part),
                        (next_path - before, x0 + next_d),
                    )
                    fill(Y, load_first(bias, row + d, part), count)
                    convolve(W, W0, X, X0, Y, count, taps)
                    move(G, X0, X0 + count * LANES, before)
                    slopes = _load_slopes(
                        *(dy, y0 + d, channels, paths, path, count, Y, G, X0, enabled, part),
                        (next_path, y0 + next_d),
                    )
                    store(DW, DW0, load(DW, DW0) + slopes)
                    for tap in range(ZERO, fours * LANES, FOUR * LANES):
                        DW1 = DW0 + LANES + tap
                        _add_slopes(DW, DW1, X, X0 + tap, G, X0, count, PARTS_4)
                    for tap in range(fours * LANES, taps * LANES, LANES):
                        DW1 = DW0 + LANES + tap
                        _add_slopes(DW, DW1, X, X0 + tap, G, X0, count, PARTS_1)
                    fill(Y, repeat(F(0.0)), count)
                    convolve(W, W0 + taps * LANES, G, X0, Y, count, taps)
                    for i in range(count):
                        index = paths[path + i]
                        if index >= 0:
                            token = dx0 + U(index) * channels
                            v = load_first(dx, token, part) + load(Y, i * LANES)
                            store_first(dx, token, v, part)
            for d in range(ZERO, w, LANES):
                DW0 = d * (taps + ONE)
                store_first(dbias, (b * K + k) * channels + start + d, load(DW, DW0), w - d)
                for tap in range(taps):
                    v = load(DW, DW0 + (tap + ONE) * LANES)
                    at = ((b * K + k) * taps + tap) * channels + start + d
                    store_first(dweight, at, v, w - d)
    restore_mode(mode)
