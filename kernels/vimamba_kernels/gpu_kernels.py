"""What the Triton kernels of several operators share: path tables, the sigmoid.

Sizes: K paths, L tokens, T steps. A token is -1 for a zero token and for steps past the end.
"""

# In a kernel names stand for Triton's tensors, which have no types.
# ruff: noqa: ANN001, ANN201
# pyright: reportArgumentType=false, reportOperatorIssue=false

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + tl.exp2(-x * LOG2E))


@triton.jit
def tokens_at(path, t, T):
    """The tokens of steps `t`, any of which may be out of [0, T); without a path they are `t`."""
    real = (t >= 0) & (t < T)
    if path is None:
        tokens = tl.where(real, t, -1)
    else:
        tokens = tl.load(path + t, mask=real, other=-1).to(tl.int32)
    return tokens


@triton.jit
def invert_paths(paths, inverse, L, T, ROWS: tl.constexpr):
    """Put every step's number at its token's place in `inverse` (K, L)."""
    tiles = tl.cdiv(T, ROWS)
    k = tl.program_id(0) // tiles
    t = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    token = tokens_at(paths + k * T, t, T)
    tl.store(inverse + k * L + token, t, mask=token >= 0)
