"""The convolution along paths on a GPU: sizes and launches of the Triton kernels.

The kernels are in fused_kernels.py. The backward pass has two: one by steps, which writes the
gradients before the activation in the order of the steps, and one by tokens, which gathers them
from all paths through the inverted table. So every row has one writer, and results are bitwise
reproducible.

Sizes: B batch, K paths, L tokens, T steps, D channels, W taps.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vimamba_kernels import gpu_tasks
from vimamba_kernels.paths import saved_dtype

_BLOCK, _WARPS = 64, 4
# rows of a tile
_ROWS = 32
# programs per multiprocessor, limited by its registers
_OCCUPANCY, _SLOPES_OCCUPANCY = 8, 4


def _rows(taps: int) -> int:
    """Rows of a tile by steps: two of 16 bytes per thread if all taps' fit in the registers."""
    return _ROWS if taps <= 6 else _ROWS // 2


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, paths: Tensor | None, activation: str | None
) -> Tensor:
    """The output, in the dtype of `x`; arguments as the op's."""
    conv = _prepare(x, weight, bias, paths, activation)
    shape = (conv.batch, conv.sizes["K"], *x.shape[1:])
    y = gpu_tasks.new_rows(x, shape, paths, x.dtype)
    parts, items = conv.cut(_rows(weight.shape[2]), _OCCUPANCY)
    programs = parts * conv.sizes["K"] * conv.blocks
    _launch("conv_forward", programs, **conv.inputs, y=y, **items, **conv.sizes, **conv.flags)
    return y


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    paths: Tensor | None,
    activation: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, the latter two in float32; `grad` is that of the output."""
    conv = _prepare(x, weight, bias, paths, activation)
    sizes, flags = conv.sizes, conv.flags
    k, steps, taps = sizes["K"], sizes["T"], flags["W"]
    shape = (conv.batch, k, steps, sizes["D"])
    slopes = x.new_empty(shape, dtype=saved_dtype(x.dtype))
    # half as many, because weight gradients are accumulated for each
    parts, items = conv.cut(_rows(taps) // 2, _SLOPES_OCCUPANCY)
    sums = x.new_empty((parts, k, taps + 1, sizes["D"]), dtype=torch.float32)
    _launch(
        "conv_slopes",
        parts * k * conv.blocks,
        grad=grad.contiguous(),
        **conv.inputs,
        slopes=slopes,
        sums=sums,
        **items,
        **sizes,
        **flags,
    )
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    _launch(
        "conv_inputs",
        conv.batch * -(-sizes["L"] // _ROWS) * conv.blocks,
        slopes=slopes,
        weight=conv.inputs["weight"],
        inverse=gpu_tasks.invert_paths(conv.inputs["paths"], sizes["L"]),
        dx=dx,
        **sizes,
        W=taps,
        SHARED_PATHS=flags["SHARED_PATHS"],
        EVEN=flags["EVEN"],
        BLOCK=_BLOCK,
        ROWS=_ROWS,
    )
    total = sums.sum(0)
    return dx, total[:, :taps].flip(1).transpose(1, 2), total[:, taps]


class _Conv(NamedTuple):
    """One call's arguments as the kernels take them."""

    # tensors, or None
    inputs: dict[str, Any]
    sizes: dict[str, int]
    flags: dict[str, Any]
    batch: int
    # of channels
    blocks: int

    def cut(self, rows: int, occupancy: int) -> tuple[int, dict[str, int]]:
        """Number of parts to split the tiles of `rows` steps into, and a kernel's arguments."""
        items = self.batch * -(-self.sizes["T"] // rows)
        wanted = occupancy * gpu_tasks.processors(self.inputs["x"].device)
        per_program = max(1, items * self.sizes["K"] * self.blocks // wanted)
        return -(-items // per_program), {"items": items, "per_program": per_program, "ROWS": rows}


def _prepare(
    x: Tensor, weight: Tensor, bias: Tensor | None, paths: Tensor | None, activation: str | None
) -> _Conv:
    batch, length, channels = x.shape
    k, _, taps = weight.shape
    steps = length if paths is None else paths.shape[-1]
    gpu_tasks.check_row_sizes("x", max(steps, length), channels)
    return _Conv(
        inputs={
            "x": x.contiguous(),
            "weight": weight.contiguous(),
            "bias": None if bias is None else bias.contiguous(),
            "paths": gpu_tasks.prepare_paths(paths, length),
        },
        sizes={"K": k, "L": length, "T": steps, "D": channels},
        flags={
            "W": taps,
            "SILU": activation == "silu",
            "SHARED_PATHS": gpu_tasks.is_shared(paths),
            "EVEN": channels % _BLOCK == 0,
            "BLOCK": _BLOCK,
        },
        batch=batch,
        blocks=-(-channels // _BLOCK),
    )


def _launch(name: str, programs: int, **arguments: Any) -> None:
    gpu_tasks.launch(f"path_conv.fused_kernels.{name}", programs, warps=_WARPS, **arguments)
