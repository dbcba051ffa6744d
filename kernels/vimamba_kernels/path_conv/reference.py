"""The definition of the convolution along paths, and its gradients written out, in plain PyTorch.

Sizes: B batch, K paths, L tokens, T steps, D channels, W taps.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vimamba_kernels.paths import compute_dtype, to_steps, to_tokens


def causal_conv_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, paths: Tensor | None, activation: str | None
) -> Tensor:
    """Causal depthwise convolution along K paths; arguments as the op's.

    Computes in float64 if `x` is float64 and in float32 otherwise; differentiable twice by
    autograd.
    """
    _, y = _convolve(x, weight, bias, paths)
    y = F.silu(y) if activation == "silu" else y
    return to_tokens(y, paths, x.shape[1]).to(x.dtype).contiguous()


def causal_conv_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    paths: Tensor | None,
    activation: str | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight and bias; `grad` is that of the output."""
    padded, y = _convolve(x, weight, bias, paths)
    steps, taps = y.shape[2], weight.shape[2]
    g = to_steps(grad.to(y.dtype), paths)
    if activation == "silu":
        sigmoid = torch.sigmoid(y)
        g = g * sigmoid * (1 + y * (1 - sigmoid))
    if paths is not None:
        # a zero token has no output
        g = torch.where((paths >= 0).unsqueeze(-1), g, g.new_zeros(()))
    later = F.pad(g, (0, 0, 0, taps - 1))
    grad_x = torch.zeros_like(g)
    grad_weight = []
    for j in range(taps):
        lag = taps - 1 - j
        tap = weight[:, None, :, j].to(g.dtype)
        grad_x = grad_x + tap * later[:, :, lag : lag + steps]
        grad_weight.append((g * padded[:, :, j : j + steps]).sum((0, 2)))
    return (
        to_tokens(grad_x, paths, x.shape[1]).sum(1),
        torch.stack(grad_weight, dim=-1),
        None if bias is None else g.sum((0, 2)),
    )


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, paths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The tokens by step after W - 1 zeros, (B, K, W - 1 + T, D), and the sums (B, K, T, D)."""
    dtype = compute_dtype(x)
    taps = weight.shape[2]
    rows = x.unsqueeze(1).expand(-1, weight.shape[0], -1, -1).to(dtype)
    padded = F.pad(to_steps(rows, paths), (0, 0, taps - 1, 0))
    steps = padded.shape[2] - taps + 1
    weight = weight.to(dtype).unsqueeze(1)
    y = weight[..., 0] * padded[:, :, :steps]
    for j in range(1, taps):
        y = y + weight[..., j] * padded[:, :, j : j + steps]
    return padded, y if bias is None else y + bias.to(dtype).unsqueeze(1)
