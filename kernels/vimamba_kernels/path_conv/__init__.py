"""Causal depthwise convolution along any number of paths: one operator, several backends.

`causal_conv_along_paths` checks its arguments and calls
`torch.ops.vimamba.causal_conv_along_paths` (op.py), which models call directly. reference.py is
the definition; cpu.py and fused.py (Triton) compute the same results faster.
"""

import torch
from torch import Tensor

from vimamba_kernels.arguments import check_paths
from vimamba_kernels.path_conv import op as _op  # noqa: F401  registers the operators
from vimamba_kernels.path_conv.checks import check_arguments

__all__ = ["causal_conv_along_paths"]


def causal_conv_along_paths(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    paths: Tensor | None = None,
    activation: str | None = None,
    backend: str = "auto",
) -> Tensor:
    """Causal depthwise convolution (as in Mamba, arXiv:2312.00752) of L tokens along K paths.

    Path k visits the tokens paths[k, 0], paths[k, 1], ...; at the token of step t it gives, in
    float32,

        activation(bias[k] + sum over j < W of weight[k, :, W - 1 - j] * x[paths[k, t - j]])

    with zeros before the first step. Inputs and outputs stay at the tokens' positions, so every
    order costs the same.

    There is no state: to continue a sequence, prepend its last W - 1 tokens to the next ones. To
    separate several sequences in one row, put W - 1 entries of -1 between them in the path.

    Args:
        x: (B, L, D); float64, float32, float16 or bfloat16.
        weight: (K, D, W); the last tap is that of the token itself. `weight` and `bias` may have
            any floating dtype and are used in at least float32.
        bias: (K, D).
        paths: (K, T), or (B, K, T) with different paths for each sample; int32 or int64 in
            [-1, L), no token twice in a path. None visits all tokens in order. -1 is a zero token,
            whose output is discarded.
        activation: "silu" or None.
        backend: "triton" (on a GPU), "cpu" (compiled by numba) or "reference" (PyTorch); "auto"
            uses the environment variable VIMAMBA_BACKEND or else the fastest one that can run.

    Returns:
        (B, K, L, D) in the dtype of `x`. A token that a path never visits gets zero from that
        path.

    Raises:
        TypeError: An argument is not a tensor or has the wrong dtype.
        ValueError: A shape, a device, a path, the activation or the backend is invalid.
    """
    check_arguments(x, weight, bias, paths, activation)
    if paths is not None:
        check_paths(paths, x.shape[1])
    return torch.ops.vimamba.causal_conv_along_paths(x, weight, bias, paths, activation, backend)
