"""Checks of the tree operators' arguments; messages name the argument and what is expected."""

import torch
from torch import Tensor

from vimamba_kernels.arguments import check_types, expect_shape, unwrapped


def check_edges(down: Tensor, right: Tensor) -> None:
    """Check dtypes, devices and shapes of the edges of a grid.

    Raises:
        TypeError: An argument is not a tensor or has the wrong dtype.
        ValueError: An argument has the wrong shape or device.
    """
    check_types({"down": down, "right": right}, {}, None, optional=())
    if right.dim() != 3 or right.shape[1] < 1:
        shape = tuple(right.shape)
        raise ValueError(f"right has shape {shape}; expected (B, H, W - 1) with at least one row")
    batch, height, width = right.shape[0], right.shape[1], right.shape[2] + 1
    expect_shape("down", down, "(B, H - 1, W)", (batch, height - 1, width))


def check_arguments(x: Tensor, weight: Tensor, parents: Tensor) -> None:
    """Check dtypes, devices and shapes of tokens on trees.

    Raises:
        TypeError: An argument is not a tensor or has the wrong dtype.
        ValueError: An argument has the wrong shape or device.
    """
    check_types({"x": x}, {"weight": weight}, None, optional=())
    if not isinstance(parents, Tensor):
        raise TypeError(f"parents is {type(parents).__name__}; expected a tensor")
    if parents.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"parents is {parents.dtype}; expected torch.int32 or torch.int64")
    if parents.device != x.device:
        raise ValueError(f"parents is on {parents.device}; expected {x.device}, as x is")
    if x.dim() != 3 or x.shape[1] < 1:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; expected (B, L, D) with at least one token"
        )
    expect_shape("weight", weight, "(B, L, D)", tuple(x.shape))
    expect_shape("parents", parents, "(B, L)", tuple(x.shape[:2]))


def check_bounds(parents: Tensor) -> None:
    """Check that entries are in [-1, L), which is enough for memory safety.

    Raises:
        ValueError: They are not.
    """
    if parents.numel() == 0:
        return
    low, high = (int(extreme) for extreme in torch.aminmax(parents))
    if low < -1 or high >= parents.shape[1]:
        expected = f"[-1, {parents.shape[1]})"
        raise ValueError(f"parents holds values from {low} to {high}; expected {expected}")


def check_parents(parents: Tensor) -> None:
    """Check that entries are in [-1, L) and that every token's ancestors end in a root.

    Raises:
        ValueError: They are not.
    """
    if torch.compiler.is_compiling() or parents.is_meta:
        return
    length = parents.shape[1]
    parents = unwrapped(parents).reshape(-1, length)
    check_bounds(parents)
    # the additional entry is the parent of the roots
    above = torch.cat([parents, parents.new_full((parents.shape[0], 1), -1)], dim=1).long()
    above = torch.where(above < 0, length, above)
    for _ in range(length.bit_length()):
        above = above.gather(1, above)
    astray = (above != length).nonzero()
    if len(astray):
        sample, token = astray[0].tolist()
        raise ValueError(f"parents[{sample}] lead from token {token} to no root; expected trees")
