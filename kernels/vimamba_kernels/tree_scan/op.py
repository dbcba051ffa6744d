"""The tree operators as torch operators: choice of the backend and autograd.

Autocast does not affect them, because products of many weights are summed.

`vimamba::grid_tree` and `vimamba::tree_sum` are the ones to call. The latter is composed of
`tree_sum_forward`, whose gradient is the same operator in the other direction, so it has
derivatives of any order. torch.func and forward mode use the reference.

Sizes: B batch, L tokens, D channels, H and W grid.
"""

from typing import Any

import torch
from torch import Tensor

from vimamba_kernels.backends import choose, cpu_obstacle
from vimamba_kernels.registration import must_be_composed, register_vmap
from vimamba_kernels.tree_scan import cpu
from vimamba_kernels.tree_scan.checks import check_arguments, check_edges
from vimamba_kernels.tree_scan.reference import at_parents, tree_sum_reference
from vimamba_kernels.tree_scan.spanning import grid_tree_reference

# slowest last
BACKENDS = ("cpu", "reference")

_SUM = {"cpu": cpu.tree_sum, "reference": tree_sum_reference}
_TREE = {"cpu": cpu.grid_tree, "reference": grid_tree_reference}


def choose_backend(backend: str, x: Tensor, name: str = "x") -> str:
    """The backend selected by `backend`, the environment and `x`; see `choose`."""
    return choose(backend, BACKENDS, lambda one: cpu_obstacle(name, x) if one == "cpu" else None)


_library = torch.library.Library("vimamba", "FRAGMENT")
_library.define(
    'tree_sum(Tensor x, Tensor weight, Tensor parents, bool upward, str backend="auto") -> Tensor',
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    'grid_tree(Tensor down, Tensor right, str backend="auto") -> Tensor',
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl(_library, "tree_sum", "CompositeImplicitAutograd")
def _tree_sum(
    x: Tensor, weight: Tensor, parents: Tensor, upward: bool, backend: str = "auto"
) -> Tensor:
    if must_be_composed((x, weight)):
        check_arguments(x, weight, parents)
        choose_backend(backend, x)
        return tree_sum_reference(x, weight, parents, upward)
    return torch.ops.vimamba.tree_sum_forward(x, weight, parents, upward, backend)


@torch.library.custom_op(
    "vimamba::tree_sum_forward",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor parents, bool upward, str backend) -> Tensor",
)
def _forward(x: Tensor, weight: Tensor, parents: Tensor, upward: bool, backend: str) -> Tensor:
    check_arguments(x, weight, parents)
    # without autograd, because an operator's output must not be a view of its input
    y = _SUM[choose_backend(backend, x)](x.detach(), weight.detach(), parents, upward)
    return y.clone() if y.data_ptr() == x.data_ptr() else y


@_forward.register_fake
def _forward_fake(x: Tensor, weight: Tensor, parents: Tensor, upward: bool, backend: str) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, weight, parents, ctx.upward, ctx.backend = inputs
    ctx.save_for_backward(weight, parents, output)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    weight, parents, y = ctx.saved_tensors
    arguments = (weight, parents, not ctx.upward, ctx.backend)
    grad_x = torch.ops.vimamba.tree_sum(grad.contiguous(), *arguments)
    grad_weight = None
    if ctx.needs_input_grad[1]:
        child, parent = (y, grad_x) if ctx.upward else (grad_x, y)
        grad_weight = (child * at_parents(parent, parents)).to(weight.dtype)
    return grad_x, grad_weight, None, None, None


_forward.register_autograd(_gradient, setup_context=_setup)

register_vmap(_library, "tree_sum", ("x", "weight", "parents"))


@torch.library.impl(_library, "grid_tree", "CompositeImplicitAutograd")
def _grid_tree(down: Tensor, right: Tensor, backend: str = "auto") -> Tensor:
    return torch.ops.vimamba.grid_tree_forward(down.detach(), right.detach(), backend)


@torch.library.custom_op(
    "vimamba::grid_tree_forward",
    mutates_args=(),
    schema="(Tensor down, Tensor right, str backend) -> Tensor",
)
def _tree(down: Tensor, right: Tensor, backend: str) -> Tensor:
    check_edges(down, right)
    return _TREE[choose_backend(backend, right, "right")](down, right)


@_tree.register_fake
def _tree_fake(down: Tensor, right: Tensor, backend: str) -> Tensor:
    size = (right.shape[0], right.shape[1] * down.shape[2])
    return torch.empty(size, dtype=torch.int64, device=right.device)


register_vmap(_library, "grid_tree", ("down", "right"))
