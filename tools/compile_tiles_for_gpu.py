"""Compiles the Triton kernels that work on tiles for a GPU: convolution along paths, Mamba-2.

Like compile_for_gpu.py for the selective scan, this runs the launchers on meta tensors and
compiles what they would launch. For every kernel it prints the instructions that a warp issues per
tile, the time to issue all of them and the time to move each of the kernel's tensors once; for
every case also the time to move inputs and outputs once.

    python tools/compile_tiles_for_gpu.py                     every case for an H200
    python tools/compile_tiles_for_gpu.py --target gfx942     registers and spills on an MI300
    python tools/compile_tiles_for_gpu.py --case vmamba_t_m2_1
"""

import argparse
import re
import warnings
from collections.abc import Callable
from typing import NamedTuple

import compile_for_gpu as machine
import torch
from compile_for_gpu import Launch, compile_launch, recorded
from torch import Tensor

from vimamba_kernels.path_conv import fused as conv
from vimamba_kernels.ssd import fused as ssd


class Case(NamedTuple):
    """Both passes of an operator, and the bytes of inputs and outputs."""

    passes: Callable[[], tuple[list[Launch], list[Launch]]]
    forward_bytes: int
    backward_bytes: int


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _paths(k: int, steps: int) -> Tensor:
    return torch.arange(steps, dtype=torch.int64).repeat(k, 1)


def _moved(inputs: list[Tensor | None], y: Tensor) -> tuple[int, int]:
    once = sum(t.nbytes for t in inputs if t is not None)
    return once + y.nbytes, 2 * once + y.nbytes


def conv_case(
    batch: int,
    k: int,
    length: int,
    channels: int,
    *,
    taps: int = 4,
    dtype: torch.dtype = torch.bfloat16,
    missing: int = 0,
    bare: bool = False,
) -> Case:
    """A convolution with `missing` fewer steps than tokens, or `bare`: no optional arguments."""
    x, weight = _empty(batch, length, channels, dtype=dtype), _empty(k, channels, taps)
    options = (None, None, None)
    if not bare:
        options = (_empty(k, channels), _paths(k, length - missing), "silu")
    y = _empty(batch, k, length, channels, dtype=dtype)

    def passes() -> tuple[list[Launch], list[Launch]]:
        _, forward = recorded(conv.forward, x, weight, *options)
        return forward, recorded(conv.backward, y, x, weight, *options)[1]

    return Case(passes, *_moved([x], y))


def ssd_case(
    batch: int,
    k: int,
    length: int,
    heads: int,
    width: int,
    states: int,
    *,
    groups: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    missing: int = 0,
    gate: bool = False,
    with_states: bool = False,
    per_path: bool = False,
    bare: bool = False,
) -> Case:
    """A scan of Mamba-2; with `per_path`, each path has separate inputs and outputs."""
    separate = (k,) if per_path else ()
    rows = (length, heads, width)
    x = _empty(batch, *separate, *rows, dtype=dtype)
    dt = _empty(batch, k, length, heads, dtype=dtype)
    B, C = (_empty(batch, k, length, groups, states, dtype=dtype) for _ in range(2))
    z = _empty(batch, *rows, dtype=dtype) if gate else None
    D, bias = (None, None) if bare else (_empty(k, heads, width), _empty(k, heads))
    state = _empty(batch, k, heads, width, states) if with_states else None
    paths = None if bare else _paths(k, length - missing)
    tensors = (x, dt, _empty(k, heads), B, C, D, z, bias, state)
    options = (not bare, None, paths, not per_path)
    y = _empty(batch, *separate, *rows, dtype=dtype)

    def passes() -> tuple[list[Launch], list[Launch]]:
        _, forward = recorded(ssd.forward, *tensors, *options, with_states)
        return forward, recorded(ssd.backward, y, state, *tensors, *options)[1]

    return Case(passes, *_moved([x, dt, B, C, z], y))


CASES = {
    "vim_s_conv": conv_case(64, 2, 197, 768),
    "vim_s_1248_conv": conv_case(1, 2, 6085, 768),
    "vmamba_t_m2_1": ssd_case(128, 4, 3136, 6, 16, 64),
    "vmamba_t_m2_2": ssd_case(128, 4, 784, 12, 16, 64),
    "vmamba_t_m2_3": ssd_case(128, 4, 196, 24, 16, 64),
    "vmamba_t_m2_4": ssd_case(128, 4, 49, 48, 16, 64),
    "vmamba_t_m2_1_1024": ssd_case(1, 4, 65536, 6, 16, 64),
    "mamba2_130m": ssd_case(8, 1, 2048, 24, 64, 128, gate=True, bare=True),
}
# other cases that the launchers distinguish: dtypes, ragged ends, options, taps and states
VARIANTS = {
    "conv_float32": conv_case(64, 2, 197, 768, dtype=torch.float32),
    "conv_float16": conv_case(64, 2, 197, 384, dtype=torch.float16),
    "conv_ragged": conv_case(3, 3, 101, 100, taps=5, missing=3),
    "conv_bare": conv_case(2, 1, 64, 64, taps=3, bare=True),
    "conv_eight_taps": conv_case(2, 1, 63, 33, taps=8, dtype=torch.float32),
    "ssd_float32": ssd_case(8, 4, 196, 6, 16, 64, dtype=torch.float32, missing=3),
    "ssd_float32_wide": ssd_case(2, 2, 196, 8, 64, 64, dtype=torch.float32, gate=True),
    "ssd_float16": ssd_case(8, 4, 784, 12, 16, 64, dtype=torch.float16),
    "ssd_float16_wide": ssd_case(2, 1, 784, 4, 64, 64, dtype=torch.float16, with_states=True),
    "ssd_wide": ssd_case(8, 2, 784, 8, 64, 64, gate=True),
    "ssd_all_options": ssd_case(
        2, 4, 3136, 6, 16, 64, gate=True, with_states=True, per_path=True, missing=1
    ),
    "ssd_many_states": ssd_case(2, 4, 1000, 4, 16, 128, gate=True, with_states=True, groups=2),
    "ssd_few_states": ssd_case(8, 4, 784, 12, 16, 16),
    "ssd_ragged": ssd_case(2, 3, 101, 7, 20, 24, groups=7, gate=True, missing=3),
    "ssd_ragged_float32": ssd_case(2, 3, 101, 7, 20, 24, missing=3, dtype=torch.float32),
    "ssd_one_head": ssd_case(2, 1, 50, 1, 5, 3, bare=True),
}


def issued(compiled: machine.Compiled, launch: Launch) -> float:
    """Instructions that one warp issues."""
    arguments = launch.arguments
    turns = {
        "conv_forward": "per_program",
        "conv_slopes": "per_program",
        "conv_inputs": "K",
        "gather_rows": "K",
        "gate_backward": "K",
        "walk_states": "segment_chunks",
        "ssd_outputs": "segment_chunks",
        "carry_segments": "segments",
        "ssd_gradients": "per_program",
    }
    total = len(re.findall(r"/\*[0-9a-f]{4,}\*/\s+[^;]+;", compiled.text))
    if launch.name not in turns:
        return total
    parts = -(-arguments["P"] // arguments["PB"]) if launch.name == "ssd_gradients" else 1
    for loop in compiled.loops:
        inner = sum(_length(i) for i in loop.inner)
        turn = len(loop.opcodes) + len(loop.rare) + parts * inner
        total += arguments[turns[launch.name]] * turn - _length(loop)
    return total


def _length(loop: machine.Loop) -> int:
    return len(loop.opcodes) + len(loop.rare) + sum(map(_length, loop.inner))


def report(name: str, case: Case, target: str) -> None:
    """Print a line for every kernel that the case launches."""
    floors = (case.forward_bytes, case.backward_bytes)
    for title, launches, floor in zip(("forward", "backward"), case.passes(), floors, strict=True):
        totals = [0.0, 0.0]
        for launch in launches:
            compiled = compile_launch(launch, target)
            line = f"  {launch.name:14} {launch.programs:7} programs {compiled.registers:4} regs"
            line += f" {compiled.spilled:3} spilled {compiled.shared:6} shared"
            if target.startswith("sm"):
                count = issued(compiled, launch)
                slots = 4 * machine.PROCESSORS * machine.CLOCK
                moved = sum(t.nbytes for t in launch.arguments.values() if isinstance(t, Tensor))
                times = (launch.programs * launch.warps * count / slots, moved / machine.BANDWIDTH)
                totals = [total + time for total, time in zip(totals, times, strict=True)]
                line += f" {sum(map(_length, compiled.loops)):5} in loops"
                line += f" {1e6 * times[0]:6.0f} us to issue {1e6 * times[1]:6.0f} us for its bytes"
            print(line)
        least = 1e6 * floor / machine.BANDWIDTH
        print(
            f"{name} {title}: {1e6 * totals[0]:.0f} us to issue, {1e6 * totals[1]:.0f} us for the "
            f"kernels' bytes, {least:.0f} us for inputs and outputs"
        )


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--target", choices=machine.TARGETS, default="sm_90")
    cases = CASES | VARIANTS
    parser.add_argument("--case", choices=cases, action="append", help="default: models' sizes")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in options.case or CASES:
        report(name, cases[name], options.target)


if __name__ == "__main__":
    main()
