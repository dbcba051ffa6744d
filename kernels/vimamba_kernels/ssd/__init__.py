"""State-space duality, Mamba-2's scan, along any number of paths: one operator, several backends.

`ssd` checks its arguments and calls `torch.ops.vimamba.ssd` (op.py), which models call directly.
reference.py is the definition; chunked.py computes the same by matrix products, fused.py by Triton
kernels and cpu.py by the compiled selective scan.
"""

import torch
from torch import Tensor

from vimamba_kernels.arguments import check_paths
from vimamba_kernels.ssd import op as _op  # noqa: F401  registers the operator
from vimamba_kernels.ssd.checks import check_arguments

__all__ = ["ssd"]


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] | None = None,
    initial_state: Tensor | None = None,
    paths: Tensor | None = None,
    merge: bool = True,
    return_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Mamba-2's scan (Dao and Gu 2024, arXiv:2405.21060) along K paths over the same L tokens.

    Path k visits the tokens paths[k, 0], paths[k, 1], ... The step size is s = dt + dt_bias, with
    `dt_softplus` its softplus, clamped to `dt_limit`. Each of the H heads of P channels has, in
    float32,

        h[t] = exp(s[t] * A) * h[t - 1] + s[t] * x[t] B[t]^T,    h[-1] = initial_state
        y[t] = h[t] C[t], plus D * x[t]

    In other words, `selective_scan` with the same decay for all channels and states of a head.

    Args:
        x: (B, L, H, P), shared by the paths, or (B, K, L, H, P); float64, float32, float16 or
            bfloat16.
        dt: (B, K, L, H). dt, B, C and z have the dtype of `x`.
        A: (K, H), normally negative. A, D, dt_bias and initial_state may have any floating dtype
            and are used in at least float32.
        B: (B, K, L, N), or (B, K, L, G, N) for G groups of H / G neighboring heads.
        C: Shaped as `B`.
        D: (K, H) or (K, H, P), the weight of the skip connection.
        z: (B, L, H, P); the output is multiplied by silu(z).
        dt_bias: (K, H), added to `dt`.
        dt_softplus: Whether dt + dt_bias passes through softplus (linear above 20).
        dt_limit: Lowest and highest step size.
        initial_state: (B, K, H, P, N); None is zero.
        paths: (K, T), or (B, K, T) with different paths for each sample; int32 or int64 in
            [-1, L), no token twice in a path. None visits all tokens in order. -1 is a zero token:
            x, dt, B and C are zero there, so the state decays, and the output is discarded.
        merge: Whether to return the sum over the paths.
        return_state: Whether to also return the state after the last step.
        backend: "triton" (on a GPU; up to 128 states in bfloat16 and 64 otherwise), "cpu" (compiled
            by numba; without limits), "chunked" or "reference" (PyTorch); "auto" uses
            the environment variable VIMAMBA_BACKEND or else the fastest one that can run.

    Returns:
        The output, (B, L, H, P), or (B, K, L, H, P) without `merge`, in the dtype of `x`. A token
        that a path never visits gets zero from that path. With `return_state` also the state
        after the last step, (B, K, H, P, N), float64 if `x` is and float32 otherwise.

    Raises:
        TypeError: An argument is not a tensor or has the wrong dtype.
        ValueError: A shape, a device, a path, a limit or the backend is invalid.
    """
    check_arguments(x, dt, A, B, C, D, z, dt_bias, dt_limit, initial_state, paths)
    if paths is not None:
        check_paths(paths, dt.shape[2])
    limits = None if dt_limit is None else list(dt_limit)
    options = (dt_bias, dt_softplus, limits, initial_state, paths, merge, return_state, backend)
    y, state = torch.ops.vimamba.ssd(x, dt, A, B, C, D, z, *options)
    return (y, state) if return_state else y
