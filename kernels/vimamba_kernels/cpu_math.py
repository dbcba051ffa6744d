"""Shared by the numba kernels: compilation, vector functions and tasks.

A kernel is a C function `void kernel(uint64_t *frame)`, so that non-Python threads can run it.
Every thread of a team calls it with the same frame, an array of 64-bit words: the number of threads
that have joined, the size of the team, the number of tasks, then the kernel's arguments in order, a
tensor as its address and its number of elements.

Most kernels are written in vectors (cpu_vectors.py). Loops over channels are vectorized because
temporaries are rows at strides that the compiler knows, indices are uint64, so there is no check
for negative indices, and exp2 and log1p are polynomials. Nothing is captured, so that the on-disk
cache works.
"""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types, uint32, uint64
from numba.core import cgutils
from numba.core.caching import IndexDataCacheFile
from numba.core.ccallback import CFunc
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from vimamba_kernels.cpu_vectors import LANES, at_least, at_most, exp2, fabs

U = np.uint64
F = np.float32
ZERO, ONE, TWO, THREE, FOUR = U(0), U(1), U(2), U(3), U(4)
# rows hold at most 96 channels plus padding, so that rows 4 kB apart do not alias
ROW = U(112)
LOG2E = F(1.4426950408889634)
LN2 = F(0.6931471805599453)
# a power of two that is not infinite
HIGHEST = F(127.0)
# Python's error model checks every division; `reassoc` allows vectorized sums over channels; with
# `_nrt` numba would count references to arrays, by a call for each argument of a helper
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "_nrt": False,
    "error_model": "numpy",
    "fastmath": {"contract", "reassoc", "nsz"},
}
_COUNTED: dict[str, Any] = {**_OPTIONS, "_nrt": True}
helper = njit(**_OPTIONS)
inlined = njit(**_OPTIONS, forceinline=True)


FRAME = types.CPointer(uint64)


def kernel(function: Any) -> CFunc:
    """A Python function of a frame as a C function, not yet compiled."""
    return CFunc(function, ((FRAME,), types.void), locals={}, options=dict(_OPTIONS))


def uncached(compiled: CFunc) -> CFunc:
    """The same kernel, not yet compiled and without a cache."""
    return kernel(compiled.__wrapped__)


def cached(compiled: CFunc) -> CFunc:
    """The same kernel with a cache on disk, if a cache directory is writable."""
    try:
        compiled.enable_caching()
    except RuntimeError:
        return compiled
    # numba checks only the kernel's own file for changes, not those of its helpers
    files = Path(__file__).parent.rglob("cpu_*.py")
    newest = max(file.stat().st_mtime for file in files)
    cache: Any = getattr(compiled, "_cache", None)
    if hasattr(cache, "_cache_file"):
        stamp = (cache._cache_file._source_stamp, newest)
        cache._cache_file = _SealedFiles(cache._cache_path, cache._impl.filename_base, stamp)
    return compiled


class _SealedFiles(IndexDataCacheFile):
    """Numba's cache with a checksum, because numba itself runs whatever the file contains."""

    def _save_data(self, name: str, data: Any) -> None:
        code = self._dump(data)
        with self._open_for_write(self._data_path(name)) as file:
            file.write(hashlib.sha256(code).digest() + code)

    def _load_data(self, name: str) -> Any:
        content = Path(self._data_path(name)).read_bytes()
        seal, code = content[:32], content[32:]
        if hashlib.sha256(code).digest() != seal:
            raise ValueError(f"{self._data_path(name)} is damaged")
        return pickle.loads(code)


def _use_wide_vectors(typing_context: Any) -> Any:
    """Let LLVM use 512-bit vectors in the calling function, if the processor has them.

    On most processors it prefers 256 bits; these loops are pure arithmetic and run 1.3 times as
    fast with 512. llvmlite's list of attributes does not have this one, hence the workaround.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), generate


use_wide_vectors: Any = intrinsic(_use_wide_vectors)


def _call_no_library(typing_context: Any) -> Any:
    """Keep LLVM from turning the short loops of the calling function into calls of memcpy."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        set.add(builder.function.attributes, '"no-builtins"')
        return context.get_dummy_value()

    return types.void(), generate


call_no_library: Any = intrinsic(_call_no_library)


def _control(builder: Any, instruction: str, word: Any) -> None:
    """Store the control word of an x86's vector unit in memory, or load it from there."""
    address = builder.bitcast(word, ir.IntType(8).as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [address.type])
    name = f"llvm.x86.sse.{instruction}mxcsr"
    builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [address])


def _flush_denormals(typing_context: Any) -> Any:
    """Make this thread treat numbers below 2**-126 as zero; returns the mode before.

    Decays and gradients of real models get that small, and an x86 takes over 100 cycles for every
    vector with one of them: backward passes of Vim took 1.5 to 2.3 times as long.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = cgutils.alloca_once_value(builder, ir.Constant(ir.IntType(32), 0))
        if builder.module.triple.startswith(("x86_64", "i686")):
            _control(builder, "st", word)
            before = builder.load(word)
            both = ir.Constant(ir.IntType(32), FLUSH_RESULTS | FLUSH_OPERANDS)
            builder.store(builder.or_(before, both), word)
            _control(builder, "ld", word)
            return before
        return builder.load(word)

    return uint32(), generate


def _restore_mode(typing_context: Any, mode: Any) -> Any:
    """Undo `flush_denormals`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if builder.module.triple.startswith(("x86_64", "i686")):
            _control(builder, "ld", cgutils.alloca_once_value(builder, arguments[0]))
        return context.get_dummy_value()

    return types.void(uint32), generate


# bits of the control word
FLUSH_RESULTS, FLUSH_OPERANDS = 0x8000, 0x0040
flush_denormals: Any = intrinsic(_flush_denormals)
restore_mode: Any = intrinsic(_restore_mode)


def _join(typing_context: Any, frame: Any) -> Any:
    """The number of threads that joined before this one; counts this one, atomically."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", arguments[0], ir.Constant(ir.IntType(64), 1), "monotonic")

    return uint64(frame), generate


join: Any = intrinsic(_join)


def _arguments(typing_context: Any, frame: Any, kinds: Any) -> Any:
    """The arguments that a frame holds, as a tuple of the type `kinds`.

    They may be uint64, booleans, one-dimensional arrays and tuples of these.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        place = HEAD

        def read() -> Any:
            nonlocal place
            place += 1
            return builder.load(builder.gep(arguments[0], [ir.Constant(word, place - 1)]))

        def build(kind: Any) -> Any:
            if isinstance(kind, types.Tuple | types.UniTuple):
                return context.make_tuple(builder, kind, [build(part) for part in kind.types])
            if kind == types.boolean:
                return builder.icmp_unsigned("!=", read(), ir.Constant(word, 0))
            if kind == uint64:
                return read()
            array, element = context.make_array(kind)(context, builder), kind.dtype
            data = builder.inttoptr(read(), context.get_data_type(element).as_pointer())
            size = ir.Constant(word, element.bitwidth // 8)
            populate_array(array, data, [read()], [size], size, meminfo=None)
            return array._getvalue()

        return build(signature.return_type)

    return kinds.instance_type(frame, kinds), generate


arguments: Any = intrinsic(_arguments)
# words before the arguments
HEAD = 3


def _generate_prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Prefetch the cache line of an element, which need not exist."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), (address.type, number, number, number))
        function = builder.module.declare_intrinsic("llvm.prefetch", (address.type,), kind)
        # for reading, in all cache levels, data
        builder.call(function, (address, *(ir.Constant(number, n) for n in (0, 3, 1))))
        return context.get_dummy_value()

    return types.void(array, index), generate


_prefetch: Any = intrinsic(_generate_prefetch)


@helper
def following(path: Any, step: Any, d: Any, w: Any) -> Any:
    """Position on the path, and channel, of what to prefetch while 16 channels are processed.

    These are the next 16 of `w` channels, or the first ones after `step` more steps. Prefetching
    the same channels 8 steps ahead left the kernels waiting, in Vim for a tenth of their time.
    """
    if d + LANES < w:
        return path, d + LANES
    return path + step, ZERO


@helper
def ahead(paths: Any, at: Any) -> Any:
    """The token at a position of the tables, for `fetch`; beyond their end, the last one."""
    return U(max(paths[min(at, U(paths.size) - ONE)], 0))


@helper
def fetch(array: Any, start: Any, w: Any) -> None:
    """Prefetch `w` elements, because hardware prefetching cannot predict a path."""
    for d in range(ZERO, w, U(16)):
        _prefetch(array, start + d)


@helper
def share(frame: Any) -> Any:
    """This thread's number in its team, the team's size, and the thread's tasks [first, last)."""
    member, team, tasks = join(frame), frame[1], frame[2]
    return (member, team), tasks * member // team, tasks * (member + ONE) // team


# numba lets only functions that count references return an array
@njit(**_COUNTED)
def own(buffer: Any, place: Any) -> Any:
    """This thread's part of scratch memory."""
    member, team = place
    size = U(buffer.size) // team
    return buffer[member * size : (member + ONE) * size]


@inlined
def log1p(z: Any) -> Any:
    """log(1 + z) on [0, 1]: minimax divisible by z, relative error 3e-8."""
    p = z * F(0.005214902572333813) + F(-0.0294294785708189)
    p = p * z + F(0.07809307426214218)
    p = p * z + F(-0.1365087330341339)
    p = p * z + F(0.19099442660808563)
    p = p * z + F(-0.24841004610061646)
    p = p * z + F(0.3331878185272217)
    p = p * z + F(-0.499994695186615)
    p = p * z + F(0.9999999403953552)
    return p * z


@inlined
def softplus(x: Any, enabled: Any) -> Any:
    """log(1 + exp(x)); above 17 this equals x in float32, so the usual branch at 20 is included."""
    if enabled:
        return at_least(x, F(0.0)) + log1p(exp2(fabs(x) * -LOG2E))
    return x


@inlined
def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)), the derivative of `softplus`."""
    return F(1.0) / (exp2(at_most(x * -LOG2E, HIGHEST)) + F(1.0))


@inlined
def silu(x: Any) -> Any:
    """The product of x and its sigmoid."""
    return x * sigmoid(x)


@inlined
def silu_slope(x: Any, s: Any) -> Any:
    """The derivative of `silu` at x, whose sigmoid is s."""
    return s * (x * (F(1.0) - s) + F(1.0))


@helper
def place(task: Any, sizes: Any) -> Any:
    """Indices of a task: batch element, group, block in the group, first channel, channels."""
    channels, groups, width = sizes[4], sizes[5], sizes[7]
    group_width = channels // groups
    per_group = (group_width + width - ONE) // width
    b = task // (groups * per_group)
    group = task % (groups * per_group) // per_group
    block = task % per_group
    w = min(width, group_width - block * width)
    return b, group, block, group * group_width + block * width, w


@helper
def clear(array: Any, start: Any, rows: Any, stride: Any, w: Any) -> None:
    """Zero the first `w` elements of `rows` rows."""
    for row in range(rows):
        for d in range(w):
            array[start + row * stride + d] = F(0.0)


@helper
def transpose(
    source: Any, at: Any, columns: Any, target: Any, to: Any, stride: Any, factor: Any, rows: Any
) -> None:
    """Copy columns of a matrix to vectors, times a factor.

    Args:
        source: Holds the matrix, row by row, from index `at`.
        at: See there.
        columns: Of the matrix.
        target: Receives the vectors from index `to`.
        to: See there.
        stride: Between the vectors of neighboring columns.
        factor: What all elements are multiplied by.
        rows: Of the matrix; for all others up to 16, zeros are written.
    """
    for row in range(rows):
        for column in range(columns):
            target[to + column * stride + row] = source[at + row * columns + column] * factor
    for row in range(rows, LANES):
        for column in range(columns):
            target[to + column * stride + row] = F(0.0)


@helper
def copy(source: Any, start: Any, target: Any, to: Any, w: Any) -> None:
    """Copy `w` elements."""
    for d in range(w):
        target[to + d] = source[start + d]
