"""Numba kernels of the convolution along paths; cpu.py drives them.

A task handles `w` channels of one batch element; forward it goes through one path, backward through
all of them one after another. The rows of the last W steps are in a ring buffer, where W is rounded
up to a power of two with zero taps. The backward pass starts from the end: a token's gradient is a
sum over the W steps that begin with its own.
Arguments in the frame:

    inputs   x, weight (K, D, taps), bias; backward: the output's gradient
    paths    (K, T) int32, (B, K, T), or (1, T) with a path stride of 0
    outputs  y; backward: gradients of x, weight (B, K, W, D) and bias (B, K, D)
    scratch  per thread: rows of a step; weights (backward: and their gradients); ring of x;
             ring of gradients
    sizes    B, K, L, T, D, 1, W, channels of a task, taps
    strides  of x: batch, token; of paths: batch, path
    enabled  whether SiLU follows
"""

from typing import Any

from numba import boolean, float32, int32, types, uint64

from vimamba_kernels.cpu_math import (
    FOUR,
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
    fetch,
    helper,
    kernel,
    own,
    place,
    share,
    sigmoid,
    use_wide_vectors,
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


FORWARD, BACKWARD = _arguments(3, 1, 3), _arguments(4, 3, 4)
BIAS, SUM, DX, DBIAS = ZERO, ROW, TWO * ROW, THREE * ROW


@helper
def load(x: Any, batch_start: Any, index: Any, x_row: Any, ring: Any, slot: Any, w: Any) -> None:
    """Write a token's row to the ring; zeros for a zero token."""
    if index >= 0:
        copy(x, batch_start + U(index) * x_row, ring, slot * ROW, w)
    else:
        clear(ring, slot * ROW, ONE, ROW, w)


@helper
def forget(ring: Any, step: Any, given: Any, taps: Any, w: Any) -> None:
    """Zero the row of a step that only padded taps read, since zero times NaN is NaN."""
    if given < taps:
        clear(ring, (step & (taps - ONE)) * ROW, ONE, ROW, w)


@helper
def load_taps(
    weight: Any, first: Any, given: Any, weights: Any, stride: Any, taps: Any, w: Any
) -> None:
    """Copy the channels' taps to rows by distance back, starting with the token's own."""
    clear(weights, ZERO, taps, stride, w)
    for d in range(w):
        for j in range(given):
            weights[j * stride + d] = weight[first + (d + ONE) * given - ONE - j]


@helper
def convolve(rows: Any, weights: Any, stride: Any, ring: Any, t: Any, taps: Any, w: Any) -> None:
    """The sum of step t over the taps and the bias."""
    wrap = taps - ONE
    for d in range(w):
        rows[SUM + d] = rows[BIAS + d]
    for j in range(ZERO, taps, FOUR):
        # step t - j is at (t - j) modulo W
        r0 = (t + taps - j & wrap) * ROW
        r1 = (t + taps - j - ONE & wrap) * ROW
        r2 = (t + taps - j - TWO & wrap) * ROW
        r3 = (t + taps - j - THREE & wrap) * ROW
        q0 = j * stride
        q1, q2, q3 = q0 + stride, q0 + TWO * stride, q0 + THREE * stride
        for d in range(w):
            near = weights[q0 + d] * ring[r0 + d] + weights[q1 + d] * ring[r1 + d]
            far = weights[q2 + d] * ring[r2 + d] + weights[q3 + d] * ring[r3 + d]
            rows[SUM + d] += near + far


@kernel
def conv_forward(frame: Any) -> None:
    """Output."""
    use_wide_vectors()
    member, first, last = share(frame)
    inputs, paths, outputs, scratch, sizes, strides, enabled = arguments(frame, FORWARD)
    x, weight, bias = inputs
    (y,) = outputs
    rows, weights, ring = own(scratch[0], member), own(scratch[1], member), own(scratch[2], member)
    _, K, L, T, channels, _, taps, _, given = sizes
    x_batch, x_row, paths_batch, paths_path = strides
    wrap = taps - ONE
    for task in range(first, last):
        # threads that write to the same rows slow each other down, hence one path per task
        bk, _, _, start, w = place(task, sizes)
        b, k = bk // K, bk % K
        path = b * paths_batch + k * paths_path
        x0 = b * x_batch + start
        copy(bias, k * channels + start, rows, BIAS, w)
        load_taps(weight, (k * channels + start) * given, given, weights, ROW, taps, w)
        clear(ring, ZERO, taps, ROW, w)
        for t in range(T):
            later = ahead(paths, path + t)
            fetch(x, x0 + later * x_row, w)
            fetch(y, (bk * L + later) * channels + start, w)
            index = paths[path + t]
            load(x, x0, index, x_row, ring, t & wrap, w)
            forget(ring, t + taps - given, given, taps, w)
            if index >= 0:
                convolve(rows, weights, ROW, ring, t, taps, w)
                y0 = (bk * L + U(index)) * channels + start
                for d in range(w):
                    v = rows[SUM + d]
                    y[y0 + d] = v * sigmoid(v, enabled)


@kernel
def conv_backward(frame: Any) -> None:
    """Gradients; those of weight and bias per batch element."""
    use_wide_vectors()
    member, first, last = share(frame)
    inputs, paths, outputs, scratch, sizes, strides, enabled = arguments(frame, BACKWARD)
    x, weight, bias, dy = inputs
    dx, dweight, dbias = outputs
    rows, weights = own(scratch[0], member), own(scratch[1], member)
    ring, slopes = own(scratch[2], member), own(scratch[3], member)
    _, K, L, T, channels, _, taps, _, given = sizes
    x_batch, x_row, paths_batch, paths_path = strides
    wrap = taps - ONE
    # a tap's weights and their gradient are neighbors
    PAIR = TWO * ROW
    for task in range(first, last):
        b, _, _, start, w = place(task, sizes)
        x0, dx0 = b * x_batch + start, b * L * channels + start
        clear(dx, dx0, L, channels, w)
        for k in range(K):
            path = b * paths_batch + k * paths_path
            copy(bias, k * channels + start, rows, BIAS, w)
            clear(rows, DBIAS, ONE, ROW, w)
            load_taps(weight, (k * channels + start) * given, given, weights, PAIR, taps, w)
            clear(weights, ROW, taps, PAIR, w)
            clear(ring, ZERO, taps, ROW, w)
            clear(slopes, ZERO, taps, ROW, w)
            for t in range(T - min(T, given - ONE), T):
                load(x, x0, paths[path + t], x_row, ring, t & wrap, w)
            for back in range(T):
                t = T - ONE - back
                earlier = behind(paths, path + t)
                fetch(x, x0 + earlier * x_row, w)
                fetch(dx, dx0 + earlier * channels, w)
                fetch(dy, ((b * K + k) * L + earlier) * channels + start, w)
                # the oldest step that t reads; without padded taps it shares the slot of step t + 1
                if t + ONE >= given:
                    forget(ring, t + ONE, given, taps, w)
                    oldest = t + ONE - given
                    index = paths[path + oldest]
                    load(x, x0, index, x_row, ring, oldest & wrap, w)
                else:
                    clear(ring, (t + ONE & wrap) * ROW, ONE, ROW, w)
                forget(slopes, t + given, given, taps, w)
                index = paths[path + t]
                here = (t & wrap) * ROW
                if index < 0:
                    clear(slopes, here, ONE, ROW, w)
                    continue
                convolve(rows, weights, PAIR, ring, t, taps, w)
                y0 = ((b * K + k) * L + U(index)) * channels + start
                for d in range(w):
                    v = rows[SUM + d]
                    s = sigmoid(v, enabled)
                    g = dy[y0 + d] * s * (F(1.0) + v * (F(1.0) - s))
                    slopes[here + d] = g
                    rows[DBIAS + d] += g
                    rows[DX + d] = F(0.0)
                for j in range(ZERO, taps, FOUR):
                    g0 = (t + j & wrap) * ROW
                    g1 = (t + j + ONE & wrap) * ROW
                    g2 = (t + j + TWO & wrap) * ROW
                    g3 = (t + j + THREE & wrap) * ROW
                    q0 = j * PAIR
                    q1, q2, q3 = q0 + PAIR, q0 + TWO * PAIR, q0 + THREE * PAIR
                    for d in range(w):
                        v = ring[here + d]
                        near = weights[q0 + d] * slopes[g0 + d] + weights[q1 + d] * slopes[g1 + d]
                        far = weights[q2 + d] * slopes[g2 + d] + weights[q3 + d] * slopes[g3 + d]
                        weights[q0 + ROW + d] += v * slopes[g0 + d]
                        weights[q1 + ROW + d] += v * slopes[g1 + d]
                        weights[q2 + ROW + d] += v * slopes[g2 + d]
                        weights[q3 + ROW + d] += v * slopes[g3 + d]
                        rows[DX + d] += near + far
                token = dx0 + U(index) * channels
                for d in range(w):
                    dx[token + d] += rows[DX + d]
            copy(rows, DBIAS, dbias, (b * K + k) * channels + start, w)
            for j in range(taps):
                to = ((b * K + k) * taps + j) * channels + start
                copy(weights, j * PAIR + ROW, dweight, to, w)
