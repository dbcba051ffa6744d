"""How often Triton compiles: a new batch or image size alone requires no new kernel.

Triton's own rule decides which kernel a launch uses; nothing is compiled.
"""

import os

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("nothing is compiled in the interpreter", allow_module_level=True)
import compile_for_gpu as scans
import compile_tiles_for_gpu as tiles
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime import jit

from vimamba_kernels import gpu_tasks

# batch and side of the image
SIZES = [
    *[(batch, 224) for batch in (1, 8, 17, 32, 64, 128)],
    *[(32, side) for side in (160, 192, 256, 288, 320, 384, 448, 512)],
]
# arguments that depend on these; `segments` may also be 1, which saves a division
OF_SIZE = {"L", "T", "T_padded", "segment_steps", "path_first", "size", "batch"}
OF_SIZE |= {"items", "per_program", "chunks", "segments", "segment_chunks"}


def stages(batch, side):
    """Sizes of VMamba-T: batch, tokens, channels."""
    return [(batch, (side // 4 >> i) ** 2, 96 << i) for i in range(4)]


def scan_launches(batch, side):
    cases = [
        scans.Case(b, 4, length, channels, 1, rank=channels // 16)
        for b, length, channels in stages(batch, side)
    ]
    cases.append(scans.Case(batch, 2, (side // 16) ** 2 + 1, 384, 16, gate=True, rank=24))
    for case in cases:
        for part in scans.record(case):
            for launch in part:
                yield gpu_tasks.kernel(launch.kernel), launch.arguments


def tile_launches(batch, side):
    cases = [tiles.conv_case(batch, 2, (side // 16) ** 2 + 1, 384)]
    cases += [
        tiles.ssd_case(b, 4, length, channels // 16, 16, 64)
        for b, length, channels in stages(batch, side)
    ]
    for case in cases:
        for part in case.passes():
            for launch in part:
                yield gpu_tasks.kernel(launch.kernel), launch.arguments


def specialization(function, arguments):
    """By parameter, what distinguishes kernels for Triton; constants with their values."""
    backend = make_backend(GPUTarget("cuda", 90, 32))
    bind = jit.create_function_from_signature(function.signature, function.params, backend)
    values, kinds, _ = bind(**arguments)
    return {
        name: (kind, values[name] if kind[0] == "constexpr" else None)
        for name, kind in zip(values, kinds, strict=True)
    }


# how many kernels there are for all 14 sizes; they were 51 and 70 when every scalar was specialized
@pytest.mark.parametrize(("launches", "most"), [(scan_launches, 41), (tile_launches, 27)])
def test_a_new_batch_or_image_size_alone_brings_no_new_kernel(launches, most):
    kernels, needed = set(), set()
    for size in SIZES:
        for function, arguments in launches(*size):
            kinds = specialization(function, arguments)
            fixed = {name: kind for name, kind in kinds.items() if name not in OF_SIZE}
            fixed["one_segment"] = arguments.get("segments") == 1
            kernels.add((function.__name__, repr(kinds)))
            needed.add((function.__name__, repr(fixed)))
    assert len(kernels) == len(needed)
    assert len(kernels) <= most


def test_the_tools_compile_what_triton_would():
    for function, arguments in [*scan_launches(17, 192), *tile_launches(17, 192)]:
        found = specialization(function, arguments)
        for name, kind in scans.specialization(function, arguments):
            (base, detail), value = found[name]
            if isinstance(kind, tuple):
                assert base == "constexpr"
                assert detail == kind[0] or value == kind[0]
            else:
                assert (base, detail == "D") == (kind.removesuffix("/16"), kind.endswith("/16"))
