"""Runs compiled Triton kernels in NumPy, without a GPU, and finds errors that interpreters cannot.

Triton compiles a kernel for any NVIDIA GPU on any machine; the result is PTX, the assembly language
of an idealized GPU. Here all threads of all programs of a launch execute this PTX in lockstep,
including layouts, conversions, shuffles, barriers and tensor cores as compiled. Unordered memory
accesses, addresses outside the tensors, misaligned vectors and reads of uninitialized shared memory
are reported with the line of the Triton source.

    program.py       PTX parser
    values.py        number formats and arithmetic
    memory.py        global and shared memory, and the order of accesses to them
    tensor_cores.py  which lane holds which element of a matrix product
    flow.py          position of each thread: branches and barriers
    machine.py       registers and instructions
    launches.py      compiles and runs what the launchers launch

    from ptx_simulator import simulated

    with simulated("sm_90") as report:
        y, *saved = fused.forward(**arguments, save=True)  # tensors on the CPU
    assert not report.findings

docs/simulator.md lists what it does not detect.
"""

from ptx_simulator.launches import Report, simulated
from ptx_simulator.machine import Machine
from ptx_simulator.memory import Finding, MemoryAccessError
from ptx_simulator.program import Program

__all__ = ["Finding", "Machine", "MemoryAccessError", "Program", "Report", "simulated"]
