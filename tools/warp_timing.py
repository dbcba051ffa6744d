"""Time of one warp for an iteration of a loop of machine code, alone on its scheduler.

An instruction is issued after the previous one, when its inputs are ready. This models a warp whose
latencies are not hidden by others: if few warps fit in a multiprocessor, memory latencies matter as
much as the number of instructions (Hong and Kim 2009, "An analytical model for a GPU architecture
with memory-level and thread-level parallelism awareness").

The machine code does not state where a load finds its data. The model assumes the second-level
cache for the indices of other loads, which all programs share, and for data that the loop itself
stores at the same address, and memory for everything else.
"""

import re
from typing import NamedTuple

# Clocks until a result is ready on NVIDIA's generation 9.0, rounded: 0.6 and 0.25 us for memory and
# the second-level cache, according to microbenchmarks of loaded H100s.
MEMORY, CACHE = 1200, 500
LATENCIES = {"MUFU": 20, "SHFL": 25, "LDS": 30, "HMMA": 33, "LDC": 30, "LDL": 40}
ARITHMETIC = 4
# opcodes that write no register
SILENT = ("ST", "RED", "BRA", "BAR", "EXIT", "NOP", "WARPSYNC", "DEPBAR", "LDGDEPBAR", "LDGSTS")


class Instruction(NamedTuple):
    """A parsed instruction."""

    opcode: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    # registers of the address, and the address as written; for DEPBAR, how many copies may be in
    # flight
    address_reads: tuple[str, ...]
    address: str

    @property
    def kind(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.split(".")[0]


def parse(text: str) -> Instruction:
    """An instruction as printed by cuobjdump, without the semicolon."""
    guard, operation = re.fullmatch(r"(@!?U?P\w+)?\s*(.*)", text.strip()).groups()  # type: ignore[union-attr]
    opcode, _, rest = operation.partition(" ")
    operands = [o.strip() for o in rest.split(",")] if rest else []
    # the second operand of a copy to shared memory
    address = next((o for o in reversed(operands) if re.search(r"\[.*R\d", o)), "")
    if opcode.startswith("DEPBAR"):
        address = operands[-1]
    wide = re.search(r"\.(64|128)\b", opcode)
    width = int(wide[1]) // 32 if wide else 1
    width = 4 if opcode.startswith("HMMA") else 2 if ".WIDE" in opcode else width
    writes: list[str] = []
    silent = opcode.startswith(SILENT)
    if operands and not silent:
        writes += _registers(operands[0], width)
        # a carry or the second half of a comparison
        writes += [o for o in operands[1:3] if re.fullmatch(r"U?P\d", o)][:1]
    data = operands if silent else operands[1:]
    reads = _registers(guard or "", 1)
    for operand in data:
        last = operand == operands[-1] and opcode.startswith("ST")
        reads += _registers(operand, width if last else 2 if ".64" in operand else 1)
    address_reads = _registers(address, 2)
    return Instruction(opcode, tuple(reads), tuple(writes), tuple(address_reads), address)


def _registers(operand: str, width: int) -> list[str]:
    found = []
    for kind, number in re.findall(r"\b(UR|UP|R|P)(\d+)", operand):
        count = width if kind in ("R", "UR") else 1
        found += [f"{kind}{int(number) + i}" for i in range(count)]
    return found


def clocks(turns: list[list[Instruction]]) -> float:
    """Mean clocks per iteration over several iterations; the first is excluded."""
    marks = _near_loads(turns)
    ready: dict[str, float] = {}
    time, groups, copies = 0.0, [], 0.0
    ends = []
    for turn in turns:
        for instruction in turn:
            kind = instruction.kind
            time = max([time + 1, *(ready.get(r, 0.0) for r in instruction.reads)])
            if kind == "LDGSTS":
                copies = time + MEMORY
            elif kind == "LDGDEPBAR":
                groups.append(copies)
            elif kind == "DEPBAR" and groups:
                done = groups[: max(0, len(groups) - int(instruction.address, 16))]
                time = max([time, *done])
            latency = LATENCIES.get(kind, ARITHMETIC)
            if kind == "LDG":
                near = _key(instruction) in marks
                latency = CACHE if near else MEMORY
            for register in instruction.writes:
                ready[register] = time + latency
        ends.append(time)
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def _key(instruction: Instruction) -> tuple[str, str, tuple[str, ...]]:
    return instruction.opcode, instruction.address, instruction.writes


def _near_loads(turns: list[list[Instruction]]) -> set[tuple[str, str, tuple[str, ...]]]:
    """Loads of indices, and of data that the loop stores."""
    near, stored = set(), set()
    sources: dict[str, frozenset[Instruction]] = {}
    for turn in turns:
        for instruction in turn:
            if instruction.kind == "STG":
                stored.add(instruction.address)
            if instruction.kind in ("LDG", "STG", "REDG", "LDGSTS"):
                for register in instruction.address_reads:
                    near |= {_key(load) for load in sources.get(register, ())}
            found = frozenset().union(*(sources.get(r, frozenset()) for r in instruction.reads))
            if instruction.kind == "LDG":
                found = frozenset([instruction])
            for register in instruction.writes:
                sources[register] = found
    loads = {i for turn in turns for i in turn if i.kind == "LDG"}
    return near | {_key(load) for load in loads if load.address in stored}
