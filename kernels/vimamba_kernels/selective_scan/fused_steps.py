"""Shared by the selective scan's Triton kernels: program indices, rows and weights.

A program handles one batch element and one block of channels. It follows the path table and reads
and writes rows of channels at the tokens' positions. The rows of several steps are loaded before
the arithmetic, because a store in between would delay later loads.

Sizes: B batch, K paths, L tokens, T steps, D channels, N states. A group of `width` neighboring
channels shares B and C. `token` is -1 for a zero token and for steps past the end.
"""

# Names in a kernel are Triton tensors, which have no types, and tuples have a fixed length.
# ruff: noqa: ANN001, ANN201, ANN202, RUF005
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

import triton
import triton.language as tl

from vimamba_kernels.gpu_kernels import silu, tokens_at

# steps, channels and ranks of one matrix product
CHUNK = tl.constexpr(16)
WIDTH = tl.constexpr(32)
SLICE = tl.constexpr(16)


@triton.jit
def locate(D, width, segments, path_programs, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    """Indices of this program: batch element, first path, segment, block and channels."""
    per_group = tl.cdiv(width, BLOCK)
    blocks = D // width * per_group
    program = tl.program_id(0)
    block = program % blocks
    segment = program // blocks % segments
    rest = program // blocks // segments
    within = block % per_group * BLOCK + tl.arange(0, BLOCK)
    # a constant mask is optimized away
    inside = tl.full((BLOCK,), 1, tl.int32) > 0 if EVEN else within < width
    channels = block // per_group * width + within
    b = (rest // path_programs).to(tl.int64)
    return b, rest % path_programs, segment, block, blocks, block // per_group, channels, inside


@triton.jit
def token_at(paths, t, last, TAIL: tl.constexpr):
    """The token of step t."""
    token = t
    if paths is not None:
        token = tl.load(paths + t, mask=t < last, other=-1) if TAIL else tl.load(paths + t)
        token = token.to(tl.int32)
    elif TAIL:
        token = tl.where(t < last, t, -1)
    return token


@triton.jit
def load_tokens(path, t, last, TAIL: tl.constexpr, UNROLL: tl.constexpr):
    """The tokens of UNROLL steps from t, or from an earlier step if fewer remain."""
    if not TAIL:
        t = tl.minimum(t, last - UNROLL)
    tokens = ()
    for j in tl.static_range(UNROLL):
        tokens = tokens + (token_at(path, t + j, last, TAIL),)
    return tokens


@triton.jit
def mask_by(mask, value):
    """`mask` if the number `value` is not negative; the interpreter cannot mask by a scalar."""
    return mask & (tl.full(mask.shape, value, tl.int32) >= 0)


@triton.jit
def load_row(pointers, token, D, inside, SKIPS: tl.constexpr):
    """A row of channels; zeros if there is no token."""
    mask = mask_by(inside, token) if SKIPS else inside
    return tl.load(pointers + token * D, mask=mask, other=0.0)


@triton.jit
def locate_rows(scratch, BLOCK: tl.constexpr):
    """The program's CHUNK rows of delta, if delta is projected."""
    return scratch + tl.program_id(0).to(tl.int64) * CHUNK * BLOCK


@triton.jit
def locate_delta(delta, scratch, bk, L, D, d, RANK: tl.constexpr, BLOCK: tl.constexpr):
    """Arguments of `load_delta`."""
    if RANK == 0:
        rows = delta + bk * L * D + d
    else:
        rows = locate_rows(scratch, BLOCK) + tl.arange(0, BLOCK)
    return rows


@triton.jit
def load_delta(rows, token, t, D, inside, SKIPS: tl.constexpr, RANK: tl.constexpr, BLOCK):
    """A token's row of delta or, if delta is projected, the row of step t written by `project`."""
    if RANK == 0:
        row = load_row(rows, token, D, inside, SKIPS)
    else:
        row = tl.load(rows + t % CHUNK * BLOCK)
    return row


@triton.jit
def load_weights(pointer, token, n, N: tl.constexpr, SKIPS: tl.constexpr):
    """B or C of one token; zeros if there is no token."""
    mask = mask_by(n < N, token) if SKIPS else n < N
    return tl.load(pointer + token * N + n, mask=mask, other=0.0)


@triton.jit
def load_parameter(pointer, place, inside):
    """A row of an optional parameter in float32."""
    row = 0.0
    if pointer is not None:
        row = tl.load(pointer + place, mask=inside, other=0.0).to(tl.float32)
    return row


@triton.jit
def store_row(value, old, gate, place, mask, k, K, total, ungated, out, MERGE: tl.constexpr):
    """Store a row of one path as MERGE specifies."""
    if MERGE == "atomic":
        tl.atomic_add(total + place, value, mask=mask, sem="relaxed")
    else:
        if MERGE == "own":
            value += old
            tl.store(total + place, value, mask=mask if out is None else mask_by(mask, K - 2 - k))
            mask = mask_by(mask, k - (K - 1))
        if out is not None:
            if ungated is not None:
                tl.store(ungated + place, value, mask=mask)
            if gate is not None:
                value *= silu(gate)
            tl.store(out + place, value, mask=mask)


@triton.jit
def padded(rank: tl.constexpr):
    """Number of ranks to which the weights of a projection are padded."""
    return (rank + SLICE - 1) // SLICE * SLICE


@triton.jit
def _load_factors(factors, tokens, ranks, RANK: tl.constexpr):
    mask = (tokens >= 0)[:, None] & (ranks < RANK)[None, :]
    return tl.load(factors + (tokens * RANK)[:, None] + ranks[None, :], mask=mask, other=0.0)


@triton.jit
def project(
    delta, projection, scratch, path, t, last, bk, k, L, block, blocks, RANK: tl.constexpr, BLOCK
):
    """Compute delta of the CHUNK steps from t, a multiple of CHUNK: the factors times the weights.

    The rows are written to memory of the program, which stays in its caches, because each thread
    has fragments of rows of the product, whereas a step needs a whole row.
    """
    factors = delta + bk * L * RANK
    weights = projection + (k * blocks + block) * BLOCK * padded(RANK)
    rows = locate_rows(scratch, BLOCK)
    steps = tl.arange(0, CHUNK)
    tokens = tokens_at(path, t + steps, last)
    # the rows may still be read
    tl.debug_barrier()
    for part in tl.range(BLOCK // WIDTH, num_stages=1):
        d = part * WIDTH + tl.arange(0, WIDTH)
        sums = tl.zeros((CHUNK, WIDTH), tl.float32)
        for r in tl.range(0, padded(RANK), SLICE, num_stages=1):
            ranks = r + tl.arange(0, SLICE)
            left = _load_factors(factors, tokens, ranks, RANK)
            right = tl.load(weights + ranks[:, None] + (d * padded(RANK))[None, :])
            sums = tl.dot(left, right, sums, input_precision="ieee")
        tl.store(rows + (steps * BLOCK)[:, None] + d[None, :], sums)
    tl.debug_barrier()
