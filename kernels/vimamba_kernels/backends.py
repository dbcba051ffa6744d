"""Choice of the backend that runs an operator."""

import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

# what the backends of all operators are called
_ALL = ("triton", "cpu", "chunked", "reference")


def choose(backend: str, names: Sequence[str], obstacle: Callable[[str], str | None]) -> str:
    """The name of the backend that `backend` and the environment ask for.

    Args:
        backend: One of `names` or "auto": what the environment variable VIMAMBA_BACKEND says, if
            it is set and the operator has that backend, otherwise the first that can run.
        names: The operator's backends, the slowest last.
        obstacle: Why a backend cannot run, or None.

    Raises:
        ValueError: The name is unknown, or the backend that it forces cannot run.
    """
    source = "backend"
    if backend == "auto":
        wanted = os.environ.get("VIMAMBA_BACKEND") or "auto"
        if wanted in names or wanted not in _ALL:
            backend, source = wanted, "VIMAMBA_BACKEND"
    if backend == "auto":
        return next(name for name in names if obstacle(name) is None)
    if backend not in names:
        choices = ["auto", *names]
        raise ValueError(f"{source}={backend!r} is unknown; choose from {choices}")
    if (why := obstacle(backend)) is not None:
        able = " or ".join(repr(name) for name in names if obstacle(name) is None)
        raise ValueError(f"{source}={backend!r} cannot run: {why}; use {able}")
    return backend


def cpu_obstacle(name: str, x: Tensor) -> str | None:
    """Why the numba backend cannot run on `x`, the argument called `name`, or None."""
    if x.device.type != "cpu":
        return f"{name} is on {x.device}; it runs on the CPU only"
    if x.dtype == torch.float64:
        return f"{name} is float64; it computes in float32"
    return None if _numba_is_installed() else "numba is not installed"


def triton_obstacle(name: str, x: Tensor) -> str | None:
    """Why the Triton backend cannot run on `x`, the argument called `name`, or None."""
    # in the interpreter, which tests use, kernels run anywhere
    if x.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"{name} is on {x.device}; it runs on a GPU only"
    if x.dtype == torch.float64:
        return f"{name} is float64; it computes in float32"
    return None if _triton_is_installed() else "triton is not installed"


@cache
def _triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def _numba_is_installed() -> bool:
    return importlib.util.find_spec("numba") is not None
