"""Mamba-2's scan on a GPU: sizes and launches of the Triton kernels.

The kernels are in fused_forward.py and fused_backward.py. Steps are split into chunks, which are
computed by matrix products. Forward, a program goes through the chunks of a path with the states of
some heads in registers. Backward, two such passes store the states at the chunk boundaries and
their gradients; then every chunk has separate programs. If there are few chains, these passes are
split into segments: a first pass finds what every segment adds to the state.

Outputs and gradients of x are written in the order of the steps and gathered by token and path
through the inverted table. So every row has one writer, and results are bitwise reproducible.

Sizes: B batch, K paths, L tokens, T steps, H heads of P channels, G groups of heads, N states.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vimamba_kernels import gpu_tasks
from vimamba_kernels.paths import saved_dtype

_WARPS = 4
_SHORTEST_SEGMENT = 4
# heads per program that prepares or completes step sizes
_HEADS = 16
# rows to gather, and channels
_ROWS, _BLOCK = 16, 128


class Shape(NamedTuple):
    """Tile of a program: as much as four warps hold in their registers."""

    # steps of a chunk
    chunk: int
    # channels, of one head or several, per program that goes through the chunks
    walked: int
    # states of a head
    most_states: int


# float32 needs twice the registers of bfloat16 before a product, and more within it
_HALF, _MANY_STATES, _FULL = Shape(64, 32, 128), Shape(16, 16, 128), Shape(16, 16, 64)


def choose_shape(dtype: torch.dtype, states: int) -> Shape:
    """The shape for a dtype of `x`: only bfloat16 is multiplied without conversion."""
    if dtype != torch.bfloat16:
        return _FULL
    return _HALF if states <= 64 else _MANY_STATES


def obstacle(dtype: torch.dtype, states: int) -> str | None:
    """Why the kernels cannot run, or None."""
    most = choose_shape(dtype, states).most_states
    if states <= most:
        return None
    return f"B has {states} states; for {dtype} it takes at most {most}"


def choose_segments(programs: int, chunks: int, processors: int) -> int:
    """Number of segments per path: enough for two programs per multiprocessor."""
    wanted = 2 * processors
    if programs >= wanted:
        return 1
    return max(1, min(-(-wanted // max(1, programs)), chunks // _SHORTEST_SEGMENT))


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    dt_softplus: bool,
    dt_limit: Sequence[float] | None,
    paths: Tensor | None,
    merge: bool,
    return_state: bool,
) -> tuple[Tensor, Tensor]:
    """The output, and the state after the last step in float32, empty unless requested.

    `A` may also be (B, K, L, H): the logarithms of the decays, instead of A * dt.
    """
    scan = _prepare(x, dt, A, B, C, D, dt_bias, dt_softplus, dt_limit, paths)
    rows, state = _outputs(scan, initial_state, return_state)
    z = None if z is None else z.contiguous()
    return _gather(scan, rows, z, merge, x.dtype), state


def backward(
    grad: Tensor | None,
    grad_state: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    dt_softplus: bool,
    dt_limit: Sequence[float] | None,
    paths: Tensor | None,
    merge: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of x, dt, A, B, C, D, z, dt_bias and initial_state; None for absent arguments.

    `grad` and `grad_state` are those of the output and of the last state, None for zeros.
    """
    scan = _prepare(x, dt, A, B, C, D, dt_bias, dt_softplus, dt_limit, paths)
    if grad is None:
        grad = x.new_zeros((dt.shape[0], *(() if merge else dt.shape[1:2]), *x.shape[-3:]))
    grad = grad.contiguous()
    dz = None
    if z is not None:
        ungated = _gather(scan, _outputs(scan, initial_state, False)[0], None, merge, torch.float32)
        dz = gpu_tasks.gate_gradient(grad, z.contiguous(), ungated)
        gate = F.silu(z.float())
        # in float32: rounding here would lose precision that the sums over steps need
        grad = grad * (gate if merge else gate.unsqueeze(1))
    states, _ = _walk(scan, _Walk(scan.x, scan.B, x.dim() == 4, False), initial_state)
    state_grads, grad_initial = _walk(scan, _Walk(grad, scan.C, merge, True), grad_state)
    grads = _gradients(scan, grad, merge, states, state_grads)
    dD = grads[5]
    if D is not None and D.dim() == 2:
        assert dD is not None
        dD = dD.sum(-1)
    return (*grads[:5], dD, dz, grads[6], None if initial_state is None else grad_initial)


class _Scan(NamedTuple):
    """One call's arguments as the kernels take them."""

    # arguments of only some kernels
    x: Tensor
    B: Tensor
    C: Tensor
    # in float32, for every channel: (K, H, P)
    skip: Tensor | None
    # arguments of the kernels of the step sizes
    steps: dict[str, Any]
    # arguments of all kernels with matrix products
    common: dict[str, Any]
    batch: int
    groups: int
    # heads per program that goes through the chunks, and channels of each
    heads: int
    columns: int

    @property
    def by_path(self) -> tuple[int, int]:
        return self.batch, self.common["K"]

    @property
    def state_shape(self) -> tuple[int, int, int]:
        return tuple(self.common[name] for name in "HNP")

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.x.new_empty(shape, dtype=dtype)

    def cut(self) -> tuple[int, dict[str, Any]]:
        """Number of programs of a pass over the chunks, and its kernel's arguments about them."""
        sizes = self.common
        chains = math.prod(self.by_path) * sizes["H"] // self.heads * -(-sizes["P"] // self.columns)
        segments = choose_segments(chains, sizes["chunks"], gpu_tasks.processors(self.x.device))
        chunks = -(-sizes["chunks"] // segments)
        segments = -(-sizes["chunks"] // chunks)
        cut = {
            "segments": segments,
            "segment_chunks": chunks,
            "HEADS": self.heads,
            "PB": self.columns,
            "PRECISION": _precision(self.x.dtype),
        }
        return chains * segments, cut


class _Walk(NamedTuple):
    """The inputs of the state: x and B, or in reverse the ungated output's gradient and C."""

    value: Tensor
    weight: Tensor
    # whether all paths share the value
    shared: bool
    reverse: bool


def _prepare(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    dt_limit: Sequence[float] | None,
    paths: Tensor | None,
) -> _Scan:
    batch, k, length, heads = dt.shape
    width, states = x.shape[-1], B.shape[-1]
    groups = B.shape[3] if B.dim() == 5 else 1
    steps = length if paths is None else paths.shape[-1]
    gpu_tasks.check_row_sizes("x", max(length, steps), heads * width)
    gpu_tasks.check_row_sizes("B", length, groups * states)
    shape = choose_shape(x.dtype, states)
    chunk = shape.chunk
    columns = min(shape.walked, _padded(width))
    per_group = heads // groups
    chunks = -(-steps // chunk)
    paths = gpu_tasks.prepare_paths(paths, length)
    steps_of = {
        "dt": dt.contiguous(),
        "A": A.contiguous(),
        "bias": None if dt_bias is None else dt_bias.contiguous(),
        "paths": paths,
        "K": k,
        "L": length,
        "T": steps,
        "H": heads,
        "chunks": chunks,
        "lowest": -math.inf if dt_limit is None else float(dt_limit[0]),
        "highest": math.inf if dt_limit is None else float(dt_limit[1]),
        "SOFTPLUS": dt_softplus,
        "GIVEN": A.dim() == 4,
        "SHARED_PATHS": gpu_tasks.is_shared(paths),
        "Q": chunk,
        "HEADS": _HEADS,
    }
    by_step = (batch, k, heads, chunks * chunk)
    sizes, parts = (x.new_empty(by_step, dtype=torch.float32) for _ in range(2))
    wholes = x.new_empty(by_step, dtype=torch.int32)
    programs = batch * k * chunks * -(-heads // _HEADS)
    _launch("fused_sizes.lay_sizes", programs, **steps_of, sizes=sizes, wholes=wholes, parts=parts)
    skip = None
    if D is not None:
        skip = (D.unsqueeze(-1) if D.dim() == 2 else D).to(torch.float32).expand(-1, -1, width)
    return _Scan(
        x=x.contiguous(),
        B=B.contiguous(),
        C=C.contiguous(),
        skip=None if skip is None else skip.contiguous(),
        steps=steps_of,
        common={
            "paths": paths,
            "step_sizes": sizes,
            "wholes": wholes,
            "parts": parts,
            "K": k,
            "L": length,
            "T": steps,
            "H": heads,
            "per_group": per_group,
            "chunks": chunks,
            "P": width,
            "N": states,
            "SHARED_PATHS": gpu_tasks.is_shared(paths),
            "HALF": x.dtype == torch.bfloat16,
            "Q": chunk,
            "NB": _padded(states),
        },
        batch=batch,
        groups=groups,
        heads=max(n for n in range(1, shape.walked // columns + 1) if per_group % n == 0),
        columns=columns,
    )


def _padded(size: int) -> int:
    """The next power of two, at least 16, the minimum for a matrix product."""
    return max(16, 1 << (size - 1).bit_length())


def _precision(dtype: torch.dtype) -> str:
    """Precision for factors in float32; float16 fits in the 11 bits of TF32."""
    if torch.version.hip is not None:
        return "ieee"
    return "tf32" if dtype == torch.float16 else "tf32x3"


def _launch(name: str, programs: int, **arguments: Any) -> None:
    gpu_tasks.launch(f"ssd.{name}", programs, warps=_WARPS, **arguments)


def _to_kernel_state(state: Tensor | None) -> Tensor | None:
    """A state (B, K, H, P, N) in the layout of the kernels, (B, K, 1, H, N, P) in float32."""
    if state is None:
        return None
    return state.to(torch.float32).transpose(-1, -2).unsqueeze(2).contiguous()


def _enter_segments(
    scan: _Scan, walk: _Walk, first: Tensor | None, programs: int, cut: dict[str, Any]
) -> Tensor | None:
    """The initial state of each segment, (B, K, segments, H, N, P); None for zero."""
    first = _to_kernel_state(first)
    segments = cut["segments"]
    if segments == 1:
        return first
    ends = scan.new(*scan.by_path, segments, *scan.state_shape)
    lefts = scan.new(*scan.by_path, segments, scan.state_shape[0])
    _launch_walk(scan, walk, programs, cut, starts=None, states=None, ends=ends, lefts=lefts)
    heads, states, width = scan.state_shape
    _launch(
        "fused_forward.carry_segments",
        math.prod(scan.by_path) * heads * -(-states * width // 256),
        ends=ends,
        lefts=lefts,
        start=first,
        H=heads,
        segments=segments,
        N=states,
        P=width,
        REVERSE=walk.reverse,
        BLOCK=256,
    )
    return ends


def _launch_walk(
    scan: _Scan, walk: _Walk, programs: int, cut: dict[str, Any], **outputs: Tensor | None
) -> None:
    _launch(
        "fused_forward.walk_states",
        programs,
        value=walk.value,
        weight=walk.weight,
        **outputs,
        **scan.common,
        **cut,
        SHARED=walk.shared,
        REVERSE=walk.reverse,
    )


def _walk(scan: _Scan, walk: _Walk, first: Tensor | None) -> tuple[Tensor, Tensor]:
    """The states at the boundaries of all chunks, (B, K, chunks, H, N, P), and at the end."""
    programs, cut = scan.cut()
    starts = _enter_segments(scan, walk, first, programs, cut)
    dtype = torch.bfloat16 if scan.common["HALF"] else torch.float32
    states = scan.new(*scan.by_path, scan.common["chunks"], *scan.state_shape, dtype=dtype)
    ends = scan.new(*scan.by_path, cut["segments"], *scan.state_shape)
    _launch_walk(scan, walk, programs, cut, starts=starts, states=states, ends=ends, lefts=None)
    return states, ends[:, :, 0 if walk.reverse else -1].transpose(-1, -2)


def _outputs(scan: _Scan, first: Tensor | None, return_state: bool) -> tuple[Tensor, Tensor]:
    """Ungated outputs by step, (B, K, T, H, P), and the last state, empty unless requested."""
    programs, cut = scan.cut()
    x = scan.x
    walk = _Walk(x, scan.B, x.dim() == 4, False)
    sizes = scan.common
    by_step = (*scan.by_path, sizes["T"], sizes["H"], sizes["P"])
    rows = scan.new(*by_step, dtype=saved_dtype(x.dtype))
    final = scan.new(*scan.by_path, *scan.state_shape) if return_state else None
    _launch(
        "fused_forward.ssd_outputs",
        programs,
        x=x,
        B=scan.B,
        C=scan.C,
        skip=scan.skip,
        starts=_enter_segments(scan, walk, first, programs, cut),
        y=rows,
        final=final,
        **sizes,
        **cut,
        SHARED=walk.shared,
    )
    return rows, scan.new(0) if final is None else final.transpose(-1, -2).contiguous()


def _gather(scan: _Scan, rows: Tensor, z: Tensor | None, merge: bool, dtype: torch.dtype) -> Tensor:
    """Rows by step, (B, K, T, H, P), at their tokens, times silu(z) if given."""
    batch, k, steps, heads, width = rows.shape
    length, channels = scan.common["L"], heads * width
    out = scan.new(batch, *(() if merge else (k,)), length, heads, width, dtype=dtype)
    _launch(
        "fused_forward.gather_rows",
        out.numel() // (length * channels) * -(-length // _ROWS) * -(-channels // _BLOCK),
        rows=rows,
        inverse=gpu_tasks.invert_paths(scan.common["paths"], length),
        z=z,
        out=out,
        K=k,
        L=length,
        T=steps,
        D=channels,
        MERGE=merge,
        SHARED_PATHS=scan.common["SHARED_PATHS"],
        EVEN=channels % _BLOCK == 0,
        ROWS=_ROWS,
        BLOCK=_BLOCK,
    )
    return out


def _gradients(
    scan: _Scan,
    grad: Tensor,
    merge: bool,
    states: Tensor,
    state_grads: Tensor,
) -> tuple[Tensor | None, ...]:
    """Gradients of x, dt, A, B, C, D and dt_bias; None for absent arguments."""
    sizes, x = scan.common, scan.x
    per_group, chunks = sizes["per_group"], sizes["chunks"]
    owners = math.prod(scan.by_path) * chunks * scan.groups
    parts = _choose_parts(owners, per_group, gpu_tasks.processors(x.device))
    dtype = scan.B.dtype if parts == 1 else torch.float32
    shape = (parts, *scan.B.shape)
    dB, dC = (gpu_tasks.new_rows(x, shape, sizes["paths"], dtype) for _ in range(2))
    by_step = (*scan.by_path, sizes["T"], sizes["H"], sizes["P"])
    rows = scan.new(*by_step, dtype=saved_dtype(x.dtype))
    by_chunk = (*scan.by_path, chunks, sizes["H"])
    names = ("reads", "writes", "dsizes")
    shares: dict[str, Tensor] = {name: torch.empty_like(sizes["step_sizes"]) for name in names}
    shares["kept"] = scan.new(*by_chunk)
    skip_sums = None if scan.skip is None else scan.new(*by_chunk, sizes["P"])
    _launch(
        "fused_backward.ssd_gradients",
        owners * parts,
        grad=grad,
        x=x,
        B=scan.B,
        C=scan.C,
        skip=scan.skip,
        states=states,
        state_grads=state_grads,
        dx=rows,
        **shares,
        dB=dB,
        dC=dC,
        skip_sums=skip_sums,
        batch=scan.batch,
        per_program=per_group // parts,
        **sizes,
        PB=16,
        PRECISION="ieee",
        SHARED=x.dim() == 4,
        SHARED_GRAD=merge,
    )
    ddt, drate, dbias = _finish_sizes(scan, shares)
    return (
        _gather(scan, rows, None, x.dim() == 4, x.dtype),
        ddt,
        drate,
        dB[0] if parts == 1 else dB.sum(0),
        dC[0] if parts == 1 else dC.sum(0),
        None if skip_sums is None else skip_sums.sum((0, 2)),
        None if scan.steps["bias"] is None else dbias,
    )


def _finish_sizes(scan: _Scan, shares: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of dt, A and dt_bias."""
    dt, A, paths, kept = scan.steps["dt"], scan.steps["A"], scan.steps["paths"], shares["kept"]
    ddt = gpu_tasks.new_rows(dt, dt.shape, paths, dt.dtype)
    dlogs = gpu_tasks.new_rows(A, A.shape, paths, A.dtype) if scan.steps["GIVEN"] else None
    sums = scan.new(2, *kept.shape)
    _launch(
        "fused_sizes.finish_sizes",
        math.prod(kept.shape[:3]) * -(-kept.shape[3] // _HEADS),
        **scan.steps,
        wholes=scan.common["wholes"],
        parts=scan.common["parts"],
        **shares,
        ddt=ddt,
        dlogs=dlogs,
        sums=sums,
    )
    # separate sums: an operator must not return several views of one tensor
    return ddt, sums[0].sum((0, 2)) if dlogs is None else dlogs, sums[1].sum((0, 2))


def _choose_parts(owners: int, heads: int, processors: int) -> int:
    """Number of parts to split a group's heads into, so that each multiprocessor has a program."""
    divisors = [n for n in range(1, heads + 1) if heads % n == 0]
    return next((n for n in divisors if owners * n >= processors), divisors[-1])
