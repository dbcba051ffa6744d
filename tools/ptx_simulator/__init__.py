"""Runs compiled Triton kernels without a GPU, in NumPy, and finds what no interpreter can.

Triton compiles a kernel for any NVIDIA GPU on any machine; what comes out is PTX, the assembly of
an idealised GPU. Here all threads of all programs of a launch execute that PTX side by side, so
that layouts, conversions, shuffles, barriers and tensor cores take part as they were compiled.
Accesses to memory that nothing orders, addresses outside the tensors, misaligned vectors and reads
of shared memory that nobody wrote are reported with the line of the Triton source.

    program.py       PTX taken apart
    values.py        number formats and arithmetic
    memory.py        global and shared memory, and the order of accesses to them
    tensor_cores.py  which lane holds which element of a matrix product
    flow.py          where each thread stands: branches and barriers
    machine.py       registers and instructions
    launches.py      compiles what the launchers would launch, and runs it

    from ptx_simulator import simulated

    with simulated("sm_90") as report:
        y, *saved = fused.forward(**arguments, save=True)  # tensors on the CPU
    assert not report.findings

What it does not see stands in docs/simulator.md.
"""

from ptx_simulator.launches import Report, simulated
from ptx_simulator.machine import Machine
from ptx_simulator.memory import Finding, MemoryAccessError
from ptx_simulator.program import Program

__all__ = ["Finding", "Machine", "MemoryAccessError", "Program", "Report", "simulated"]
