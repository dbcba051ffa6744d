"""Choice of the backend that runs an operator."""

import importlib.util
import os
import re
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

# names of the backends of all operators
_ALL = ("triton", "cpu", "chunked", "reference")
# the first version of Triton that supports tuples in kernels
_OLDEST_TRITON = (3, 3)


def choose(backend: str, names: Sequence[str], obstacle: Callable[[str], str | None]) -> str:
    """The name of the backend that `backend` and the environment select.

    Args:
        backend: One of `names` or "auto": the one in the environment variable VIMAMBA_BACKEND if it
            is set and the operator has it, otherwise the first that can run.
        names: The operator's backends, slowest last.
        obstacle: Returns why a backend cannot run, or None.

    Raises:
        ValueError: The name is unknown, or the requested backend cannot run.
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
    if not x.is_cpu:
        return f"{name} is on {x.device}; it runs on the CPU only"
    if x.dtype == torch.float64:
        return f"{name} is float64; it computes in float32"
    return None if _numba_is_installed() else "numba is not installed"


def triton_obstacle(name: str, x: Tensor) -> str | None:
    """Why the Triton backend cannot run on `x`, the argument called `name`, or None."""
    # in the interpreter, which tests use, kernels run on any device
    if not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return f"{name} is on {x.device}; it runs on a GPU only"
    if x.dtype == torch.float64:
        return f"{name} is float64; it computes in float32"
    why = _installation_obstacle(_triton_version())
    if why is not None and x.is_cuda:
        _warn_of_slowness(why)
    return why


@cache
def _warn_of_slowness(why: str) -> None:
    """Warn once that the GPU cannot be used well."""
    warnings.warn(f"{why}; 'chunked' runs on the GPU instead, far more slowly", stacklevel=2)


def _installation_obstacle(found: str | None) -> str | None:
    """Why a Triton of this version cannot compile the kernels, or None."""
    if found is None:
        return "triton is not installed"
    numbers = tuple(int(number) for number in re.findall(r"\d+", found)[:2])
    if numbers and numbers < _OLDEST_TRITON:
        oldest = ".".join(map(str, _OLDEST_TRITON))
        return f"triton {found} is too old; it takes {oldest} or later"
    return None


@cache
def _triton_version() -> str | None:
    """The version of Triton, None if it is not installed, "" if its source does not state one.

    This does not import Triton, because the import decides whether kernels are interpreted.
    """
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return None
    # the package has other names for AMD's GPUs, on Windows and in nightly builds
    found = re.search(r"""__version__ = ['"](.+)['"]""", Path(spec.origin).read_text("utf-8"))
    return found[1] if found else ""


@cache
def _numba_is_installed() -> bool:
    return importlib.util.find_spec("numba") is not None
