"""Times the selective scan: our backends, explicit copies, and other available candidates.

Sizes: B batch, L tokens, D channels, K paths, N states.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vimamba.benchmark.timing import Result, Run, take_turns
from vimamba.scan_orders import scan_paths
from vimamba_kernels import selective_scan

Extra = Callable[["Inputs", bool], Run | None]
"""Another candidate: inputs and whether to run backward too, to a call or None if it cannot."""


@dataclass(frozen=True)
class Case:
    """Sizes of one scan as it occurs in a model."""

    name: str
    batch: int
    height: int
    width: int
    channels: int
    states: int
    order: str


# the scans of Vim-T and of VMamba-T's four stages at 224 pixels, and one long sequence
CASES = (
    Case("Vim-T, batch 1", 1, 14, 14, 384, 16, "bidirectional"),
    Case("Vim-T, batch 8", 8, 14, 14, 384, 16, "bidirectional"),
    Case("VMamba-T stage 1", 1, 56, 56, 96, 1, "cross"),
    Case("VMamba-T stage 2", 1, 28, 28, 192, 1, "cross"),
    Case("VMamba-T stage 3", 1, 14, 14, 384, 1, "cross"),
    Case("VMamba-T stage 4", 1, 7, 7, 768, 1, "cross"),
    Case("16,384 tokens", 1, 128, 128, 384, 16, "raster"),
)


@dataclass(frozen=True)
class Inputs:
    """The tensors of one case, as arguments of `selective_scan`."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    delta_bias: Tensor
    paths: Tensor

    @property
    def differentiable(self) -> list[Tensor]:
        """All except the paths."""
        return [self.u, self.delta, self.A, self.B, self.C, self.D, self.delta_bias]


def make_inputs(case: Case, device: str, dtype: torch.dtype) -> Inputs:
    """Seeded random tensors of typical magnitudes."""
    torch.manual_seed(0)
    paths = scan_paths(case.order, case.height, case.width, device=device)
    k, length = len(paths), case.height * case.width
    like: dict[str, Any] = {"device": device, "dtype": dtype}
    parameter: dict[str, Any] = {"device": device, "dtype": torch.float32}
    states = torch.arange(1, case.states + 1, **parameter)
    return Inputs(
        u=torch.randn(case.batch, length, case.channels, **like),
        delta=torch.randn(case.batch, k, length, case.channels, **like),
        A=-states.expand(k, case.channels, -1).contiguous(),
        B=torch.randn(case.batch, k, length, case.states, **like),
        C=torch.randn(case.batch, k, length, case.states, **like),
        D=torch.ones(k, case.channels, **parameter),
        delta_bias=torch.full((k, case.channels), -4.0, **parameter),
        paths=paths,
    )


def scan(x: Inputs, backend: str) -> Tensor:
    """Our scan, which follows the table without copies."""
    options: dict[str, Any] = {"delta_bias": x.delta_bias, "delta_softplus": True}
    args = (x.u, x.delta, x.A, x.B, x.C, x.D)
    return selective_scan(*args, paths=x.paths, backend=backend, **options)


def scan_with_copies(x: Inputs, backend: str) -> Tensor:
    """As in research code: permute everything, scan K sequences, permute back and sum."""
    k = len(x.paths)
    u = x.u[:, x.paths]  # (B, K, L, D)

    def along(t: Tensor) -> Tensor:
        index = x.paths[None, :, :, None].expand(t.shape[0], -1, -1, t.shape[-1])
        return t.gather(2, index)

    y = selective_scan(
        u,
        along(x.delta),
        x.A,
        along(x.B),
        along(x.C),
        x.D,
        delta_bias=x.delta_bias,
        delta_softplus=True,
        merge=False,
        backend=backend,
    )
    out = torch.zeros_like(x.u)
    for path in range(k):
        out = out.index_add(1, x.paths[path], y[:, path])
    return out


def with_backward(forward: Callable[[Inputs], Tensor], x: Inputs) -> Run:
    """Forward and the gradients of everything."""
    leaves = [t.detach().requires_grad_() for t in x.differentiable]
    inputs = Inputs(*leaves, paths=x.paths)
    cotangent = torch.randn_like(x.u)

    def run() -> object:
        return torch.autograd.grad(forward(inputs), leaves, cotangent)

    return run


def candidates(
    x: Inputs, backward: bool, extras: dict[str, Extra], fastest: str, loop: bool
) -> Iterator[tuple[str, Run]]:
    """Name and call of every candidate that can run this case."""
    forms: dict[str, Callable[[Inputs], Tensor]] = {
        f"vimamba {fastest}": lambda t: scan(t, fastest),
        f"vimamba {fastest}, explicit copies": lambda t: scan_with_copies(t, fastest),
        "vimamba chunked": lambda t: scan(t, "chunked"),
    }
    if loop:
        forms["PyTorch loop"] = lambda t: scan(t, "reference")
    for name, form in forms.items():
        yield name, (with_backward(form, x) if backward else (lambda form=form: form(x)))
    for name, extra in extras.items():
        if (run := extra(x, backward)) is not None:
            yield name, run


def benchmark_ops(
    *,
    extras: dict[str, Extra],
    backward: bool,
    seconds: float,
    cases: Sequence[Case] = CASES,
    floor: str | None = None,
) -> Iterator[list[Result]]:
    """Time every case, yielding its results as soon as they are available.

    Args:
        extras: Additional candidates by name.
        backward: Forward and backward instead of forward.
        seconds: About how long per case.
        cases: The cases to time.
        floor: Name of the candidate that is the lower bound.
    """
    gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
    fastest = "auto" if gpu else "cpu"
    for case in cases:
        x = make_inputs(case, device, dtype)
        loop = case.height * case.width <= 4096  # the loop over 16,384 steps takes minutes
        runs = dict(candidates(x, backward, extras, fastest, loop))
        with torch.set_grad_enabled(backward):
            results = take_turns(case.name, runs, seconds=seconds)
        yield [_with_floor(r, results, floor) for r in results]


def _with_floor(result: Result, results: list[Result], floor: str | None) -> Result:
    """The lower bound in the same rounds: through the ratios, not the medians."""
    bound = next((r for r in results if r.candidate == floor), None)
    if bound is None:
        return result
    return replace(result, floor=result.milliseconds * bound.ratio / result.ratio)
