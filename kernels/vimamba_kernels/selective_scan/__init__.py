"""The selective scan along any number of paths: one operator, several backends.

`selective_scan` checks its arguments and calls `torch.ops.vimamba.selective_scan` (op.py), which
models call directly. reference.py is the definition; chunked.py, cpu.py and fused.py compute the
same results faster. `selective_scan_step` (step.py) processes one token at a time.
"""

from typing import Literal, overload

import torch
from torch import Tensor

from vimamba_kernels.arguments import check_paths
from vimamba_kernels.selective_scan import op as _op  # noqa: F401  registers the operators
from vimamba_kernels.selective_scan.checks import check_arguments
from vimamba_kernels.selective_scan.step import selective_scan_step

__all__ = ["selective_scan", "selective_scan_step"]


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_weight: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    paths: Tensor | None = None,
    merge: bool = True,
    return_state: Literal[False] = False,
    backend: str = "auto",
) -> Tensor: ...


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_weight: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    paths: Tensor | None = None,
    merge: bool = True,
    return_state: Literal[True],
    backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_weight: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    paths: Tensor | None = None,
    merge: bool = True,
    return_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective scan (Gu and Dao 2023, arXiv:2312.00752) along K paths over the same L tokens.

    Path k visits the tokens paths[k, 0], paths[k, 1], ... The step size, in float32, is
    dt = delta + delta_bias, or delta @ delta_weight^T + delta_bias; with `delta_softplus`, its
    softplus:

        h[t] = exp(dt[t] * A) * h[t - 1] + dt[t] * B[t] * u[t],    h[-1] = initial_state
        y[t] = sum over N of C[t] * h[t], plus D * u[t]

    Inputs and outputs stay at the tokens' positions, so every order costs the same.

    Equivalents of other implementations' arguments: for samples of different lengths, pass
    (B, K, T) paths padded with -1 (a returned state has decayed over these steps). For several
    sequences in one row (`seq_idx`, `cu_seqlens`), use one row of the batch per sequence, because
    the state is not reset within a path. If B or C is the same for all tokens, expand it to the
    shape below. A is real, because no vision model uses a complex A.

    Args:
        u: (B, L, D), shared by the paths, or (B, K, L, D); float64, float32, float16 or bfloat16.
        delta: (B, K, L, D), or its factor (B, K, L, R) with `delta_weight`. delta, B, C, z and
            delta_weight have the dtype of `u`.
        A: (K, D, N), normally negative. A, D, delta_bias and initial_state may have any floating
            dtype and are used in at least float32.
        B: (B, K, L, N), or (B, K, G, L, N) for G groups of D / G neighboring channels.
        C: Shaped as `B`.
        D: (K, D), the weight of the skip connection.
        z: (B, L, D); the output is multiplied by silu(z).
        delta_bias: (K, D), added to `delta`.
        delta_weight: (K, D, R), multiplied with `delta` in float32. On a CPU and in PyTorch this is
            a separate matrix product, and its gradients are two more.
        delta_softplus: Whether dt passes through softplus (linear above 20).
        initial_state: (B, K, D, N); None is zero. A sequence may be split anywhere: pass the last
            state of one part as the initial state of the next.
        paths: (K, T), or (B, K, T) with different paths for each sample; int32 or int64 in
            [-1, L), no token twice in a path. None visits all tokens in order. -1 is a zero token:
            u, delta, B and C are zero there, so the state decays, and the output is discarded.
        merge: Whether to return the sum over the paths. States are never summed.
        return_state: Whether to also return the state after the last step.
        backend: "triton" (on a GPU), "cpu" (compiled by numba), "chunked" or "reference" (PyTorch);
            "auto" uses the environment variable VIMAMBA_BACKEND, or else the fastest that can run.

    Returns:
        The output, (B, L, D), or (B, K, L, D) without `merge`, in the dtype of `u`. A token that a
        path never visits gets zero from that path. With `return_state` also the state after the
        last step, (B, K, D, N), float64 if `u` is and float32 otherwise.

    Raises:
        TypeError: An argument is not a tensor or has the wrong dtype.
        ValueError: A shape, a device, a path or the backend is invalid.
    """
    tensors = (u, delta, A, B, C, D, z, delta_bias, delta_weight)
    check_arguments(*tensors, paths, initial_state)
    if paths is not None:
        check_paths(paths, u.shape[-2])
    options = (delta_softplus, paths, merge, backend)
    if initial_state is None and not return_state:
        return torch.ops.vimamba.selective_scan(*tensors, *options)
    scan = torch.ops.vimamba.selective_scan_with_state
    y, state = scan(*tensors, *options, initial_state)
    return (y, state) if return_state else y
