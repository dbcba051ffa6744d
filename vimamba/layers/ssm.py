"""Parameters of every selective-scan mixer, and their initialization.

Sizes: B batch, L tokens, K paths, D inner channels, N states, R rank of the step size.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

import vimamba_kernels  # noqa: F401  registers torch.ops.vimamba.selective_scan
from vimamba.layers.hooks import is_hooked


class StepProjection(nn.ModuleList):
    """The linear layers from R to D, one for each path, that compute the step sizes.

    Their weights are passed to the scan, which does the multiplication, unless a layer is more than
    a weight: adapters, quantized and hooked layers are called.
    """

    def forward(self, dt: Tensor) -> tuple[Tensor, Tensor | None]:
        """Arguments `delta` and `delta_weight` of the scan for the factors dt (B, K, L, R).

        Returns:
            `dt` itself and the weights (K, D, R), or the step sizes (B, K, L, D) and None.
        """
        # TorchScript cannot inspect its modules, and calls them
        if not torch.jit.is_scripting():
            weights = stacked_weights(self)
            if weights is not None:
                return dt, weights
        deltas = []
        for k, layer in enumerate(self):
            deltas.append(layer(dt[:, k]))
        return torch.stack(deltas, dim=1), None


def stacked_weights(layers: nn.ModuleList) -> Tensor | None:
    """The weights (K, O, I) of K layers from I to O features, or None.

    None if a layer is more than a weight, and must be called.
    """
    # a list: torch 2.7 does not compile a generator here
    if all([_is_only_a_weight(layer) for layer in layers]):  # noqa: C419
        return torch.stack([cast(nn.Linear, layer).weight for layer in layers])
    return None


def _is_only_a_weight(layer: nn.Module) -> bool:
    """Whether `layer` is a plain matrix product (no bias, hooks or adapters)."""
    weight = layer._parameters.get("weight")
    return (
        type(layer) is nn.Linear
        # no subclass, whose product may differ; export replaces it by fake tensors
        and type(weight) in (nn.Parameter, FakeTensor)
        and weight is not None
        and weight.is_floating_point()
        and layer._parameters.get("bias") is None
        and not is_hooked(layer)
    )


def scan_parameters(module: nn.Module) -> set[str]:
    """Names of the SSM parameters (A_log, D, dt_bias), which must not be decayed."""
    names = (name for name, _ in module.named_parameters())
    return {name for name in names if name.rpartition(".")[2] in ("A_log", "D", "dt_bias")}


def init_state_decay_(A_log: Tensor) -> None:
    """ln(1..N) in every channel: the real part of S4D (Gu et al. 2022, arXiv:2206.11893)."""
    if A_log.is_meta:  # nothing to initialize, and the operations are slow there
        return
    states = torch.arange(1, A_log.shape[-1] + 1, device=A_log.device, dtype=torch.float32)
    with torch.no_grad():
        A_log.copy_(states.log().expand(A_log.shape))


def init_step_bias_(
    dt_bias: Tensor, *, dt_min: float = 1e-3, dt_max: float = 0.1, floor: float = 1e-4
) -> None:
    """Make softplus(dt_bias) log-uniform in [dt_min, dt_max] (Mamba, arXiv:2312.00752, 3.6)."""
    if dt_bias.is_meta:
        return
    with torch.no_grad():
        log_step = torch.empty_like(dt_bias, dtype=torch.float32)
        log_step.uniform_(math.log(dt_min), math.log(dt_max))
        step = log_step.exp().clamp(min=floor)
        dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus


def init_step_projection_(projection: nn.Linear) -> None:
    """Uniform in +-R^-0.5, which keeps the variance of the step size."""
    bound = projection.in_features**-0.5
    nn.init.uniform_(projection.weight, -bound, bound)
