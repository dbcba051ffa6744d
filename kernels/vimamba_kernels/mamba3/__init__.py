"""Mamba-3's scan along any number of paths: one operator, several backends.

`mamba3_scan` checks its arguments and calls `torch.ops.vimamba.mamba3_scan` (op.py), which models
call directly. reference.py is the definition; chunked.py converts it to a scan like Mamba-2's,
computed by matrix products; by_token.py computes the latter by Triton kernels of this folder
(fused.py, fused_rotation.py) and of Mamba-2's scan.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vimamba_kernels.arguments import check_paths
from vimamba_kernels.mamba3 import op as _op  # noqa: F401  registers the operator
from vimamba_kernels.mamba3.checks import Inputs, Mamba3States, check_arguments

__all__ = ["Mamba3States", "mamba3_scan"]


def mamba3_scan(
    x: Tensor,
    dt: Tensor,
    log_decay: Tensor,
    trap: Tensor,
    B: Tensor,
    C: Tensor,
    angles: Tensor,
    D: Tensor | None = None,
    *,
    z: Tensor | None = None,
    B_bias: Tensor | None = None,
    C_bias: Tensor | None = None,
    mimo_x: Tensor | None = None,
    mimo_z: Tensor | None = None,
    mimo_o: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_eps: float = 1e-5,
    initial_states: Sequence[Tensor] | None = None,
    paths: Tensor | None = None,
    merge: bool = True,
    return_states: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Mamba3States]:
    """Mamba-3's scan (Lahoti et al. 2026, arXiv:2603.15569) along K paths over the same L tokens.

    Path k visits the tokens paths[k, 0], paths[k, 1], ...; each of the H heads of P channels has,
    in float32,

        angle[t] = angle[t - 1] + pi * tanh(angles[t]) * dt[t]
        b[t], c[t] = B[t] + B_bias, C[t] + C_bias, pairs (2i, 2i + 1) rotated by angle[t, i]
        h[t] = exp(log_decay[t]) * (h[t - 1] + (1 - l[t]) * dt[t] * x[t - 1] b[t - 1]^T)
               + l[t] * dt[t] * x[t] b[t]^T,    l = sigmoid(trap)
        y[t] = (h[t] c[t] + D * x[t]) * silu(z[t])

    With R ranks (MIMO), B and C have R vectors per step, and the inputs are x * mimo_x[r], whose
    contributions to the state are summed. Each of the R outputs has a separate gate,
    silu(z * mimo_z[r]), and their sum weighted by mimo_o[r] is the result. With `norm_weight`, an
    output is divided by its root mean square over P before the gate.

    Args:
        x: (B, L, H, P), shared by the paths, or (B, K, L, H, P); float64, float32, float16 or
            bfloat16.
        dt: (B, K, L, H), step sizes >= 0. dt, log_decay, trap, angles and all arguments that do not
            depend on the token may have any floating dtype and are used in at least float32.
        log_decay: (B, K, L, H), normally a negative number times dt.
        trap: (B, K, L, H).
        B: (B, K, L, N), or (B, K, L, G, N) for G groups of H / G neighboring heads, or
            (B, K, L, R, G, N) with ranks. B, C and z have the dtype of `x`.
        C: Shaped as `B`.
        angles: (B, K, L, H, S) for S <= N / 2 pairs, or (B, K, L, 1, S), shared by the heads; the
            other states are not rotated.
        D: (K, H), the weight of the skip connection.
        z: (B, L, H, P).
        B_bias: (K, H, N), or (K, H, R, N) with ranks.
        C_bias: Shaped as `B_bias`.
        mimo_x: (K, H, R, P), like mimo_o required with ranks and not allowed without.
        mimo_z: (K, H, R, P), required with ranks and `z`.
        mimo_o: (K, H, R, P).
        norm_weight: (K, H, P), multiplied with the normalized outputs.
        norm_eps: Added to the mean square.
        initial_states: The states returned by an earlier call; None is zero.
        paths: (K, T), or (B, K, T) with different paths for each sample; int32 or int64 in
            [-1, L), no token twice in a path. None visits all tokens in order. -1 is a zero token,
            whose inputs are all zero: state and angle do not change and the output is discarded.
            The next step has no contribution of a previous step, since x is zero there.
        merge: Return the sum over the paths.
        return_states: Also return the state after the last step.
        backend: "triton" (on a GPU; up to 128 states in bfloat16 and 64 otherwise), "chunked" or
            "reference" (PyTorch); "auto" uses the environment variable VIMAMBA_BACKEND, or
            else the fastest one that can run.

    Returns:
        The output, (B, L, H, P), or (B, K, L, H, P) without `merge`, in the dtype of `x`. A token
        that a path never visits gets zero from that path. With `return_states` also `Mamba3States`,
        float64 if `x` is and float32 otherwise.

    Raises:
        TypeError: An argument is not a tensor or has the wrong dtype.
        ValueError: A shape, a device, a path or the backend is wrong, or an argument is missing.
    """
    if initial_states is not None and not isinstance(initial_states, Sequence):
        found = type(initial_states).__name__
        raise TypeError(f"initial_states is {found}; expected four tensors, as in Mamba3States")
    if initial_states is not None and len(initial_states) != 4:
        raise ValueError(f"initial_states has {len(initial_states)} tensors; expected 4")
    weights = (D, z, B_bias, C_bias, mimo_x, mimo_z, mimo_o, norm_weight)
    inputs = Inputs(x, dt, log_decay, trap, B, C, angles, *weights, *(initial_states or ()))
    check_arguments(inputs, paths)
    if paths is not None:
        check_paths(paths, dt.shape[2])
    y, *states = torch.ops.vimamba.mamba3_scan(
        *inputs, norm_eps, paths, merge, return_states, backend
    )
    return (y, Mamba3States(*states)) if return_states else y
