"""The gate that multiplies a scan's output by silu(z)."""

import torch
from torch import Tensor


def gate_gradient(grad: Tensor, z: Tensor, ungated: Tensor, merge: bool) -> Tensor:
    """Gradient of z in float32.

    Args:
        grad: Gradient of the gated output, with the paths in dimension 1 unless `merge`.
        z: Without a path dimension.
        ungated: The output before the gate, shaped as `grad`.
        merge: Whether the paths were summed.
    """
    z = z.float()
    sigmoid = torch.sigmoid(z)
    product = grad.float() * ungated.float()
    return (product if merge else product.sum(1)) * (sigmoid * (1 + z * (1 - sigmoid)))
