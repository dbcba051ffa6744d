"""Compiles and runs the numba kernels of all operators.

A kernel is C code, run by a team of threads. The team is PyTorch's own OpenMP team: its threads,
still spinning after a matrix product, would otherwise compete with ours for the cores. If there is
no OpenMP to call, and in a forked child, where OpenMP does not work (DataLoader workers), a small
pool of Python threads runs the kernels, without the GIL.
"""

import contextlib
import ctypes
import importlib
import os
import subprocess
import sys
import threading
from array import array
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from vimamba_kernels.arguments import check_path_bounds, copy_values, is_unchanged

# address of a compiled kernel, which takes the address of a frame
Kernel = Callable[[int], None]

# floats in a vector, as in cpu_vectors.py, which cannot be imported without numba
VECTOR = 16
MAX_WIDTH, ROW = 6 * VECTOR, 7 * VECTOR


def block_width(channels: int, rows: int, threads: int) -> int:
    """Channels per task: as many as possible with an even distribution over the threads."""
    least = -(-channels // MAX_WIDTH)
    most = max(least, channels // 32)
    even = (n for n in range(least, most + 1) if (rows * n) % threads == 0)
    blocks = least if rows * least >= 8 * threads else next(even, most)
    return -(-channels // (VECTOR * blocks)) * VECTOR


def flat(t: Tensor | None) -> Tensor:
    """The elements in float32, contiguous; the tensor itself if possible."""
    assert t is not None
    if t.dtype != torch.float32:
        t = t.to(torch.float32)
    return t if t.is_contiguous() else t.contiguous()


def flat_rows(t: Tensor) -> Tensor:
    """A tensor in float32 whose last dimension is contiguous; the others may have any strides.

    A slice of a projection's output is not copied.
    """
    if t.dtype != torch.float32:
        t = t.to(torch.float32)
    return t if t.shape[-1] == 1 or t.stride(-1) == 1 else t.contiguous()


def floats(*shape: int) -> Tensor:
    """Uninitialized float32 memory on the CPU, independent of torch's defaults."""
    return torch.empty(shape, dtype=torch.float32, device=_CPU)


# a string would be parsed on every call
_CPU = torch.device("cpu")


class Table(NamedTuple):
    """A path table in the form that the kernels take."""

    # int32
    steps: Tensor
    # strides between the tables of samples and between rows; 0 if shared
    strides: tuple[int, int]
    # whether every path visits every token
    complete: bool


def flat_paths(paths: Tensor | None, length: int) -> Table:
    """The table, checked.

    It is a copy, kept as long as the tensor exists: all blocks of a model use the same paths.

    Raises:
        ValueError: `paths` is out of bounds.
    """
    if paths is None:
        return Table(torch.arange(length, dtype=torch.int32, device="cpu"), (0, 0), True)
    found = _tables.get(paths)
    if found is not None and found[0] == length and is_unchanged(paths, found[1]):
        return found[2]
    complete = check_path_bounds(paths, length)
    k, steps = paths.shape[-2:]
    strides = (k * steps if paths.dim() == 3 else 0, steps)
    table = Table(paths.to(torch.int32, copy=True).contiguous(), strides, complete)
    _tables[paths] = length, copy_values(paths), table
    return table


# keyed by the copied tensor; with the number of tokens and the tensor's values
_tables = WeakIdKeyDictionary()


def run(
    kernel: Kernel,
    tensors: Sequence[Tensor | None],
    rows: Sequence[int],
    numbers: Iterable[int],
    tasks: int,
    team: int,
) -> None:
    """Distribute the tasks of a kernel over a team of threads.

    Args:
        kernel: From `compile_kernel`.
        tensors: The first arguments in its frame, None for an empty array; memory is not copied.
        rows: The next arguments: floats per thread in each array of scratch memory.
        numbers: The last arguments.
        tasks: Number of tasks.
        team: Number of threads, at most one for each task.
    """
    if not tasks:
        return
    words = [0, team, tasks]
    for t in tensors:
        words += (0, 0) if t is None else (t.data_ptr(), t.numel())
    scratch = floats(team * sum(rows))
    address = scratch.data_ptr()
    for row in rows:
        size = team * row
        words += address, size
        address += 4 * size
    frame = array("Q", (*words, *numbers))
    place, _ = frame.buffer_info()
    if team == 1:
        kernel(place)
    elif not _forked and (parallel := _find_openmp()) is not None:
        parallel(kernel, place, team, 0)
    else:
        pool = _workers(team - 1)
        others = [pool.submit(kernel, place) for _ in range(team - 1)]
        kernel(place)
        for other in others:
            other.result()


_forked = False
_pool: tuple[ThreadPoolExecutor, int] | None = None
_lock = threading.Lock()


@cache
def _find_openmp() -> Callable[..., None] | None:
    """GNU's `GOMP_parallel(function, argument, threads, flags)`, as loaded by PyTorch."""
    if not hasattr(os, "RTLD_NOLOAD"):
        return None
    for library in Path(torch.__file__).parent.glob("lib/libgomp*"):
        with contextlib.suppress(OSError):
            parallel = ctypes.CDLL(str(library), mode=os.RTLD_NOLOAD | os.RTLD_NOW).GOMP_parallel
            parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
            parallel.restype = None
            return parallel
    return None


def _workers(count: int) -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None or _pool[1] < count:
            _pool = ThreadPoolExecutor(count, thread_name_prefix="vimamba"), count
        return _pool[0]


def _forget_threads() -> None:
    """Reset in a forked child: the parent's threads are gone, and its lock may stay locked."""
    global _forked, _pool, _lock
    _forked, _pool, _lock = True, None, threading.Lock()


# Windows has no fork
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def compile_kernel(module: str, name: str) -> Kernel:
    """A kernel, ready to run; a line on stderr announces a slow compilation.

    Args:
        module: Full name of its module, imported only now because it needs numba.
        name: The kernel's name in the module.
    """
    source = importlib.import_module(module)
    from vimamba_kernels.cpu_math import cached, uncached

    kernel = cached(getattr(source, name))
    for _ in range(2):
        if not _is_cached(kernel):
            print(f"vimamba: compiling a CPU kernel ({name}), some seconds, once", file=sys.stderr)
            _fill_cache(module, name)
        try:
            kernel.compile()
        except OSError:
            break  # the cache is not writable
        except Exception:  # an invalid cache file can raise anything
            _drop_cached(kernel)
        else:
            if name in kernel.native_name:
                return _callable(kernel)
            _drop_cached(kernel)  # another kernel's code
    kernel = uncached(kernel)
    kernel.compile()
    return _callable(kernel)


def _callable(kernel: Any) -> Kernel:
    prototype = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    return prototype(kernel.address)  # type: ignore[call-overload]  # numba's own type is loose


def _is_cached(kernel: Any) -> bool:
    """Whether the cache on disk holds the kernel; unreadable files are deleted."""
    try:
        # only checks; `kernel._cache.load_overload` would load the code, and `compile` again
        return kernel._cache._cache_file.load(_cache_key(kernel)) is not None
    except Exception:  # truncated, empty or from another program: can raise anything
        _drop_cached(kernel)
        return False


def _cache_key(kernel: Any) -> Any:
    context = kernel._targetdescr.target_context
    context.refresh()
    return kernel._cache._index_key(kernel._sig, context.codegen())


def _drop_cached(kernel: Any) -> None:
    """Delete the kernel's code in the cache, or the kernel's index if the index cannot be read."""
    files = getattr(getattr(kernel, "_cache", None), "_cache_file", None)
    if files is None:
        return
    try:
        broken = files._data_path(files._load_index()[_cache_key(kernel)])
    except Exception:
        broken = files._index_path
    with contextlib.suppress(OSError):
        os.unlink(broken)


def _fill_cache(module: str, name: str) -> None:
    """Compile in another process, which only writes the cache on disk.

    Code that numba compiles in this process shares helper functions with other kernels compiled
    here, and these round differently in the last digit from the kernel's cached ones. This way, the
    first run computes exactly the same as later runs. If it fails (the cache is not writable), the
    kernel is compiled here.
    """
    code = (
        "import importlib, sys\n"
        "from vimamba_kernels.cpu_math import cached\n"
        "cached(getattr(importlib.import_module(sys.argv[1]), sys.argv[2])).compile()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, module, name]
    with contextlib.suppress(OSError):
        subprocess.run(command, env=environment, capture_output=True, check=False)
