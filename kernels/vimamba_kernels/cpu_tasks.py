"""How the numba kernels of all operators are compiled and driven.

The kernels are serial and run without the GIL on a small thread pool. Numba's own threads are
avoided because they do not survive a fork, which DataLoader workers rely on.
"""

import contextlib
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

# as in cpu_math.py, which cannot be imported without numba
MAX_WIDTH, ROW = 96, 112


def block_width(channels: int, rows: int, threads: int) -> int:
    """Channels per task: as many as allowed, but so few that the threads share the work evenly."""
    least = -(-channels // MAX_WIDTH)
    most = max(least, channels // 32)
    even = (n for n in range(least, most + 1) if (rows * n) % threads == 0)
    blocks = least if rows * least >= 8 * threads else next(even, most)
    # whole vectors of 16 floats
    return -(-channels // (16 * blocks)) * 16


def flat(t: Tensor | None) -> np.ndarray:
    """The elements in float32, a view if they are that already."""
    assert t is not None
    return t.detach().to(torch.float32).contiguous().numpy().reshape(-1)


def flat_paths(paths: Tensor | None, length: int) -> tuple[np.ndarray, int]:
    """The table's int32 elements and the distance of its rows; 0 if one row serves all paths."""
    if paths is None:
        return torch.arange(length, dtype=torch.int32).numpy(), 0
    return paths.to(torch.int32).contiguous().view(-1).numpy(), paths.shape[1]


def scratch(*sizes: int) -> tuple[np.ndarray, ...]:
    """Pieces of one uninitialised buffer."""
    buffer = torch.empty(sum(sizes)).numpy()
    return tuple(buffer[sum(sizes[:i]) :][:size] for i, size in enumerate(sizes))


_pool: tuple[ThreadPoolExecutor, int] | None = None
_lock = threading.Lock()


def run(work: Callable[[int, int], None], tasks: int, threads: int) -> None:
    """Call `work(first, last)` for ranges that cover the tasks, one for each thread."""
    threads = min(threads, tasks)
    if threads <= 1:
        if tasks:
            work(0, tasks)
        return
    limits = [tasks * i // threads for i in range(threads + 1)]
    pool = _workers(threads - 1)
    others = [pool.submit(work, limits[i], limits[i + 1]) for i in range(1, threads)]
    work(0, limits[1])
    for other in others:
        other.result()


def _workers(count: int) -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None or _pool[1] < count:
            _pool = ThreadPoolExecutor(count, thread_name_prefix="vimamba"), count
        return _pool[0]


def _forget_threads() -> None:
    """In a forked child: the parent's threads are not there, and its lock may be held forever."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


# Windows has no fork
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def compile_kernel(kernel: Any, signature: Any) -> Callable[..., None]:
    """The kernel compiled for `signature`; one line on stderr tells when that takes time.

    Args:
        kernel: From `cpu_math.kernel`.
        signature: The types of its arguments.
    """
    from vimamba_kernels.cpu_math import without_cache

    if not _is_cached(kernel, signature):
        name = kernel.py_func.__name__
        print(f"vimamba: compiling a CPU kernel ({name}), some seconds, once", file=sys.stderr)
        _fill_cache(kernel, signature)
    try:
        kernel.compile(signature)
    except OSError:
        kernel = without_cache(kernel)
        kernel.compile(signature)
    return kernel


def _is_cached(kernel: Any, signature: Any) -> bool:
    try:
        return kernel._cache.load_overload(signature, kernel.targetctx) is not None
    except (AttributeError, OSError):
        return False


def _fill_cache(kernel: Any, signature: Any) -> None:
    """Compile in another process, whose only trace is the cache on disk.

    Code that numba compiled in this process shares helper functions with the other kernels
    compiled here, which round differently in the last place from the kernel's own, cached ones.
    With this, the first run computes what all later runs will. Where it fails (a cache that cannot
    be written), the kernel is compiled here.
    """
    function = kernel.py_func
    code = (
        "import importlib, pickle, sys\n"
        "module, name, signature = pickle.load(sys.stdin.buffer)\n"
        "getattr(importlib.import_module(module), name).compile(signature)\n"
    )
    task = pickle.dumps((function.__module__, function.__name__, signature))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with contextlib.suppress(OSError):
        subprocess.run(
            [sys.executable, "-c", code],
            input=task,
            env=environment,
            capture_output=True,
            check=False,
        )
