"""Shared by the Triton kernels of several operators: path tables, softplus, SiLU, gates.

Sizes: B batch, K paths, L tokens, T steps. A token is -1 for a zero token and for steps past the
end.
"""

# Names in a kernel are Triton tensors, which have no types.
# ruff: noqa: ANN001, ANN201, ANN202
# pyright: reportArgumentType=false, reportOperatorIssue=false

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _log1p(e):
    """log(1 + e) for e in [0, 1], fitted at Chebyshev nodes; relative error 3.2e-7 in float32."""
    p = -0.00833649754 * e + 0.0433708499
    p = p * e - 0.106677904
    p = p * e + 0.176754933
    p = p * e - 0.244704696
    p = p * e + 0.332711867
    p = p * e - 0.499971261
    p = p * e + 0.999999775
    return e * p


@triton.jit
def softplus(x):
    """log(1 + exp(x)); in float32 this equals x above 20."""
    return tl.maximum(x, 0.0) + _log1p(tl.exp2(-tl.abs(x) * LOG2E))


@triton.jit
def softplus_and_slope(x):
    """Softplus and its derivative, the sigmoid."""
    e = tl.exp2(-tl.abs(x) * LOG2E)
    log = _log1p(e)
    # 1 / (1 + e), without a division
    inverse = tl.exp2(-log * LOG2E)
    return tl.maximum(x, 0.0) + log, tl.where(x < 0.0, e, 1.0) * inverse


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + tl.exp2(-x * LOG2E))


@triton.jit
def silu(x):
    """SiLU, x times its sigmoid, in float32."""
    x = x.to(tl.float32)
    return x * sigmoid(x)


@triton.jit
def silu_slope(x):
    """Derivative of SiLU in float32."""
    x = x.to(tl.float32)
    share = sigmoid(x)
    return share * (1.0 + x * (1.0 - share))


@triton.jit
def tokens_at(path, t, T):
    """The tokens of steps `t`, which may be outside [0, T); without a path they are `t`."""
    real = (t >= 0) & (t < T)
    if path is None:
        tokens = tl.where(real, t, -1)
    else:
        tokens = tl.load(path + t, mask=real, other=-1).to(tl.int32)
    return tokens


@triton.jit(do_not_specialize=["L", "T"])
def invert_paths(paths, inverse, L, T, ROWS: tl.constexpr):
    """Store every step's index at its token in `inverse`, a row of L for each path."""
    tiles = tl.cdiv(T, ROWS)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    t = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    token = tokens_at(paths + row * T, t, T)
    tl.store(inverse + row * L + token, t, mask=token >= 0)


@triton.jit
def gate_backward(grad, ungated, z, dz, K, size, BLOCK: tl.constexpr):
    """Gradient of z (B, size) from `grad` and `ungated` (B, K, size), summed over the K paths."""
    blocks = tl.cdiv(size, BLOCK)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    i = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = i < size
    product = tl.zeros((BLOCK,), tl.float32)
    for k in range(K):
        place = (b * K + k) * size + i
        row = tl.load(grad + place, mask=mask, other=0.0).to(tl.float32)
        product += row * tl.load(ungated + place, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(z + b * size + i, mask=mask, other=0.0)
    tl.store(dz + b * size + i, product * silu_slope(gate), mask=mask)
