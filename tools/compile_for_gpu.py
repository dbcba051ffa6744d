"""Compiles the Triton kernels for a GPU, without having one, and analyzes the machine code.

Triton includes an assembler and disassembler, so a kernel can be compiled for any NVIDIA or AMD
generation on any machine. This tool runs the launcher on meta tensors, records what it
would launch, compiles each kernel and counts the instructions of its loops. From the counts it
predicts a time, and prints it next to the time of the memory traffic alone.

    python tools/compile_for_gpu.py                      every case for an H200
    python tools/compile_for_gpu.py --target gfx942      registers and spills on an MI300
    python tools/compile_for_gpu.py --case vmamba_t_1

An issued instruction serves 32 lanes. "per (t, n, d)" counts instructions of one lane for one step,
state and channel; 8 of them take as long as one exp2 (16 a clock against 128 lanes).
"""

import argparse
import collections
import functools
import math
import re
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from warp_timing import clocks, parse

from vimamba_kernels import gpu_tasks
from vimamba_kernels.selective_scan import fused

TARGETS = {
    **{f"sm_{generation}": GPUTarget("cuda", generation, 32) for generation in (80, 90, 100, 120)},
    **{name: GPUTarget("hip", name, 64) for name in ("gfx90a", "gfx942")},
}
# an H200: bytes and clocks a second (boost), multiprocessors, bytes of the second-level cache
BANDWIDTH, CLOCK, PROCESSORS, CACHE = 4.3e12, 1.98e9, 132, 50e6
# per multiprocessor: registers, maximum number of programs, schedulers
REGISTERS, PROGRAMS, SCHEDULERS = 65536, 32, 4
# types of tensors as Triton writes them
POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


class Case(NamedTuple):
    """Sizes of a scan."""

    batch: int
    k: int
    length: int
    channels: int
    states: int
    gate: bool = False
    dtype: torch.dtype = torch.bfloat16
    groups: int | None = None
    merge: bool = True
    shared_u: bool = True
    # number of tokens missing at the end of a path
    missing: int = 0
    softplus: bool = True
    parameters: bool = True
    # rank of a projection of delta in the kernel
    rank: int | None = None


CASES = {
    "vim_s": Case(64, 2, 197, 768, 16, gate=True),
    "vmamba_t_1": Case(128, 4, 3136, 96, 1),
    "vmamba_t_2": Case(128, 4, 784, 192, 1),
    "vmamba_t_3": Case(128, 4, 196, 384, 1),
    "vmamba_t_4": Case(128, 4, 49, 768, 1),
    "vim_s_1248": Case(1, 2, 6085, 768, 16, gate=True),
    "vmamba_t_1_1024": Case(1, 4, 65536, 96, 1),
}
# the same with the projection of delta in the kernel, as in the models
RANKS = {"vim_s": 24, "vmamba_t_1": 6, "vmamba_t_2": 12, "vmamba_t_3": 24, "vmamba_t_4": 48}
RANKS |= {"vim_s_1248": 24, "vmamba_t_1_1024": 6}
PROJECTED = {f"{name}_projected": CASES[name]._replace(rank=rank) for name, rank in RANKS.items()}
# other cases that the launcher distinguishes: dtypes, ragged ends, options, numbers of states
VARIANTS = {
    "float32": Case(2, 2, 200, 768, 16, gate=True, dtype=torch.float32),
    "float16": Case(128, 4, 784, 192, 1, dtype=torch.float16),
    "ragged": Case(2, 2, 101, 100, 5, gate=True, missing=3),
    "ragged_float32": Case(64, 4, 101, 100, 1, dtype=torch.float32, missing=3),
    "separate": Case(4, 4, 49, 768, 1, gate=True, merge=False),
    "groups": Case(4, 4, 196, 384, 8, groups=4, shared_u=False),
    "one_path": Case(64, 1, 196, 384, 16, gate=True),
    "bare": Case(4, 2, 64, 128, 2, softplus=False, parameters=False),
    "thirty_two_states": Case(4, 2, 196, 128, 32),
    "half_a_block": Case(4, 4, 784, 192, 16),
    "sixty_four_states": Case(4, 4, 196, 128, 64),
    "projected_float32": Case(2, 2, 200, 768, 16, gate=True, dtype=torch.float32, rank=12),
    "projected_float16": Case(128, 4, 784, 192, 1, dtype=torch.float16, rank=12),
    "projected_ragged": Case(2, 2, 101, 100, 5, gate=True, missing=3, rank=7),
    "projected_groups": Case(4, 4, 196, 384, 8, groups=4, shared_u=False, rank=24),
    "projected_thirty_two_states": Case(4, 2, 196, 128, 32, rank=8),
}


class Launch(NamedTuple):
    """A kernel as the launcher calls it."""

    kernel: str
    programs: int
    warps: int
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        """The kernel's name without its module."""
        return self.kernel.rsplit(".", 1)[1]


class Loop(NamedTuple):
    """A loop of the machine code: addresses, instructions outside of inner loops, and inner loops.

    `seldom` are instructions that a branch skips unless the next matrix product is due.
    """

    own: list[tuple[int, str]]
    seldom: list[tuple[int, str]]
    inner: "list[Loop]"

    @property
    def opcodes(self) -> list[str]:
        """Opcodes of its instructions."""
        return [_opcode(operation) for _, operation in self.own]

    @property
    def rare(self) -> list[str]:
        """Opcodes of the instructions that are mostly skipped."""
        return [_opcode(operation) for _, operation in self.seldom]


def _opcode(operation: str) -> str:
    return re.sub(r"^@!?U?P\w+\s+", "", operation).split()[0]


class Compiled(NamedTuple):
    """A compiled kernel."""

    registers: int
    # bytes spilled to memory, or registers on AMD
    spilled: int
    shared: int
    loops: list[Loop]
    text: str


def tensors(case: Case) -> dict[str, Any]:
    """Arguments of the operator, meta tensors except for the paths."""

    def empty(*shape: int, dtype: torch.dtype = case.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    rows = (case.batch, case.k, case.length)
    groups = rows[:2] + (() if case.groups is None else (case.groups,)) + (case.length, case.states)
    row = (case.k, case.channels)
    u = (case.batch, case.length, case.channels) if case.shared_u else (*rows, case.channels)
    # int64 like the models' tables, which the launcher converts
    paths = torch.arange(case.length - case.missing, dtype=torch.int64).repeat(case.k, 1)
    return {
        "u": empty(*u),
        "delta": empty(*rows, case.rank or case.channels),
        "A": empty(*row, case.states, dtype=torch.float32),
        "B": empty(*groups),
        "C": empty(*groups),
        "D": empty(*row, dtype=torch.float32) if case.parameters else None,
        "z": empty(case.batch, case.length, case.channels) if case.gate else None,
        "delta_bias": empty(*row, dtype=torch.float32) if case.parameters else None,
        "delta_weight": empty(*row, case.rank) if case.rank else None,
        "delta_softplus": case.softplus,
        "paths": paths,
        "merge": case.merge,
    }


def recorded(
    function: Callable[..., Any], *arguments: Any, **options: Any
) -> tuple[Any, list[Launch]]:
    """The result of a launcher on an H200, and what it would launch; its tensors are meta."""
    launches: list[Launch] = []

    def note(name: str, programs: int, *, warps: int, **taken: Any) -> None:
        launches.append(Launch(name, programs, warps, taken))

    with (
        mock.patch.object(gpu_tasks, "launch", note),
        mock.patch.object(gpu_tasks, "processors", return_value=PROCESSORS),
    ):
        result = function(*arguments, **options)
    return result, launches


def record(
    case: Case, plan: fused.Plan | None = None, *, deterministic: bool = False
) -> tuple[list[Launch], list[Launch]]:
    """Launches of the forward pass (with what it saves) and of the backward pass.

    Args:
        case: The sizes.
        plan: How to split the work, with the launcher's blocks. By default as the launcher chooses
            on an H200.
        deterministic: Whether atomics are forbidden.
    """

    def cut(shape: tuple[int, int]) -> fused.Plan | None:
        return plan and plan._replace(block=shape[0], unroll=shape[1])

    arguments = tensors(case)
    width = case.channels // (case.groups or 1)
    forbidden = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic)
    try:
        plan_forward = cut(fused.forward_block(case.states, width))
        (y, *saved), forward = recorded(fused.forward, **arguments, save=True, plan=plan_forward)
        inputs = (torch.empty_like(y), *arguments.values(), *saved)
        plan_backward = cut(fused.backward_block(case.states, width))
        _, backward = recorded(fused.backward, *inputs, plan=plan_backward)
    finally:
        torch.use_deterministic_algorithms(forbidden)
    return forward, backward


# each parameter's type or, in a tuple, its constant value
Specialization = tuple[tuple[str, str | tuple[Any]], ...]


def specialize(launch: Launch) -> Specialization:
    """The parameters of a call, as Triton specializes them."""
    return specialization(gpu_tasks.kernel(launch.kernel), launch.arguments)


def specialization(function: Any, arguments: dict[str, Any]) -> Specialization:
    """The parameters of a kernel, as Triton specializes a call with these arguments."""
    return tuple((p.name, _kind(p, arguments[p.name])) for p in function.params)


def _kind(parameter: Any, value: Any) -> str | tuple[Any]:
    if isinstance(value, Tensor):
        # tensors that PyTorch allocates are aligned
        return POINTERS[value.dtype] + "/16"
    if parameter.is_constexpr or value is None:
        return (value,)
    if isinstance(value, float):
        return "fp32"
    if parameter.do_not_specialize:
        return "i32"
    if value == 1:
        return (value,)
    aligned = value % 16 == 0 and not parameter.do_not_specialize_on_alignment
    return "i32/16" if aligned else "i32"


def source_of(function: Any, specialization: Specialization) -> ASTSource:
    """What Triton compiles for a call that `specialization` describes."""
    constants = {name: kind[0] for name, kind in specialization if isinstance(kind, tuple)}
    signature = {
        name: kind.removesuffix("/16") if isinstance(kind, str) else "constexpr"
        for name, kind in specialization
    }
    attributes = {
        (place,): [["tt.divisibility", 16]]
        for place, (_, kind) in enumerate(specialization)
        if isinstance(kind, str) and kind.endswith("/16")
    }
    return ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes)


def compile_launch(launch: Launch, target: str) -> Compiled:
    """Compile a kernel for a name in `TARGETS`."""
    return _compile(launch.kernel, launch.warps, specialize(launch), target)


@functools.cache
def _compile(kernel: str, warps: int, parameters: Specialization, target: str) -> Compiled:
    gpu = TARGETS[target]
    if gpu.backend == "hip":
        # as the launcher requests on AMD GPUs
        parameters = tuple(
            (name, ("ieee",) if name == "PRECISION" else kind) for name, kind in parameters
        )
    source = source_of(gpu_tasks.kernel(kernel), parameters)
    options = {"num_warps": warps, "num_stages": 1}
    compiled = triton.compile(source, target=gpu, options=options)
    shared = compiled.metadata.shared
    if gpu.backend == "cuda":
        return _read_nvidia(compiled.asm["cubin"], shared)
    text = compiled.asm["amdgcn"]
    found = {k: int(v) for k, v in re.findall(r"\.([sv]gpr\w*count):\s*(\d+)", text)}
    # scalar registers are spilled into vector registers, not into memory
    return Compiled(found["vgpr_count"], found["vgpr_spill_count"], shared, [], text)


def _read_nvidia(cubin: bytes, shared: int) -> Compiled:
    """Resources of a compiled kernel; it does not state its `shared` bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage, code = (
            subprocess.run([tool, option, path], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert found is not None, usage
    registers, stack, local = map(int, found.groups())
    return Compiled(registers, stack + local, shared, list(_find_loops(code)), code)


def _find_loops(code: str) -> Iterator[Loop]:
    lines = [(int(a, 16), o) for a, o in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);", code)]
    products = [address for address, operation in lines if "HMMA" in operation]
    ranges, skipped = [], []
    for address, operation in lines:
        jump = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", operation)
        target = int(jump[1], 16) if jump else address
        if target < address:
            ranges.append((target, address))
        elif any(address < product < target for product in products):
            skipped.append((address, target))

    def build(start: int, end: int) -> Loop:
        within = [r for r in ranges if start <= r[0] and r[1] <= end and r != (start, end)]
        direct = [r for r in within if not any(_contains(o, r) for o in within if o != r)]
        own, rare = [], []
        for address, operation in lines:
            if start <= address <= end and not any(a <= address <= b for a, b in direct):
                branch = any(start <= a < address < b <= end for a, b in skipped)
                (rare if branch else own).append((address, operation))
        return Loop(own, rare, [build(*r) for r in direct])

    outer = [r for r in ranges if not any(_contains(o, r) for o in ranges if o != r)]
    return (build(*r) for r in outer)


def _contains(outer: tuple[int, int], inner: tuple[int, int]) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def step_loop(compiled: Compiled, launch: Launch) -> tuple[Loop, list[str]]:
    """The loop over groups of steps, and every instruction issued in one iteration."""
    loops = compiled.loops
    while True:
        largest = max(loops, key=_length)
        inner = [loop for loop in largest.inner if not _projects(loop)]
        # backward, several states are a loop inside the loop over steps
        states = launch.name == "scan_backward" and launch.arguments["N"] > 1
        if not inner or (states and not any(loop.inner for loop in inner)):
            break
        loops = inner
    turns = launch.arguments["N"]
    return largest, largest.opcodes + [o for i in inner for o in i.opcodes] * turns


def _projects(loop: Loop) -> bool:
    """Whether a loop does nothing but matrix products."""
    kinds = {o.split(".")[0] for i in (loop, *loop.inner) for o in (*i.opcodes, *i.rare)}
    return "HMMA" in kinds and "MUFU" not in kinds


def _projecting(loop: Loop, launch: Launch) -> float:
    """Instructions for matrix products, each for 16 steps, per iteration of the loop over steps."""
    arguments = launch.arguments
    parts, slices = arguments["BLOCK"] // 32, -(-arguments.get("RANK", 0) // 16)
    turns = sum(
        parts * (len(i.opcodes) + len(i.rare) + slices * sum(map(_length, i.inner)))
        for i in loop.inner
        if _projects(i)
    )
    return (len(loop.rare) + turns) * arguments["UNROLL"] / 16


def _length(loop: Loop) -> int:
    return len(loop.opcodes) + len(loop.rare) + sum(map(_length, loop.inner))


class Count(NamedTuple):
    """Instructions per lane for one step, state and channel, by kind."""

    issued: float
    exps: float
    shuffles: float
    barriers: float
    # width of the widest load, bits
    widest: int


def count(compiled: Compiled, launch: Launch) -> Count:
    """Instructions issued by the loop over the steps."""
    arguments = launch.arguments
    loop, opcodes = step_loop(compiled, launch)
    work = arguments["UNROLL"] * arguments["N"] * arguments["BLOCK"] / 32
    kinds = collections.Counter(o.split(".")[0] for o in opcodes)
    wide = [int(o.rsplit(".", 1)[1]) for o in opcodes if re.fullmatch(r"LDG\.E.*\.(64|128)", o)]
    return Count(
        (len(opcodes) + _projecting(loop, launch)) / work,
        kinds["MUFU"] / work,
        kinds["SHFL"] / work,
        (kinds["BAR"] + kinds["WARPSYNC"]) / work,
        max(wide, default=32),
    )


def turn_clocks(compiled: Compiled, launch: Launch) -> float:
    """Clocks per iteration of the loop over the steps for a warp alone on its scheduler."""
    loop, _ = step_loop(compiled, launch)
    arguments = launch.arguments
    period = 16 // arguments["UNROLL"] if arguments.get("RANK") else 1
    turns = [list(_turn(loop, launch, due=i % period == period - 1)) for i in range(2 * period + 1)]
    taken_apart = {operation: parse(operation) for turn in turns for operation in turn}
    return clocks([[taken_apart[operation] for operation in turn] for turn in turns])


def _turn(loop: Loop, launch: Launch, *, due: bool) -> Iterator[str]:
    """Instructions of an iteration in order; with `due`, including the matrix product."""
    items: list[tuple[int, Any]] = [*loop.own, *(loop.seldom if due else ())]
    for inner in loop.inner:
        projects = _projects(inner)
        first = min(address for address, _ in (*inner.own, *inner.seldom))
        if not projects:
            repeats = launch.arguments["N"]
        elif inner.inner:
            repeats = launch.arguments["BLOCK"] // 32
        else:
            repeats = -(-launch.arguments["RANK"] // 16)
        if due or not projects:
            items.append((first, (inner, repeats)))
    for _, item in sorted(items, key=lambda item: item[0]):
        if isinstance(item, str):
            yield item
        else:
            for _ in range(item[1]):
                yield from _turn(item[0], launch, due=due)


class Prediction(NamedTuple):
    """Seconds on an H200 by each of three limits; the largest is the prediction."""

    # if schedulers always have an instruction to issue
    issue: float
    # if the resident warps wait for their loads
    latency: float
    # to move every tensor once, and sums over paths as often as they are updated
    bytes: float


def predict(launch: Launch, counted: Count, compiled: Compiled) -> Prediction:
    """Predict how long a launch takes."""
    arguments = launch.arguments
    paths = arguments.get("path_count", 1)
    steps = min(arguments["segment_steps"], arguments["T"])
    work = launch.programs * paths * arguments["BLOCK"] * steps
    lanes = work * arguments["N"] / (PROCESSORS * CLOCK)
    issue = max(counted.issued / 128, counted.exps / 16) * lanes
    # registers are allocated in units of 256 per warp, that is 8 per lane
    most = min(PROGRAMS, REGISTERS // (32 * -(-compiled.registers // 8) * 8))
    programs = -(-launch.programs // PROCESSORS)
    alone = turn_clocks(compiled, launch)
    issued = counted.issued * arguments["UNROLL"] * arguments["N"] * arguments["BLOCK"] / 32
    together = [most] * (programs // most) + [programs % most] * (programs % most > 0)
    turn = sum(max(alone, -(-warps // SCHEDULERS) * issued) for warps in together)
    latency = paths * -(-steps // arguments["UNROLL"]) * turn / CLOCK
    return Prediction(issue, latency, moved(launch) / BANDWIDTH)


def moved(launch: Launch) -> float:
    """Bytes moved by a launch, and by PyTorch before and after it for sums over paths."""
    arguments = launch.arguments
    once = sum(
        t.nbytes for name, t in arguments.items() if isinstance(t, Tensor) and name != "total"
    )
    total, paths = arguments.get("total"), arguments["K"]
    if total is not None:
        mode = arguments["MERGE"]
        # first written, then read and written, and only read by the last of several
        touched = 2 * paths - 2 if mode == "own" else 2 * paths
        once += total.nbytes * (touched if total.nbytes > CACHE else 1)
        if mode == "atomic":
            # zeros before, conversion to the output's dtype after
            once += 2 * total.nbytes + total.numel() * arguments["u"].element_size()
    return once


def floor(case: Case, *, backward: bool) -> float:
    """Seconds that an H200 takes to move every input and output once."""
    arguments = tensors(case)
    rows = ["u", "delta", "B", "C", "z"]
    moved = sum(t.nbytes for name in rows if (t := arguments[name]) is not None)
    y = math.prod((case.batch, 1 if case.merge else case.k, case.length, case.channels))
    moved = (2 * moved if backward else moved) + y * case.dtype.itemsize
    if backward and case.rank:
        # the gradient of the product
        moved += case.batch * case.k * case.length * case.channels * case.dtype.itemsize
    return moved / BANDWIDTH


def report(name: str, case: Case, target: str) -> None:
    """Print a line for every kernel that the case launches."""
    for title, launches in zip(("forward", "backward"), record(case), strict=True):
        total = 0.0
        for launch in launches:
            compiled = compile_launch(launch, target)
            line = f"  {launch.name:14} {launch.programs:7} programs {compiled.registers:4} regs"
            line += f" {compiled.spilled:3} spilled"
            if compiled.loops and "UNROLL" in launch.arguments:
                counted = count(compiled, launch)
                times = predict(launch, counted, compiled)
                total += max(times)
                line += f"  {counted.issued:5.1f} issued {counted.exps:4.1f} MUFU"
                line += f" {counted.shuffles:4.1f} SHFL {counted.barriers:4.1f} BAR"
                line += f" per (t, n, d)  {counted.widest:3}-bit"
                line += " us:" + "".join(
                    f" {1e6 * time:.0f} {name}" for name, time in times._asdict().items()
                )
            print(line)
        least = floor(case, backward=title == "backward")
        print(f"{name} {title}: {1e6 * total:.0f} us, {1e6 * least:.0f} us for the bytes alone")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--target", choices=TARGETS, default="sm_90")
    cases = CASES | PROJECTED | VARIANTS
    parser.add_argument("--case", choices=cases, action="append", help="default: models' sizes")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in options.case or CASES:
        report(name, cases[name], options.target)


if __name__ == "__main__":
    main()
