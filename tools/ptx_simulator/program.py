"""Parses Triton's PTX into instructions, labels, registers and parameters."""

import re
from typing import NamedTuple


class Instruction(NamedTuple):
    """One instruction of a kernel.

    Attributes:
        opcode: Full opcode, such as "ld.global.v4.b32".
        parts: The opcode split at its dots; the last part is usually the type.
        operands: Registers, numbers, addresses in [] and groups in {}.
        guard: Predicate under which a thread executes it; None for always.
        inverted: Whether threads execute it if the predicate is false instead.
        line: Position in the Triton source, if PTX states it.
    """

    opcode: str
    parts: tuple[str, ...]
    operands: tuple[str, ...]
    guard: str | None
    inverted: bool
    line: str

    def __str__(self) -> str:
        return f"{self.line}: {self.opcode} {', '.join(self.operands)}"


class Program:
    """The kernel of a PTX text, which must be the only one.

    Attributes:
        threads: Threads of one program (a block, in CUDA's words).
        instructions: In order.
        labels: Name to the index in `instructions` of the next instruction.
        registers: Name to type, such as "b32" or "pred".

    Args:
        ptx: `asm["ptx"]` of the result of `triton.compile`.
    """

    def __init__(self, ptx: str) -> None:
        entry = ptx.index(".visible .entry")
        start = ptx.index("\n{", entry) + 2
        size = re.search(r"\.reqntid (\d+)", ptx[entry:start])
        if size is None:
            raise ValueError("the kernel does not say how many threads a program has")
        self.threads = int(size[1])
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.registers: dict[str, str] = {}
        line = "?"
        for text in ptx[start : ptx.index("\n}", start)].splitlines():
            if place := re.match(r"\s*\.loc\b.*?//\s*(\S+)", text):
                line = place[1].rsplit("/", 1)[-1]
            self._take(text.split("//")[0].strip(), line)

    def _take(self, text: str, line: str) -> None:
        """One line of the body, without its comment."""
        if scope := re.fullmatch(r"\{ \.reg \.(\w+) (\w+);(.*)\}", text):
            # Triton 3.3 stores the half of a number that it does not need in such a register
            kind, name, text = scope.groups()
            self.registers[name] = kind
        if declared := re.match(r"\.reg\s+\.(\w+)\s+(%\w+?)<(\d+)>", text):
            kind, stem, count = declared.groups()
            self.registers |= {f"{stem}{index}": kind for index in range(int(count))}
        elif label := re.fullmatch(r"(\$\w+):", text):
            self.labels[label[1]] = len(self.instructions)
        elif not text.startswith("."):
            for statement in filter(None, map(str.strip, text.split(";"))):
                self.instructions.append(_parse(statement, line))


def _parse(text: str, line: str) -> Instruction:
    guard, inverted = None, False
    if guarded := re.match(r"@(!?)(%\w+)\s+", text):
        inverted, guard = guarded[1] == "!", guarded[2]
        text = text[guarded.end() :]
    opcode, *rest = text.split(None, 1)
    operands = tuple(_split(rest[0])) if rest else ()
    return Instruction(opcode, tuple(opcode.split(".")), operands, guard, inverted, line)


def _split(text: str) -> list[str]:
    """Split operands at the commas outside {} and []."""
    groups = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,{}\[\]]+", text)
    return [group.strip() for group in groups if group.strip()]


def members(operand: str) -> list[str]:
    """The registers of a group in {}, or a single register."""
    return [name.strip() for name in operand.strip("{} ").split(",")]
