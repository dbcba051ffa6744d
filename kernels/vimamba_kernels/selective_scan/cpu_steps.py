"""How the scan's numba kernels get the step sizes of a token: given, or projected from factors.

A projection multiplies the token's `rank` factors by the path's weights. The rank is zero if the
sizes are given.
"""

from typing import Any

from vimamba_kernels.cpu_math import (
    FOUR,
    ONE,
    THREE,
    TWO,
    ZERO,
    F,
    fetch,
    helper,
    inlined,
    transpose,
)
from vimamba_kernels.cpu_vectors import LANES, load, load_first, repeat, store

# before the vectors of weights: the bias of the step size, and the skip's factor
BIAS, SKIP, WEIGHTS = ZERO, LANES, TWO * LANES


@helper
def constants_at(d: Any, rank: Any) -> Any:
    """Where the vectors of the channels from `d` start."""
    return d * (rank + TWO)


@helper
def load_constants(weights: Any, bias: Any, D: Any, row: Any, rank: Any, W: Any, w: Any) -> None:
    """Copy what the steps of `w` channels have in common to vectors, padded with zeros.

    Args:
        weights: (K * D, rank).
        bias: (K * D,).
        D: (K * D,).
        row: The path's first channel in these.
        rank: Number of factors, or zero.
        W: For 16 channels at a time, vectors of their bias, their skips and each factor's weights.
        w: Number of channels.
    """
    for d in range(ZERO, w, LANES):
        at, part = constants_at(d, rank), min(w - d, LANES)
        store(W, at + BIAS, load_first(bias, row + d, part))
        store(W, at + SKIP, load_first(D, row + d, part))
        transpose(weights, (row + d) * rank, rank, W, at + WEIGHTS, LANES, F(1.0), part)


@helper
def fetch_steps(delta: Any, at: Any, d: Any, rank: Any) -> None:
    """Prefetch what `step_size` will read."""
    fetch(delta, at + (d if rank == ZERO else ZERO), ONE)


@inlined
def step_size(delta: Any, at: Any, d: Any, rank: Any, W: Any, first: Any, part: Any) -> Any:
    """The sizes of a token for 16 channels, before softplus and with the bias.

    Args:
        delta: Sizes by channel, or factors.
        at: Offset of the token's row in delta.
        d: First channel.
        rank: Number of factors in a row, or zero.
        W: From `load_constants`.
        first: Where these channels start in W.
        part: Channels from `d` that exist.
    """
    s0 = load(W, first + BIAS)
    if rank == ZERO:
        return s0 + load_first(delta, at + d, part)
    # four sums, since one would wait for the result of each operation
    s1, s2, s3 = repeat(F(0.0)), repeat(F(0.0)), repeat(F(0.0))
    q = first + WEIGHTS
    fours = rank // FOUR * FOUR
    for r in range(at, at + fours, FOUR):
        s0 = s0 + load(W, q) * delta[r]
        s1 = s1 + load(W, q + LANES) * delta[r + ONE]
        s2 = s2 + load(W, q + TWO * LANES) * delta[r + TWO]
        s3 = s3 + load(W, q + THREE * LANES) * delta[r + THREE]
        q += FOUR * LANES
    for r in range(at + fours, at + rank):
        s0 = s0 + load(W, q) * delta[r]
        q += LANES
    return (s0 + s1) + (s2 + s3)
