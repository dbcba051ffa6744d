"""The selective scan on a GPU: sizes and launches of the Triton kernels.

The kernels are in fused_forward.py and fused_backward.py.

There are three ways to split the work, chosen by the number of programs that they give:

1. A program scans all K paths of its channels, one after another, and accumulates them in rows that
   only it accesses. For many chains.
2. One program per path. They accumulate by float32 atomics or, if the result must be reproducible,
   in separate rows that are summed afterward. For few chains.
3. In addition, paths are split into segments. A first pass finds what each segment adds to the
   state and how much it decays the state; these are chained; then each segment starts from its
   true state. For few, long chains.

The backward pass needs the state every few steps. One or two states are saved by the forward pass;
more are recomputed. All other results that combine several programs are written as partial sums,
which are added in a fixed order.

If delta is projected, the forward pass computes it in the kernels, by matrix products over 16 steps
whose rows stay in the caches. The backward pass recomputes it and writes its gradient to memory.

Sizes: B batch, K paths, L tokens, T steps, D channels, N states.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vimamba_kernels import gpu_tasks
from vimamba_kernels.arguments import check_paths, known_complete, narrow_paths
from vimamba_kernels.paths import saved_dtype
from vimamba_kernels.selective_scan.fused_plan import (
    Plan,
    backward_block,
    choose_plan,
    forward_block,
    programs_at_once,
    saves_states,
    states_shape,
)
from vimamba_kernels.selective_scan.projection import project_gradients

# segments start at multiples of it, and it is a multiple of every group of steps
_ALIGNMENT = 16
# steps and ranks of a matrix product in a kernel
_PRODUCT = 16


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_weight: Tensor | None,
    delta_softplus: bool,
    paths: Tensor | None,
    merge: bool,
    *,
    save: bool,
    plan: Plan | None = None,
    first: Tensor | None = None,
    last: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and with `save` what `backward` takes: the ungated output and states, or empty.

    Arguments as the operator's; `plan` says how to split the work, by default that of
    `choose_plan`. `first` is the initial state, (B, K, N, D) in float32; `last`, of the same shape,
    receives the state after the last step. Like everything here, call it without autograd.
    """
    scan = _prepare(u, delta, A, B, C, D, delta_bias, delta_weight, delta_softplus, paths)
    plan = plan or scan.plan(forward_block(scan.states, scan.width), backward=False)
    merging = merge and scan.k > 1
    target = _target(scan, plan, merging, u.dtype)
    # the kernel gates the outputs that it completes
    finished = target.out is not None and not target.scratch
    gate = z.contiguous() if z is not None and finished else None
    keeps = save and z is not None
    ungated = None
    if keeps and finished and target.out is not None:
        ungated = scan.new_rows(target.out.shape, saved_dtype(u.dtype))
    states = scan.new(scan.states_shape if save and saves_states(scan.states) else (0,))
    starts = _enter_segments(scan, plan, start=first) if plan.segments > 1 else first
    ends = states if states.numel() else None, starts, last
    _scan_forward(scan, plan, target, gate, ungated, *ends)
    y = target.sum()
    if z is not None and gate is None:
        ungated = y.to(saved_dtype(u.dtype)) if keeps else None
        y = y * (F.silu(z.float()) if merge else F.silu(z.float()).unsqueeze(1))
    shape = scan.rows_shape[:1] + scan.rows_shape[2:] if merge else scan.rows_shape
    kept = scan.new((0,), saved_dtype(u.dtype)) if ungated is None else _shaped(ungated, shape)
    return _shaped(y.to(u.dtype), shape), kept, states


def backward(
    grad: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_weight: Tensor | None,
    delta_softplus: bool,
    paths: Tensor | None,
    merge: bool,
    ungated: Tensor,
    states: Tensor,
    *,
    plan: Plan | None = None,
    first: Tensor | None = None,
    grad_last: Tensor | None = None,
    grad_first: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Gradients of the nine tensors in order; None for absent arguments.

    `grad` is that of the output. `ungated` and `states` are what `forward` saved for the same
    arguments; if it saved nothing, it is run again. `plan` and `first` are as in `forward`,
    `grad_last` is the gradient of the last state, and `grad_first` receives that of the first.
    """
    tensors = (u, delta, A, B, C, D, z, delta_bias, delta_weight)
    if (z is not None and ungated.numel() == 0) or (
        saves_states(A.shape[2]) and states.numel() == 0
    ):
        options = (delta_softplus, paths, merge)
        _, ungated, states = forward(*tensors, *options, save=True, first=first)
    scan = _prepare(u, delta, A, B, C, D, delta_bias, delta_weight, delta_softplus, paths)
    plan = plan or scan.plan(backward_block(scan.states, scan.width), backward=True)
    gate = None if z is None else z.contiguous()
    grad = grad.contiguous()
    if states.numel() == 0:
        states = _recompute_states(scan, plan, first)
    grads = _scan_backward(scan, plan, grad, gate, merge, states, grad_last, grad_first)
    grad_u, grad_steps, *grads, grad_bias = grads
    grad_z = None if gate is None else gpu_tasks.gate_gradient(grad, gate, ungated.contiguous())
    # In the kernel these products would take longer (counted: a tenth of its time or more):
    # they sum over channels and steps, of which a program has only a part.
    grad_delta, grad_weight = project_gradients(grad_steps, delta, delta_weight)
    return (grad_u, grad_delta, *grads, grad_z, grad_bias, grad_weight)


class _Scan(NamedTuple):
    """One call's arguments as the kernels take them."""

    # tensors, or None
    inputs: dict[str, Any]
    # (K, D, R), for a projected delta
    weight: Tensor | None
    sizes: dict[str, int]
    flags: dict[str, Any]
    batch: int
    k: int
    steps: int
    states: int
    width: int
    complete: bool

    @property
    def states_shape(self) -> tuple[int, ...]:
        return states_shape(self.batch, self.k, self.steps, self.states, self.sizes["D"])

    @property
    def rows_shape(self) -> tuple[int, ...]:
        return (self.batch, self.k, self.sizes["L"], self.sizes["D"])

    def new(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        return self.inputs["u"].new_empty(shape, dtype=dtype)

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        return self.inputs["u"].new_zeros(shape, dtype=dtype)

    def new_rows(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Output memory for rows that the paths write; rows of tokens never visited are zero."""
        return self.new(shape, dtype) if self.complete else self.zeros(shape, dtype)

    def blocks(self, block: int) -> int:
        """Blocks of channels; none crosses a group."""
        return self.sizes["D"] // self.width * -(-self.width // block)

    def plan(self, shape: tuple[int, int], *, backward: bool) -> Plan:
        sizes = (self.batch, self.k, self.steps, self.states)
        processors = gpu_tasks.processors(self.inputs["u"].device)
        room = processors * programs_at_once(self.states, backward=backward)
        return choose_plan(sizes, shape, self.batch * self.blocks(shape[0]), room)

    def projection(self, plan: Plan, programs: int) -> dict[str, Tensor | None]:
        """Arguments of a kernel that projects delta: the weight, and space for rows.

        The weight is zero-padded: each block's channels, and R to a multiple of 16.
        """
        if self.weight is None:
            return {"projection": None, "scratch": None}
        k, channels, rank = self.weight.shape
        by_group = _shaped(self.weight, (k, channels // self.width, self.width, rank))
        padding = (0, -rank % _PRODUCT, 0, -self.width % plan.block)
        weight = F.pad(by_group, padding).contiguous()
        return {"projection": weight, "scratch": self.new((programs, _PRODUCT, plan.block))}

    def cut(self, plan: Plan) -> dict[str, Any]:
        """Arguments of a kernel that depend on the plan."""
        steps = -(-self.steps // plan.segments)
        steps = -(-steps // _ALIGNMENT) * _ALIGNMENT
        return {
            "segments": -(-self.steps // steps),
            "segment_steps": steps,
            "TAIL": self.steps % plan.unroll != 0,
            "EVEN": self.width % plan.block == 0,
            "BLOCK": plan.block,
            "UNROLL": plan.unroll,
        }


class _Target(NamedTuple):
    """Where to write rows that several paths may share; see `scan_forward`."""

    mode: str
    # sum of the paths in float32
    total: Tensor | None
    # what the kernel completes
    out: Tensor | None
    # whether `out` is by path, to be summed
    scratch: bool

    def sum(self) -> Tensor:
        if self.scratch:
            assert self.out is not None
            return self.out.sum(1)
        result = self.total if self.out is None else self.out
        assert result is not None
        return result


def _target(scan: _Scan, plan: Plan, merging: bool, dtype: torch.dtype) -> _Target:
    shape = scan.rows_shape
    merged = (shape[0], *shape[2:])
    if not merging or (plan.split and torch.are_deterministic_algorithms_enabled()):
        out = scan.new_rows(shape, torch.float32 if merging else dtype)
        return _Target("rows", None, out, merging)
    if plan.split:
        return _Target("atomic", scan.zeros(merged), None, False)
    if scan.complete:
        return _Target("own", scan.new(merged), scan.new(merged, dtype), False)
    return _Target("own", scan.zeros(merged), None, False)


def _prepare(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_weight: Tensor | None,
    delta_softplus: bool,
    paths: Tensor | None,
) -> _Scan:
    batch, k, length, rank = delta.shape
    _, channels, n = A.shape
    if length * channels >= 2**31:
        raise ValueError(f"u has {length} tokens of {channels} channels; expected below 2**31")
    if delta_weight is None:
        rank = 0
    elif rank % 8:
        # rows of 16 bytes are loaded at once
        delta = F.pad(delta, (0, -rank % 8))
        rank = delta.shape[3]
    rates = A.new_empty((k, n, channels), dtype=torch.float32)
    # the kernels use exp2
    torch.mul(A.to(torch.float32).transpose(1, 2), math.log2(math.e), out=rates)
    tensors = {"u": u, "delta": delta, "A": rates, "B": B, "C": C}
    # before the copy in int32, about which nothing is known
    complete = paths is None or _visits_all(paths, length)
    paths = None if paths is None else narrow_paths(paths, length)
    optional = {"skip": D, "bias": delta_bias, "paths": paths}
    steps = length if paths is None else paths.shape[-1]
    width = channels // (B.shape[2] if B.dim() == 5 else 1)
    return _Scan(
        inputs={
            **{name: t.contiguous() for name, t in tensors.items()},
            **{name: None if t is None else t.contiguous() for name, t in optional.items()},
        },
        weight=delta_weight,
        sizes={"K": k, "L": length, "T": steps, "D": channels, "width": width},
        flags={
            "N": n,
            "RANK": rank,
            "SOFTPLUS": delta_softplus,
            "COMPLETE": complete,
            "SHARED_PATHS": gpu_tasks.is_shared(paths),
        },
        batch=batch,
        k=k,
        steps=steps,
        states=n,
        width=width,
        complete=complete,
    )


def _visits_all(paths: Tensor, length: int) -> bool:
    """Whether every path is known to visit every token; there is then no -1, as none repeats one.

    Reading the values would synchronize with the GPU at every call with a new table. False is
    always correct, at the cost of clearing rows first.
    """
    if not paths.is_cuda:
        check_paths(paths, length)
    return known_complete(paths, length)


def _launch(name: str, programs: int, **arguments: Any) -> None:
    # one warp per program: sums over channels then need no barrier
    gpu_tasks.launch(f"selective_scan.{name}", programs, warps=1, **arguments)


def _walks(scan: _Scan, mode: str, segments: int) -> list[dict[str, int]]:
    """Per launch: the first path, the number of programs along the paths, and paths per program."""
    names = ("path_first", "path_programs", "path_count")
    if mode != "own":
        walks = [(0, scan.k, 1)]
    elif segments == 1:
        walks = [(0, 1, scan.k)]
    else:
        walks = [(k, 1, 1) for k in range(scan.k)]
    return [dict(zip(names, walk, strict=True)) for walk in walks]


def _scan_forward(
    scan: _Scan,
    plan: Plan,
    target: _Target,
    z: Tensor | None,
    ungated: Tensor | None,
    states: Tensor | None,
    starts: Tensor | None,
    last: Tensor | None,
) -> None:
    cut = scan.cut(plan)
    walks = _walks(scan, target.mode, cut["segments"])
    programs = scan.batch * scan.blocks(plan.block) * cut["segments"] * walks[0]["path_programs"]
    projection = scan.projection(plan, programs)
    for walk in walks:
        _launch(
            "fused_forward.scan_forward",
            programs,
            **scan.inputs,
            **projection,
            z=z,
            total=target.total,
            ungated=ungated,
            out=target.out,
            states=states,
            starts=starts,
            final=last,
            **scan.sizes,
            **scan.flags,
            **cut,
            **walk,
            SHARED_U=_is_shared(scan.inputs["u"]),
            MERGE=target.mode,
            SPACING=backward_block(scan.states, scan.width)[1],
        )


def _shaped(t: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A view with that shape, or the tensor itself if it has that shape."""
    return t if t.shape == shape else t.view(shape)


def _is_shared(t: Tensor | None) -> bool:
    return t is not None and t.dim() == 3


def _enter_segments(
    scan: _Scan,
    plan: Plan,
    grad: Tensor | None = None,
    z: Tensor | None = None,
    *,
    start: Tensor | None,
) -> Tensor:
    """The initial state of each segment, (B, K, segments, N, D), or with `grad` its gradient.

    `start` is that of the first segment, or the last with `grad`; None for zero.
    """
    inputs = scan.inputs
    value, weight = (inputs["u"], inputs["B"]) if grad is None else (grad, inputs["C"])
    block, unroll = forward_block(scan.states, scan.width)
    plan = plan._replace(block=block, unroll=unroll)
    cut = scan.cut(plan)
    channels = scan.sizes["D"]
    ends = scan.new((scan.batch, scan.k, cut["segments"], scan.states, channels))
    sums = scan.new((scan.batch, scan.k, cut["segments"], channels))
    programs = scan.batch * scan.k * scan.blocks(plan.block) * cut["segments"]
    _launch(
        "fused_forward.scan_summary",
        programs,
        **scan.projection(plan, programs),
        value=value,
        weight=weight,
        **{name: inputs[name] for name in ("delta", "A", "bias", "paths")},
        z=z,
        ends=ends,
        sums=sums,
        **scan.sizes,
        **scan.flags,
        **cut,
        SHARED=_is_shared(value),
        REVERSE=grad is not None,
    )
    _launch(
        "fused_forward.carry_segments",
        scan.batch * scan.k * -(-channels // plan.block),
        ends=ends,
        sums=sums,
        start=start,
        A=inputs["A"],
        K=scan.k,
        D=channels,
        segments=cut["segments"],
        N=scan.states,
        REVERSE=grad is not None,
        BLOCK=plan.block,
    )
    return ends


def _recompute_states(scan: _Scan, plan: Plan, first: Tensor | None) -> Tensor:
    """The states that the backward kernel starts from."""
    block, unroll = forward_block(scan.states, scan.width)
    plan = plan._replace(block=block, unroll=unroll)
    states = scan.new(scan.states_shape)
    starts = _enter_segments(scan, plan, start=first) if plan.segments > 1 else first
    nothing = _Target("rows", None, None, False)
    _scan_forward(scan, plan, nothing, None, None, states, starts, None)
    return states


def _scan_backward(
    scan: _Scan,
    plan: Plan,
    grad: Tensor,
    z: Tensor | None,
    merge: bool,
    states: Tensor,
    grad_last: Tensor | None,
    grad_first: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of u, delta (of the product if projected), A, B, C, D and delta_bias."""
    inputs, sizes, cut = scan.inputs, scan.sizes, scan.cut(plan)
    u, delta, B, C = (inputs[name] for name in ("u", "delta", "B", "C"))
    segments, blocks = cut["segments"], scan.blocks(plan.block)
    target = _target(scan, plan, _is_shared(u) and scan.k > 1, u.dtype)
    ddelta = scan.new_rows(scan.rows_shape, delta.dtype)
    dB, dC = (scan.new_rows(t.shape, t.dtype) for t in (B, C))
    own = (scan.batch, scan.k, segments)
    walks = _walks(scan, target.mode, segments)
    programs = scan.batch * blocks * segments * walks[0]["path_programs"]
    projection = scan.projection(plan, programs)
    sums = scan.zeros((*own, scan.states + 2, sizes["D"]))
    if segments > 1:
        carry = _enter_segments(scan, plan, grad, z, start=grad_last)
    elif grad_last is not None:
        # it is overwritten
        carry = grad_last.clone()
    else:
        carry = scan.zeros((*own, scan.states, sizes["D"]))
    padded = -(-scan.steps // plan.unroll) * plan.unroll
    partial = scan.new((scan.batch, scan.k, blocks, padded, scan.states, 2))
    for walk in walks:
        _launch(
            "fused_backward.scan_backward",
            programs,
            grad=grad,
            **inputs,
            **projection,
            z=z,
            states=states,
            carry=carry,
            total=target.total,
            du=target.out,
            ddelta=ddelta,
            sums=sums,
            partial=partial,
            **sizes,
            **scan.flags,
            **cut,
            **walk,
            ENDS=grad_last is not None,
            SHARED_U=_is_shared(u),
            SHARED_GRAD=merge,
            MERGE=target.mode,
        )
    _sum_weights(scan, partial, dB, dC)
    if grad_first is not None:
        grad_first.copy_(carry.view(*own, scan.states, sizes["D"])[:, :, 0])
    # separate sums: an operator must not return several views of one tensor
    dA = sums[:, :, :, : scan.states].sum((0, 2)).transpose(1, 2)
    dskip, dbias = (
        None if inputs[name] is None else sums.select(3, scan.states + i).sum((0, 2))
        for i, name in enumerate(("skip", "bias"))
    )
    return _shaped(target.sum().to(u.dtype), tuple(u.shape)), ddelta, dA, dB, dC, dskip, dbias


def _sum_weights(scan: _Scan, partial: Tensor, dB: Tensor, dC: Tensor) -> None:
    groups = scan.sizes["D"] // scan.width
    rows = max(1, 256 // scan.states)
    rows = 1 << (rows.bit_length() - 1)
    _launch(
        "fused_backward.sum_weights",
        scan.batch * scan.k * groups * -(-scan.steps // rows),
        partial=partial,
        paths=scan.inputs["paths"],
        dB=dB,
        dC=dC,
        **{name: scan.sizes[name] for name in ("K", "L", "T")},
        T_padded=partial.shape[3],
        groups=groups,
        per_group=partial.shape[2] // groups,
        N=scan.states,
        SHARED_PATHS=scan.flags["SHARED_PATHS"],
        ROWS=rows,
    )
