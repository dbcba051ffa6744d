"""`vimamba benchmark` with more candidates: python tools/benchmark.py ops --backward.

On a CPU, it adds a plain C scan (tools/anchor), compiled with gcc on first use: what one core can
do, and the baseline of the ratios in the table. On a GPU, it adds mamba-ssm if that is installed.
`volumes` compares volume networks with MONAI's (volume_benchmark.py), `zoo` every family with
timm's models of its size (zoo_benchmark.py).
"""

import ctypes
import hashlib
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from vimamba.benchmark.ops import Extra, Inputs
from vimamba.benchmark.timing import Run
from vimamba.cli.benchmark import benchmark
from vimamba.files import write_whole

ROOT = Path(__file__).parents[1]
SOURCES = [ROOT / "tools" / "anchor" / name for name in ("scan.c", "scan_tmpl.h")]
FLAGS = "-O3 -march=native -ffast-math -fopenmp -shared -fPIC -mprefer-vector-width=512"
CHUNK = 32


def compile_anchor() -> ctypes.CDLL:
    """The C scan as a library, compiled once per version of its source."""
    source = b"".join(path.read_bytes() for path in SOURCES)
    library = ROOT / "build" / f"scan_{hashlib.sha256(source).hexdigest()[:12]}.so"
    if not library.exists():
        with write_whole(library) as part:
            command = ["gcc", *FLAGS.split(), "-o", str(part), str(SOURCES[0]), "-lm"]
            subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


def pointer(t: Tensor | None) -> ctypes.c_void_p:
    """Address of a tensor's data."""
    return ctypes.c_void_p(0 if t is None else t.data_ptr())


def block_width(channels: int, batch: int, states: int) -> int:
    """Channels per task of the C scan: as many as leave work for every thread."""
    threads = torch.get_num_threads()
    for width in (64, 32, 16) if states == 16 else (96, 64, 32, 16):
        if channels % width == 0 and (batch * (channels // width)) % threads == 0:
            return width
    return 16


class Anchor:
    """The C scan as a candidate; it supports N = 1 and 16, float32, merged paths."""

    def __init__(self) -> None:
        self.library = compile_anchor()

    def __call__(self, x: Inputs, backward: bool) -> Run | None:
        """A call that fills preallocated tensors."""
        states = x.B.shape[-1]
        if states not in (1, 16) or x.u.dtype != torch.float32:
            return None
        self.library.set_threads(torch.get_num_threads())
        batch, length, channels = x.u.shape
        k = len(x.paths)
        sizes = (batch, k, length, channels, CHUNK)
        width = block_width(channels, batch, states)
        A, paths = x.A.transpose(1, 2).contiguous(), x.paths.int()
        y = torch.empty_like(x.u)
        saved = torch.empty(batch, k, -(-length // CHUNK), states, channels) if backward else None
        inputs = (x.u, x.delta, A, x.B, x.C, x.D, x.delta_bias, paths)
        forward = getattr(self.library, f"fwd_N{states}_W{width}")
        parts = 1 if batch >= torch.get_num_threads() else torch.get_num_threads()
        outputs = (
            torch.empty_like(x.u),
            torch.empty_like(x.delta),
            torch.empty(batch, k, states, channels),
            torch.empty(parts, *x.B.shape),
            torch.empty(parts, *x.C.shape),
            torch.empty(batch, k, channels),
            torch.empty(batch, k, channels),
        )
        grad = torch.randn_like(x.u)
        reverse = getattr(self.library, f"bwd_N{states}_W{width}")

        def run() -> object:
            forward(*map(pointer, (*inputs, y, saved)), *sizes)
            if backward:
                reverse(*map(pointer, (*inputs, saved, grad, *outputs)), *sizes, parts)
                return [t.sum(0) for t in outputs[2:]]
            return y

        return run


def mamba_ssm(x: Inputs, backward: bool) -> Run | None:
    """mamba-ssm's CUDA kernel over explicit copies, one call per path."""
    if not x.u.is_cuda:
        return None
    from mamba_ssm.ops.selective_scan_interface import (  # type: ignore[import-not-found]
        selective_scan_fn,
    )

    leaves = [t.detach().requires_grad_(backward) for t in x.differentiable]
    u, delta, A, B, C, D, bias = leaves

    def forward() -> Tensor:
        total = torch.zeros_like(u)
        for k, path in enumerate(x.paths):
            rows = [t[:, path].mT.contiguous() for t in (u, delta[:, k], B[:, k], C[:, k])]
            y = selective_scan_fn(
                *rows[:2], A[k], *rows[2:], D[k], delta_bias=bias[k], delta_softplus=True
            )
            total = total.index_add(1, path, y.mT)
        return total

    cotangent = torch.randn_like(u)
    return (lambda: torch.autograd.grad(forward(), leaves, cotangent)) if backward else forward


def main() -> int:
    """Run with every candidate that is available on this machine."""
    if sys.argv[1:2] == ["volumes"]:
        import volume_benchmark

        return volume_benchmark.main(sys.argv[2:])
    if sys.argv[1:2] == ["zoo"]:
        import zoo_benchmark

        return zoo_benchmark.main(sys.argv[2:])
    extras: dict[str, Extra] = {}
    floor = None
    if not torch.cuda.is_available() and shutil.which("gcc"):
        extras["C"] = Anchor()
        floor = "C"
    if importlib.util.find_spec("mamba_ssm"):
        extras["mamba-ssm"] = mamba_ssm
    return benchmark(sys.argv[1:], extras, floor)


if __name__ == "__main__":
    sys.exit(main())
