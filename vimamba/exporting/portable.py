"""Our operators in terms of torch's own, for files that runtimes without vimamba read.

What remains is one operator, `vimamba::scan_steps`: the recurrence alone, over the steps of paths
that are gathered already. Each file format says how that is written in it.

Sizes: B batch, K paths, L tokens, T steps, D channels in G groups of W, N states.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vimamba.scan_orders import grid_of, path_function, scan_paths
from vimamba_kernels.path_conv.reference import causal_conv_reference
from vimamba_kernels.paths import compute_dtype, to_steps, to_tokens
from vimamba_kernels.selective_scan.chunked import linear_recurrence
from vimamba_kernels.selective_scan.projection import project_steps
from vimamba_kernels.selective_scan.reference import biased_steps, finish, per_path, softplus
from vimamba_kernels.ssd.chunked import ssd_chunked

# grids on which an order's function, traced with symbolic sizes, must give the order's paths
_GRIDS = ((6, 9), (9, 6), (8, 8), (7, 3), (4, 11))


@torch.library.custom_op("vimamba::scan_steps", mutates_args=())
def scan_steps(dt: Tensor, A: Tensor, write: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The selective scan of steps in order: what it reads from its states.

        h[t] = exp(dt[t] * A) * h[t - 1] + write[t] * B[t],    h[-1] = 0
        y[t] = sum over N of C[t] * h[t]

    Args:
        dt: Step sizes, (B, K, T, G, W).
        A: (K, G, W, N).
        write: Step sizes times inputs, (B, K, T, G, W).
        B: (B, K, T, G, N).
        C: (B, K, T, G, N).

    Returns:
        (B, K, T, G, W).
    """
    states = linear_recurrence(
        dt.unsqueeze(-1) * A.unsqueeze(1), write.unsqueeze(-1) * B.unsqueeze(-2)
    )
    return (states * C.unsqueeze(-2)).sum(-1)


@scan_steps.register_fake
def _scan_steps_fake(dt: Tensor, A: Tensor, write: Tensor, B: Tensor, C: Tensor) -> Tensor:
    return torch.empty_like(dt, memory_format=torch.contiguous_format)


def decompositions(*, any_size: bool) -> dict[Any, Any]:
    """Operators and what to write in their place, for `ExportedProgram.run_decompositions`.

    Args:
        any_size: Compute the scan orders' paths and the cells of adaptive pools from the image's
            size. Otherwise `vimamba::scan_paths` remains, whose sizes are then numbers.
    """
    operators = torch.ops.vimamba
    table = torch.export.default_decompositions()
    table[operators.selective_scan.default] = _selective_scan
    table[operators.causal_conv_along_paths.default] = _causal_conv_along_paths
    table[operators.ssd.default] = _ssd
    if any_size:
        table[operators.scan_paths.default] = _scan_paths
        table[torch.ops.aten._adaptive_avg_pool2d.default] = _adaptive_avg_pool2d
    return table


def computes_from_size(scan_order: str) -> bool:
    """Whether a scan order's function gives its paths for symbolic sizes, too.

    One that loops over rows in Python, recurses or looks a table up does not.
    """
    grids = [torch.empty(size, dtype=torch.float32, device="cpu") for size in _GRIDS]
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    try:
        program = torch.export.export(_Paths(scan_order), (grids[0],), dynamic_shapes=(sizes,))
        traced = program.module()
        pairs = zip(grids, _GRIDS, strict=True)
        return all(torch.equal(traced(grid), scan_paths(scan_order, *size)) for grid, size in pairs)
    except Exception:  # anybody's code met symbols in place of numbers: there is no end of errors
        return False


class _Paths(nn.Module):
    """A scan order as a module, of an input that has the size of the grid."""

    def __init__(self, scan_order: str) -> None:
        super().__init__()
        self.function = path_function(scan_order)

    def forward(self, grid: Tensor) -> Tensor:
        return self.function(grid.shape[0], grid.shape[1]).long()


def _scan_paths(like: Tensor, order: str, grid: Sequence[int] | None = None) -> Tensor:
    return path_function(order)(*grid_of(like, grid)).long()


def _adaptive_avg_pool2d(x: Tensor, output_size: list[int]) -> Tensor:
    rows, columns = (
        _pool_weights(size, count, x) for size, count in zip(x.shape[-2:], output_size, strict=True)
    )
    return rows @ x @ columns.T


def _pool_weights(size: int, count: int, like: Tensor) -> Tensor:
    """What each of `count` cells takes of `size` numbers in their mean, (count, size).

    Cell i goes from floor(i * size / count) to ceil((i + 1) * size / count).
    """
    cell = torch.arange(count, dtype=torch.int64, device=like.device)[:, None]
    start = cell * size // count
    end = ((cell + 1) * size + count - 1) // count
    place = torch.arange(size, dtype=torch.int64, device=like.device)
    inside = (place >= start) & (place < end)
    return inside.to(like.dtype) / (end - start)


def _causal_conv_along_paths(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    paths: Tensor | None = None,
    activation: str | None = None,
    backend: str = "auto",
) -> Tensor:
    return causal_conv_reference(x, weight, bias, paths, activation)


def _selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_weight: Tensor | None = None,
    delta_softplus: bool = False,
    paths: Tensor | None = None,
    merge: bool = True,
    backend: str = "auto",
) -> Tensor:
    dtype = compute_dtype(u)
    u_steps = to_steps(per_path(u, delta).to(dtype), paths)
    delta = project_steps(delta.to(dtype), delta_weight)
    dt = softplus(biased_steps(delta, delta_bias, paths), delta_softplus)
    groups = 1 if B.dim() == 4 else B.shape[2]
    B, C = (t.unsqueeze(2) if t.dim() == 4 else t for t in (B, C))
    B_steps, C_steps = (to_steps(t.transpose(2, 3).to(dtype), paths) for t in (B, C))
    y = torch.ops.vimamba.scan_steps(
        dt.unflatten(3, (groups, -1)),
        A.to(dtype).unflatten(1, (groups, -1)),
        (dt * u_steps).unflatten(3, (groups, -1)),
        B_steps,
        C_steps,
    ).flatten(3)
    if D is not None:
        y = y + D.to(dtype)[:, None] * u_steps
    return finish(to_tokens(y, paths, u.shape[-2]), z, merge, u.dtype)


def _ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: list[float] | None = None,
    initial_state: Tensor | None = None,
    paths: Tensor | None = None,
    merge: bool = True,
    return_state: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    options = (dt_bias, dt_softplus, dt_limit, initial_state, paths, merge)
    y, state = ssd_chunked(x, dt, A, B, C, D, z, *options)
    return y, state if return_state else state.new_empty((0,))
