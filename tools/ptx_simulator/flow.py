"""Position of each thread: branches, program barriers, exit.

All threads of all programs advance together. Those with the lowest position go first, so threads
that diverge at a branch reconverge where its paths meet.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from ptx_simulator.program import Instruction

if TYPE_CHECKING:
    from ptx_simulator.machine import Machine

ALL = slice(None)
Lanes = Any  # numbers of threads, or ALL


class Flow:
    """Position of each thread.

    As long as all threads take the same path, they share one position, which saves most work.
    """

    def __init__(self, machine: "Machine") -> None:
        self.machine = machine
        self.common: int | None = 0
        self.places = np.zeros(machine.count, np.int64)
        self.alive = np.ones(machine.count, np.bool_)
        self.waiting = np.zeros(machine.count, np.bool_)

    def run(self) -> None:
        """Iterate over instructions until all threads have ended."""
        instructions = self.machine.program.instructions
        while (step := self._next()) is not None:
            place, lanes = step
            instruction = instructions[place] if place < len(instructions) else None
            if instruction is None or instruction.opcode in ("ret", "exit"):
                self._end(lanes)
                continue
            self.machine.executed += 1
            if instruction.parts[0] == "bra":
                self._branch(instruction, place, lanes)
            elif instruction.opcode == "bar.sync":
                self._wait(place, lanes)
            else:
                taking = self._guarded(instruction, lanes)
                if isinstance(taking, slice) or len(taking):
                    self.machine.execute(instruction, taking, place)
                self._go(place + 1, lanes)

    def _next(self) -> tuple[int, Lanes] | None:
        """The lowest position and the threads there; None at the end."""
        if self.common is not None:
            return self.common, ALL
        while True:
            able = self.alive & ~self.waiting
            if able.any():
                break
            if not self.alive.any():
                return None
            self._release()  # the threads that the others waited for have ended
        place = int(self.places[able].min())
        here = able & (self.places == place)
        if here.all():
            self.common = place
            return place, ALL
        return place, np.nonzero(here)[0]

    def _go(self, place: int, lanes: Lanes) -> None:
        if self.common is not None:
            self.common = place
        else:
            self.places[lanes] = place

    def _end(self, lanes: Lanes) -> None:
        self.common = None
        self.alive[lanes] = False

    def _guarded(self, instruction: Instruction, lanes: Lanes) -> Lanes:
        """The threads whose guard allows them to execute the instruction."""
        if instruction.guard is None:
            return lanes
        takes = self.machine.register(instruction.guard)[lanes] ^ instruction.inverted
        return lanes if takes.all() else self.machine.numbers[lanes][takes]

    def _branch(self, instruction: Instruction, place: int, lanes: Lanes) -> None:
        target = self.machine.program.labels[instruction.operands[0]]
        taking = self._guarded(instruction, lanes)
        if taking is lanes:
            self._go(target, lanes)
        elif not len(taking):
            self._go(place + 1, lanes)
        else:
            if self.common is not None:
                self.places[:] = place + 1
                self.common = None
            self.places[lanes] = place + 1
            self.places[taking] = target

    def _wait(self, place: int, lanes: Lanes) -> None:
        """A barrier in each program."""
        if self.common is not None:
            self.machine.clock.barriers += 1
            self.common = place + 1
        else:
            self.waiting[lanes] = True
            self._release()

    def _release(self) -> None:
        """Release the programs in which all threads wait or have ended."""
        shape = (-1, self.machine.per_program)
        waiting = self.waiting.reshape(shape).sum(1)
        ready = (waiting > 0) & (waiting == self.alive.reshape(shape).sum(1))
        let_go = np.repeat(ready, self.machine.per_program) & self.waiting
        self.waiting[let_go] = False
        self.places[let_go] += 1
        self.machine.clock.barriers[ready] += 1
