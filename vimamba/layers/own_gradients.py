"""Operations whose gradients take autograd many passes over memory, and here on a CPU a few.

Sizes: N batch, K paths, L tokens, C channels; D and O channels before and after a product.
"""

from typing import Any

import timm.layers
import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from vimamba_kernels.registration import must_be_composed
from vimamba_kernels.selective_scan.projection import flushed_denormals


def multiply_paths(tokens: Tensor, weights: Tensor) -> Tensor:
    """Tokens (N, K, L, D) and the weights (K, O, D) of linear layers to (N, K, L, O)."""
    if _only_autograd_differentiates(tokens, weights):
        return _PathProduct.apply(tokens, weights)  # type: ignore[no-any-return]
    return tokens @ weights.transpose(1, 2)


class RmsNorm(timm.layers.RmsNorm):
    """timm's, for the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (N, L, C) to the same shape."""
        if not torch.jit.is_scripting():
            weight = self.weight
            if _only_autograd_differentiates(x, weight):
                return _RmsNorm.apply(x, weight, self.eps)  # type: ignore[no-any-return]
        # what timm's does without apex; TorchScript has no `super`
        return rms_norm(x, self.normalized_shape, self.weight, self.eps)


def _only_autograd_differentiates(x: Tensor, weight: Tensor) -> bool:
    """Whether a gradient is wanted on a CPU, and no transform, cast or graph is involved.

    Half precision is left to torch's operators, which compute in float32.
    """
    return (
        type(x) is Tensor  # torch.fx records the calls of its proxies
        and torch.is_grad_enabled()
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.float64)
        and weight.requires_grad
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and not must_be_composed((x, weight))
    )


class _PathProduct(torch.autograd.Function):
    """Autograd would compute the gradients from copies of the weights, one for each image.

    It would also multiply denormal numbers, which scans' gradients turn into, and which take an
    x86 over 100 cycles each.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(tokens, weights)
        return tokens @ weights.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor]:
        (grad,) = grad_outputs
        tokens, weights = ctx.saved_tensors
        with flushed_denormals():
            of_weights = (grad.transpose(2, 3) @ tokens).sum(0)
            return grad @ weights if ctx.needs_input_grad[0] else None, of_weights


def _scale(x: Tensor, eps: float) -> Tensor:
    """What RMSNorm multiplies each token by, (N, L, 1)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.rsqrt(norm.square() / x.shape[-1] + eps)


class _RmsNorm(torch.autograd.Function):
    """With the scale r and a = grad * weight, the gradient is r * a - x * r**3 * mean of x * a."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return (x * _scale(x, eps)).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grad_outputs
        x, weight = ctx.saved_tensors
        # computed again, so that second derivatives see it
        r = _scale(x, ctx.eps)
        products = grad * x
        shares = (products @ weight).unsqueeze(-1) * (r.pow(3) / x.shape[-1])
        of_x = torch.addcmul(grad * weight * r, x, shares, value=-1)
        return of_x, r.flatten() @ products.flatten(0, -2), None
