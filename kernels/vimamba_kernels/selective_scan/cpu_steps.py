"""How the scan's numba kernels get the step sizes of a token: given, or projected from factors.

A projection multiplies the token's `rank` factors by the path's weights, which are copied to rows
of scratch memory, padded to a multiple of eight. The rank is zero if the sizes are given.
"""

from typing import Any

from vimamba_kernels.cpu_math import (
    FOUR,
    ONE,
    ROW,
    THREE,
    TWO,
    ZERO,
    U,
    clear,
    copy,
    fetch,
    helper,
    inlined,
    use_wide_vectors,
)

FIVE, SIX, SEVEN, EIGHT = U(5), U(6), U(7), U(8)


@helper
def padded(rank: Any) -> Any:
    """Number of scratch rows for a projection's weights."""
    return (rank + SEVEN) // EIGHT * EIGHT


@helper
def load_weights(
    weights: Any, k: Any, channels: Any, start: Any, rank: Any, W: Any, w: Any
) -> None:
    """Copy a path's weights for the channels from `start` to rows of `W`, followed by zeros.

    After the rows there is space for a token's factors, which are padded as well.
    """
    rows = padded(rank)
    clear(W, rank * ROW, rows - rank, ROW, w)
    clear(W, rows * ROW, ONE, ROW, rows)
    for d in range(w):
        for r in range(rank):
            W[r * ROW + d] = weights[(k * channels + start + d) * rank + r]


@helper
def fetch_steps(delta: Any, at: Any, start: Any, rank: Any, w: Any) -> None:
    """Prefetch what `load_steps` will read."""
    if rank == ZERO:
        fetch(delta, at + start, w)
    else:
        fetch(delta, at, rank)


@inlined
def load_steps(
    delta: Any, at: Any, start: Any, rank: Any, W: Any, S: Any, bias: Any, to: Any, w: Any
) -> None:
    """Write the sizes of a token, before softplus and with the bias, to row `to` of S.

    Args:
        delta: Sizes by channel, or factors.
        at: Offset of the token's row in delta.
        start: First channel.
        rank: Number of factors in a row, or zero.
        W: Weights, from `load_weights`.
        S: Has the rows `bias` and `to`.
        bias: Row of the bias in S.
        to: Row of the sizes in S.
        w: Number of channels.
    """
    use_wide_vectors()
    if rank == ZERO:
        for d in range(w):
            S[to + d] = delta[at + start + d] + S[bias + d]
    else:
        rows = padded(rank)
        factors = rows * ROW
        copy(delta, at, W, factors, rank)
        copy(S, bias, S, to, w)
        for r in range(ZERO, rows, EIGHT):
            f = factors + r
            f0, f1, f2, f3 = W[f], W[f + ONE], W[f + TWO], W[f + THREE]
            f += FOUR
            f4, f5, f6, f7 = W[f], W[f + ONE], W[f + TWO], W[f + THREE]
            q = r * ROW
            for d in range(w):
                v = f0 * W[q + d] + f1 * W[q + ROW + d]
                v += f2 * W[q + TWO * ROW + d] + f3 * W[q + THREE * ROW + d]
                v += f4 * W[q + FOUR * ROW + d] + f5 * W[q + FIVE * ROW + d]
                v += f6 * W[q + SIX * ROW + d] + f7 * W[q + SEVEN * ROW + d]
                S[to + d] += v
