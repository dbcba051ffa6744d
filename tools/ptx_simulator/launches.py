"""Runs the operators' launchers, with kernels compiled for a GPU and executed here."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from unittest import mock

import torch
import triton
from compile_for_gpu import Specialization, source_of, specialization
from torch import Tensor
from triton.backends.compiler import GPUTarget

from ptx_simulator.machine import Machine
from ptx_simulator.memory import Finding
from ptx_simulator.program import Instruction, Program
from ptx_simulator.values import Array
from vimamba_kernels import gpu_tasks
from vimamba_kernels.mamba3 import op as mamba3_op
from vimamba_kernels.path_conv import op as conv_op
from vimamba_kernels.selective_scan import op as scan_op
from vimamba_kernels.ssd import op as ssd_op

# a small GPU, which small problems fill as large ones fill a real GPU
PROCESSORS = 2
Change = Callable[[str, str], str]


@dataclass
class Report:
    """What happened while kernels ran.

    Attributes:
        kernels: Names of the kernels that ran, in order.
        opcodes: Opcodes of all their instructions.
        findings: Counts of kernel, finding, and both instructions.
    """

    kernels: list[str] = field(default_factory=list)
    opcodes: set[str] = field(default_factory=set)
    findings: "Counter[tuple[str, Finding, Instruction, Instruction]]" = field(
        default_factory=Counter
    )

    def __str__(self) -> str:
        return "\n".join(
            f"{count} x {kernel}: {finding.kind} in {finding.space} memory ({finding.scope})\n"
            f"    {earlier}\n    {later}"
            for (kernel, finding, earlier, later), count in self.findings.most_common()
        )


@contextmanager
def simulated(target: str, change: Change | None = None) -> Iterator[Report]:
    """Within the block, `backend="triton"` of all operators runs here, on CPU tensors.

    Args:
        target: An NVIDIA GPU, such as "sm_90".
        change: Takes a kernel's name and its PTX and returns the PTX to run, to test the effect of
            a change such as a missing barrier.

    Yields:
        The report, which is updated by every launch.

    Raises:
        MemoryAccessError: An address is out of bounds or misaligned.
    """
    report = Report()

    def run(function: Any, programs: int, *, warps: int, **arguments: Any) -> None:
        if programs > 0:
            _run(report, target, change, function, programs, warps, arguments)

    operators = (scan_op, conv_op, ssd_op, mamba3_op)
    with ExitStack() as stack:
        for place, name, function in (
            (gpu_tasks, "run", run),
            (gpu_tasks, "processors", lambda device: PROCESSORS),
            *((op, "triton_obstacle", lambda name, x: None) for op in operators),
        ):
            stack.enter_context(mock.patch.object(place, name, function))
        yield report


def _run(
    report: Report,
    target: str,
    change: Change | None,
    kernel: Any,
    programs: int,
    warps: int,
    arguments: dict[str, Any],
) -> None:
    parameters = specialization(kernel, arguments)
    ptx, shared = _compile(kernel, parameters, target, warps)
    name = kernel.__name__
    program = Program(change(name, ptx) if change else ptx)
    taken = [_as_array(arguments[name]) for name, kind in parameters if isinstance(kind, str)]
    machine = Machine(program, taken, programs, shared).run()
    report.kernels.append(name)
    report.opcodes |= {instruction.opcode for instruction in program.instructions}
    for finding, count in machine.findings.items():
        earlier, later = (program.instructions[i] for i in (finding.earlier, finding.later))
        report.findings[name, finding, earlier, later] += count


@cache
def _compile(kernel: Any, parameters: Specialization, target: str, warps: int) -> tuple[str, int]:
    """PTX and the size of shared memory in bytes."""
    source = source_of(kernel, parameters)
    gpu = GPUTarget("cuda", int(re.sub(r"\D", "", target)), 32)
    compiled = triton.compile(source, target=gpu, options={"num_warps": warps, "num_stages": 1})
    return compiled.asm["ptx"], compiled.metadata.shared


def _as_array(value: Any) -> Array | int | float:
    """A tensor's memory as a NumPy array, which receives results; numbers unchanged."""
    if not isinstance(value, Tensor):
        return value
    tensor = value.detach()
    if not tensor.is_contiguous():
        raise ValueError("a kernel takes a tensor that is not contiguous")
    halves = (torch.bfloat16, torch.float16)
    return (tensor.view(torch.int16) if tensor.dtype in halves else tensor).numpy()
