"""Global and shared memory, which check bounds and the order of accesses.

Order is tracked per cell, the two bytes of the smallest element that kernels store. Two accesses of
different threads to a cell, of which at least one writes, must be ordered by a barrier of their
program or of their warp, or both be atomic. A read is also ordered before a write of the same warp
by a shuffle between them, because a shuffle synchronizes lanes and they have read what they use.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ptx_simulator.values import UNSIGNED, Array

CELL = 2
NOBODY, SEVERAL = -1, -2


class MemoryAccessError(Exception):
    """An address outside of the tensors or of shared memory, or a misaligned one."""


class Finding(NamedTuple):
    """Behavior that a GPU does not guarantee to match the simulation.

    Attributes:
        kind: "unordered" accesses, of which one writes; "tie", lanes of one instruction that store
            different values to one address; "uninitialized", a read of shared memory that no thread
            wrote.
        space: "global" or "shared".
        scope: The smallest unit that contains both threads: "warp", "program" or "launch".
        earlier: Index of the instruction that was executed first in this simulation.
        later: Index of the other.
    """

    kind: str
    space: str
    scope: str
    earlier: int
    later: int


class Clock:
    """Order of the accesses of threads: how often each program and warp has synchronized.

    Args:
        programs: Number of programs in the launch.
        threads: Threads per program.
    """

    def __init__(self, programs: int, threads: int) -> None:
        count = programs * threads
        self.program = np.repeat(np.arange(programs), threads)
        self.warp = np.arange(count) // 32
        self.barriers = np.zeros(programs, np.int32)
        self.warp_barriers = np.zeros(-(-count // 32), np.int32)
        self.shuffles = np.zeros_like(self.warp_barriers)


class Memory:
    """One space of memory.

    Args:
        size: Size in bytes.
        space: Its name in findings.
        clock: Clock of the threads that access it.
        findings: Counter of findings.
    """

    def __init__(self, size: int, space: str, clock: Clock, findings: "Counter[Finding]") -> None:
        size = -(-size // 16) * 16
        self.bytes = np.zeros(size, np.uint8)
        self.space, self.clock, self.findings = space, clock, findings
        self.readable = np.zeros(size, np.bool_)
        cells = size // CELL
        self.writer = np.full(cells, NOBODY)
        self.write_place = np.zeros(cells, np.int32)
        self.write_atomic = np.zeros(cells, np.bool_)
        self.write_time = np.zeros((2, cells), np.int32)
        # the only reader since the last write, its program and its warp, or several
        self.reader = np.full((3, cells), NOBODY)
        self.read_place = np.zeros(cells, np.int32)
        self.read_time = np.zeros((2, cells), np.int32)

    def load(self, at: Array, size: int, count: int, threads: Array, place: int) -> list[Array]:
        """Consecutive elements that each thread reads.

        Args:
            at: First byte, for each thread.
            size: Bytes per element.
            count: Number of elements.
            threads: Indices of the threads.
            place: Index of the instruction.

        Raises:
            MemoryAccessError: Out of bounds or not aligned.
        """
        self._check(at, size * count, place)
        if not self._all_readable(at, size * count):
            if self.space == "global":
                raise MemoryAccessError(f"instruction {place} reads outside of the tensors")
            self.findings[Finding("uninitialized", self.space, "program", place, place)] += 1
        for cell in _cells(at, size * count):
            self._note_read(cell, threads, place)
        elements = self.bytes.view(UNSIGNED[size])
        return [elements[at // size + index] for index in range(count)]

    def store(self, at: Array, values: Sequence[Array], threads: Array, place: int) -> None:
        """Write elements of one size; arguments and errors as in `load`."""
        size = values[0].dtype.itemsize
        self._admit(at, size * len(values), place)
        for cell in _cells(at, size * len(values)):
            self._note_write(cell, threads, place, atomic=False)
        elements = self.bytes.view(UNSIGNED[size])
        for index, value in enumerate(values):
            elements[at // size + index] = value
            lost = elements[at // size + index] != value
            if lost.any():
                tie = Finding("tie", self.space, "program", place, place)
                self.findings[tie] += int(lost.sum())

    def add(self, at: Array, values: Sequence[Array], threads: Array, place: int) -> None:
        """Add to float32 elements, atomically; arguments and errors as in `load`."""
        self._admit(at, 4 * len(values), place)
        for cell in _cells(at, 4 * len(values)):
            self._note_write(cell, threads, place, atomic=True)
        elements = self.bytes.view(np.float32)
        for index, value in enumerate(values):
            np.add.at(elements, at // 4 + index, value)

    def _admit(self, at: Array, size: int, place: int) -> None:
        """Check addresses to write to; shared memory there is initialized from now on."""
        self._check(at, size, place)
        if self.space == "global" and not self._all_readable(at, size):
            raise MemoryAccessError(f"instruction {place} writes outside of the tensors")
        for offset in range(size):
            self.readable[at + offset] = True

    def _check(self, at: Array, size: int, place: int) -> None:
        if ((at < 0) | (at + size > len(self.bytes))).any():
            raise MemoryAccessError(f"instruction {place} leaves {self.space} memory")
        if (at % size).any():
            raise MemoryAccessError(f"instruction {place} is not aligned to its {size} bytes")

    def _all_readable(self, at: Array, size: int) -> bool:
        return all(bool(self.readable[at + offset].all()) for offset in range(0, size, CELL))

    def _note_write(self, cell: Array, threads: Array, place: int, *, atomic: bool) -> None:
        self._find_unordered_writes(cell, threads, place, atomic=atomic)
        clock = self.clock
        program, warp = clock.program[threads], clock.warp[threads]
        reader, reader_program, reader_warp = self.reader[:, cell]
        barriers, shuffles = self.read_time[:, cell]
        ordered = (reader == threads) | (
            (reader_program == program) & (barriers < clock.barriers[program])
        )
        ordered |= (reader_warp == warp) & (shuffles < clock.shuffles[warp])
        unordered = (reader != NOBODY) & ~ordered
        if unordered.any():
            same = (reader_program == program, reader_warp == warp)
            self._report(self.read_place[cell], place, unordered, *same)
        self.writer[cell] = threads
        self.write_place[cell] = place
        self.write_atomic[cell] = atomic
        self.write_time[:, cell] = clock.barriers[program], clock.warp_barriers[warp]
        self.reader[:, cell] = NOBODY

    def _note_read(self, cell: Array, threads: Array, place: int) -> None:
        self._find_unordered_writes(cell, threads, place, atomic=False)
        clock = self.clock
        program, warp = clock.program[threads], clock.warp[threads]
        fresh = self.reader[0, cell] == NOBODY
        for row, name in enumerate((threads, program, warp)):
            known = self.reader[row, cell]
            self.reader[row, cell] = np.where(fresh | (known == name), name, SEVERAL)
            # if several threads of this instruction read one cell, one of them is recorded
            self.reader[row, cell[self.reader[row, cell] != name]] = SEVERAL
        for row, time in enumerate((clock.barriers[program], clock.shuffles[warp])):
            self.read_time[row, cell] = np.maximum(
                np.where(fresh, 0, self.read_time[row, cell]), time
            )
        self.read_place[cell] = place

    def _find_unordered_writes(
        self, cell: Array, threads: Array, place: int, *, atomic: bool
    ) -> None:
        """Report earlier writes that are not ordered before this access."""
        clock = self.clock
        program, warp = clock.program[threads], clock.warp[threads]
        writer = self.writer[cell]
        same_program = clock.program[writer] == program
        same_warp = clock.warp[writer] == warp
        barriers, warp_barriers = self.write_time[:, cell]
        ordered = (writer == threads) | (same_program & (barriers < clock.barriers[program]))
        ordered |= same_warp & (warp_barriers < clock.warp_barriers[warp])
        unordered = (writer != NOBODY) & ~ordered
        if atomic:
            unordered &= ~self.write_atomic[cell]
        if unordered.any():
            self._report(self.write_place[cell], place, unordered, same_program, same_warp)

    def _report(
        self, earlier: Array, later: int, which: Array, same_program: Array, same_warp: Array
    ) -> None:
        scope = np.where(same_warp, 0, np.where(same_program, 1, 2))
        pairs, counts = np.unique(
            np.stack([earlier[which], scope[which]]), axis=1, return_counts=True
        )
        for (place, index), count in zip(pairs.T, counts, strict=True):
            name = ("warp", "program", "launch")[index]
            finding = Finding("unordered", self.space, name, int(place), later)
            self.findings[finding] += int(count)


def _cells(at: Array, size: int) -> list[Array]:
    """Cells of `size` bytes from an address."""
    return [at // CELL + offset for offset in range(max(1, size // CELL))]
