"""Mamba-3's scan on a GPU: launches of the Triton kernels.

B and C are biased and rotated by kernels of fused_rotation.py; the recurrence is that of Mamba-2's
kernels, given the decay of every step. by_token.py combines them.

Sizes: B batch, K paths, L tokens, T steps, R ranks, G groups, H heads of P channels, N states.
"""

import math
from typing import Any

import torch
from torch import Tensor

from vimamba_kernels import gpu_tasks
from vimamba_kernels.ssd import fused as ssd_fused
from vimamba_kernels.ssd.fused import obstacle

__all__ = ["backward", "forward", "obstacle", "rotate", "rotate_gradients"]

_WARPS = 4
# of a tile: tokens, and steps of a cumulative sum
_ROWS, _STEPS = 16, 32
# of Mamba-2's scan
_OPTIONS: dict[str, Any] = {"dt_softplus": False, "dt_limit": None}


def forward(
    x: Tensor,
    weight: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    first: Tensor | None,
    paths: Tensor | None,
    merge: bool,
    return_state: bool,
) -> tuple[Tensor, Tensor]:
    """The output, in the dtype of `x`, and the last state in float32, empty unless requested.

    Arguments as in `recurrence_by_token`.
    """
    tensors = (x, weight, log_decay, B, C, None, None, None, first)
    options = {"paths": paths, "merge": merge, "return_state": return_state}
    return ssd_fused.forward(*tensors, **_OPTIONS, **options)


def backward(
    grad: Tensor,
    grad_state: Tensor,
    x: Tensor,
    weight: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    first: Tensor | None,
    paths: Tensor | None,
    merge: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of the six tensors, None for absent tensors; `grad_state` is empty for zeros."""
    tensors = (x, weight, log_decay, B, C, None, None, None, first)
    last = grad_state if grad_state.numel() else None
    options = {"paths": paths, "merge": merge}
    *grads, _D, _z, _bias, dfirst = ssd_fused.backward(grad, last, *tensors, **_OPTIONS, **options)
    return *grads, dfirst


def rotate(
    B: Tensor,
    C: Tensor,
    B_bias: Tensor | None,
    C_bias: Tensor | None,
    angles: Tensor,
    dt: Tensor,
    first: Tensor | None,
    paths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The results of `rotate_by_token`: b, c, their products, and the last angle."""
    summed = _lay_angles(angles, dt, first, paths)
    sizes, by_rank = _sizes(B, B_bias, C_bias, angles, dt)
    b, c = (B.new_empty(by_rank) for _ in range(2))
    batch, k, length, ranks, heads, _ = by_rank
    scores = B.new_empty((batch, k, length, heads, ranks, ranks), dtype=torch.float32)
    _launch(
        "rotate_rows",
        _programs(sizes, batch),
        B=B.contiguous(),
        C=C.contiguous(),
        **_biases(B_bias, C_bias),
        angles=summed[0],
        b=b,
        c=c,
        scores=scores,
        **sizes,
    )
    return b, c, scores, summed[1]


def rotate_gradients(
    grad_b: Tensor,
    grad_c: Tensor,
    grad_scores: Tensor,
    grad_last: Tensor,
    B: Tensor,
    C: Tensor,
    B_bias: Tensor | None,
    C_bias: Tensor | None,
    angles: Tensor,
    dt: Tensor,
    first: Tensor | None,
    paths: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Gradients of the seven tensors, None for absent tensors."""
    summed, _last = _lay_angles(angles, dt, first, paths)
    sizes, by_rank = _sizes(B, B_bias, C_bias, angles, dt)
    batch, k, length, ranks, heads, states = by_rank
    rows = {"B": B.contiguous(), "C": C.contiguous()}
    biases = _biases(B_bias, C_bias)
    strides = {"B": 1, "C": ranks}
    found: dict[str, Tensor | None] = {}
    dangles = 0
    for name, other, grad in (("B", "C", grad_b), ("C", "B", grad_c)):
        bias = biases[f"{name}_bias"]
        tiles = -(-length // _ROWS)
        parts = (batch, k, tiles, heads, ranks, states)
        dbias = None if bias is None else B.new_empty(parts, dtype=torch.float32)
        by_angle = (*by_rank[:5], angles.shape[-1])
        share = B.new_empty(by_angle, dtype=torch.float32)
        found[name] = torch.empty_like(rows[name])
        _launch(
            "rotate_gradients",
            _programs(sizes, batch),
            grad=grad.contiguous(),
            grad_scores=grad_scores.contiguous(),
            own=rows[name],
            other=rows[other],
            own_bias=bias,
            other_bias=biases[f"{other}_bias"],
            angles=summed,
            down=found[name],
            dbias=dbias,
            dangles=share,
            own_stride=strides[name],
            other_stride=strides[other],
            **sizes,
        )
        dangles = dangles + share.sum(3)
        found[f"{name}_bias"] = None if dbias is None else dbias.sum((0, 2))
    assert isinstance(dangles, Tensor)
    for name, bias in (("B_bias", B_bias), ("C_bias", C_bias)):
        if bias is not None:
            dbias = found[name]
            assert dbias is not None
            found[name] = dbias.view_as(bias)
    grads = _finish_angles(dangles, grad_last, angles, dt, first, paths)
    return found["B"], found["C"], found["B_bias"], found["C_bias"], *grads


def _launch(name: str, programs: int, **arguments: Any) -> None:
    gpu_tasks.launch(f"mamba3.fused_rotation.{name}", programs, warps=_WARPS, **arguments)


def _programs(sizes: dict[str, Any], batch: int) -> int:
    return batch * sizes["K"] * -(-sizes["L"] // _ROWS) * sizes["groups"]


def _biases(B_bias: Tensor | None, C_bias: Tensor | None) -> dict[str, Tensor | None]:
    named = {"B_bias": B_bias, "C_bias": C_bias}
    return {name: None if t is None else t.contiguous() for name, t in named.items()}


def _sizes(
    B: Tensor, B_bias: Tensor | None, C_bias: Tensor | None, angles: Tensor, dt: Tensor
) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Arguments of the rotation kernels, and the shape of their result."""
    batch, k, length, heads = dt.shape
    states = B.shape[-1]
    ranks = B.shape[3] if B.dim() == 6 else 1
    gpu_tasks.check_row_sizes("B", length, ranks * heads * states)
    sizes = {
        "K": k,
        "L": length,
        "R": ranks,
        "groups": B.shape[-2] if B.dim() > 4 else 1,
        "H": heads,
        "N": states,
        "S": angles.shape[-1],
        "ROWS": _ROWS,
        "PAIRS": _padded(-(-states // 2)),
    }
    return sizes, (batch, k, length, ranks, heads, states)


def _padded(size: int) -> int:
    """The next power of two."""
    return 1 << max(0, size - 1).bit_length()


def _angle_sizes(angles: Tensor, dt: Tensor, paths: Tensor | None) -> dict[str, Any]:
    """Arguments of the kernels of the angles."""
    length, heads = dt.shape[2:]
    return {
        "angles": angles.contiguous(),
        "dt": dt.contiguous(),
        "paths": gpu_tasks.prepare_paths(paths, length),
        "tables": 1 if paths is None else math.prod(paths.shape[:-1]),
        "L": length,
        "T": length if paths is None else paths.shape[-1],
        "H": heads,
        "heads": angles.shape[3],
        "S": angles.shape[-1],
        "ROWS": _STEPS,
        "SB": _padded(angles.shape[-1]),
    }


def _lay_angles(
    angles: Tensor, dt: Tensor, first: Tensor | None, paths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The angles by token, (B, K, L, H, S), zero at tokens that a path skips; and the last."""
    sizes = _angle_sizes(angles, dt, paths)
    pairs = angles.shape[-1]
    out = gpu_tasks.new_rows(dt, (*dt.shape, pairs), paths)
    last = dt.new_empty((*dt.shape[:2], dt.shape[3], pairs), dtype=torch.float32)
    first = None if first is None else first.contiguous()
    _launch("lay_angles", math.prod(last.shape[:3]), first=first, out=out, last=last, **sizes)
    return out, last


def _finish_angles(
    grad: Tensor,
    grad_last: Tensor,
    angles: Tensor,
    dt: Tensor,
    first: Tensor | None,
    paths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of the rates of the angles, of dt, and of the angle before the first step."""
    sizes = _angle_sizes(angles, dt, paths)
    dangles = gpu_tasks.new_rows(grad, grad.shape, paths)
    ddt = gpu_tasks.new_rows(dt, dt.shape, paths)
    dfirst = None if first is None else torch.empty_like(grad_last, dtype=torch.float32)
    _launch(
        "finish_angles",
        math.prod(grad_last.shape[:3]),
        grad=grad.contiguous(),
        grad_last=grad_last.contiguous(),
        dangles=dangles,
        ddt=ddt,
        dfirst=dfirst,
        **sizes,
    )
    return dangles if angles.shape[3] > 1 else dangles.sum(3, keepdim=True), ddt, dfirst
