"""Shared by the Triton kernels of Mamba-2's scan: tiles, decays and products.

Steps are split into chunks of Q. Tiles are steps by the P channels of a head (at most 64 at a time)
or by the N states. A state is stored as (N, P).

Sizes: B batch, K paths, L tokens, T steps, H heads of P channels, G groups of heads, N states.
"""

# Names in a kernel are Triton tensors, which have no types.
# ruff: noqa: ANN001, ANN201
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

import triton
import triton.language as tl

from vimamba_kernels.gpu_kernels import sigmoid

# in the form that every version of Triton prints
INTERPRETED = tl.constexpr(not isinstance(sigmoid, triton.JITFunction))


@triton.jit
def product(a, b, total, HALF: tl.constexpr, PRECISION: tl.constexpr):
    """A matrix product plus `total`, unless that is None.

    The factors are bfloat16, or float32 and multiplied with PRECISION; the sum is float32.
    """
    if total is None:
        # `dot` of Triton before 3.4 does not accept None
        total = tl.zeros((a.shape[0], b.shape[1]), tl.float32)
    if HALF:
        a = a.to(tl.bfloat16)
        b = b.to(tl.bfloat16)
        if INTERPRETED:
            # the interpreter would multiply the bits of bfloat16 as integers
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        result = tl.dot(a, b, total)
    else:
        result = tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision=PRECISION)
    return result


@triton.jit
def columns(first, limit: tl.constexpr, BLOCK: tl.constexpr):
    """Indices from `first` of a block of columns, and a mask of those below `limit`."""
    i = first + tl.arange(0, BLOCK)
    # a constant mask is optimized away
    inside = tl.full((BLOCK,), 1, tl.int32) > 0 if limit % BLOCK == 0 else i < limit
    return i, inside


@triton.jit
def load_rows(pointer, index, stride, column, inside):
    """Rows by index; -1 gives a row of zeros."""
    mask = (index >= 0)[:, None] & inside[None, :]
    return tl.load(pointer + (index * stride)[:, None] + column[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(pointer, index, stride, column, inside, value):
    """Store rows where `load_rows` would read them."""
    mask = (index >= 0)[:, None] & inside[None, :]
    tl.store(pointer + (index * stride)[:, None] + column[None, :], value, mask=mask)


@triton.jit
def cells_of(n, real_n, p, real_p, P: tl.constexpr):
    """Offsets of the elements of a state (N, P) in memory, and a mask of those that exist."""
    return n[:, None] * P + p[None, :], real_n[:, None] & real_p[None, :]


@triton.jit
def load_steps(sizes, wholes, parts, place, Q: tl.constexpr):
    """The values that `lay_sizes` stored for a chunk of one head, and the decays to its end.

    Step sizes; inclusive cumulative log2 of the decays, in two parts; decay from every step to the
    end of the chunk; and decay of the whole chunk.
    """
    i = place + tl.arange(0, Q)
    whole, part = tl.load(wholes + i), tl.load(parts + i)
    whole_end, part_end = tl.load(wholes + place + Q - 1), tl.load(parts + place + Q - 1)
    left = tl.exp2((whole_end - whole) + (part_end - part))
    return tl.load(sizes + i), whole, part, left, tl.exp2(whole_end + part_end)


@triton.jit
def whole_decays(whole):
    """Two to the power of a difference of whole numbers, (t, s); undefined for t < s."""
    # as the bits of a float, which is cheaper than an exponential
    biased = (whole + 127)[:, None] - whole[None, :]
    return (tl.minimum(tl.maximum(biased, 0), 254) << 23).to(tl.float32, bitcast=True)


@triton.jit
def lower(x, Q: tl.constexpr):
    """`x` (Q, Q) with zeros above the diagonal."""
    t = tl.arange(0, Q)
    return tl.where(t[:, None] >= t[None, :], x, 0.0)
