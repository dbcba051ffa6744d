"""Mamba-2's scan as a torch operator: choice of the backend and autocast.

The backends are composed of operators that torch knows, and of the selective scan on a CPU, so
autograd, shapes on meta tensors and export come from these.

Sizes: B batch, K paths, L tokens, H heads of P channels, G groups of heads, N states.
"""

import torch
from torch import Tensor

from vimamba_kernels.backends import choose, cpu_obstacle
from vimamba_kernels.registration import register_autocast
from vimamba_kernels.ssd.checks import check_arguments
from vimamba_kernels.ssd.chunked import ssd_chunked
from vimamba_kernels.ssd.cpu import ssd_cpu
from vimamba_kernels.ssd.reference import ssd_reference

# the slowest last; a Triton backend goes first
BACKENDS = ("cpu", "chunked", "reference")


def choose_backend(backend: str, x: Tensor, *, stateless: bool = True) -> str:
    """The name of the backend that `backend`, the environment and `x` ask for; see `choose`.

    Args:
        backend: A name of `BACKENDS` or "auto".
        x: The scan's input; its device and dtype count.
        stateless: Whether neither states nor step limits are asked for.
    """
    return choose(backend, BACKENDS, lambda name: _obstacle(name, x, stateless))


def _obstacle(backend: str, x: Tensor, stateless: bool) -> str | None:
    """Why a backend cannot run, or None."""
    if backend != "cpu":
        return None
    if not stateless:
        return "it knows neither initial_state nor return_state nor dt_limit"
    return cpu_obstacle("x", x)


_library = torch.library.Library("vimamba", "FRAGMENT")
_library.define(
    "ssd(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D=None, Tensor? z=None, "
    "Tensor? dt_bias=None, bool dt_softplus=False, float[]? dt_limit=None, "
    "Tensor? initial_state=None, Tensor? paths=None, bool merge=True, "
    'bool return_state=False, str backend="auto") -> (Tensor, Tensor)',
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl(_library, "ssd", "CompositeImplicitAutograd")
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
    """The output, and the state after the last step, empty unless `return_state`."""
    check_arguments(x, dt, A, B, C, D, z, dt_bias, dt_limit, initial_state, paths)
    stateless = initial_state is None and dt_limit is None and not return_state
    name = choose_backend(backend, x, stateless=stateless)
    if name == "cpu":
        y = ssd_cpu(x, dt, A, B, C, D, z, dt_bias, dt_softplus, paths, merge)
        return y, y.new_empty(0, dtype=torch.float32)
    scan = ssd_reference if name == "reference" else ssd_chunked
    options = (dt_bias, dt_softplus, dt_limit, initial_state, paths, merge)
    y, state = scan(x, dt, A, B, C, D, z, *options)
    return y, state if return_state else state.new_empty(0)


# A, D, dt_bias and initial_state keep their precision
register_autocast(_library, "ssd", ("x", "dt", "B", "C", "z"))
