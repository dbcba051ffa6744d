"""Threads that execute a program, one instruction at a time, in the order given by flow.py."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from ptx_simulator import tensor_cores, values
from ptx_simulator.flow import Flow, Lanes
from ptx_simulator.memory import Clock, Finding, Memory
from ptx_simulator.program import Instruction, Program, members
from ptx_simulator.values import UNSIGNED, Array

# the first address of a tensor; small numbers are not valid addresses
BASE = 1 << 20
# padding before and after each tensor, bytes
GAP = 256
# without effect here, because asynchronous copies and products complete immediately
_WITHOUT_EFFECT = ("fence", "griddepcontrol", "prefetch", "setmaxnreg")


class Machine:
    """One launch of a kernel.

    Args:
        program: The kernel.
        arguments: In the order of its parameters: contiguous arrays, which are changed in place,
            and numbers.
        programs: Number of programs to launch.
        shared: Bytes of shared memory per program.

    Attributes:
        findings: Counts of findings.
        executed: Number of executed instructions, each for any number of threads.
    """

    def __init__(
        self, program: Program, arguments: Sequence[Any], programs: int, shared: int
    ) -> None:
        self.program = program
        self.per_program = program.threads
        self.count = programs * program.threads
        self.findings: Counter[Finding] = Counter()
        self.executed = 0
        self.numbers = np.arange(self.count)
        self.clock = Clock(programs, program.threads)
        self.special = {
            "%tid.x": self.numbers % program.threads,
            "%ctaid.x": self.clock.program,
            "%nctaid.x": np.full(self.count, programs),
            "%laneid": self.numbers % 32,
            **dict.fromkeys(("%tid.y", "%tid.z", "%ctaid.y", "%ctaid.z"), np.zeros(self.count)),
        }
        self.registers: dict[str, Array] = {}
        self.spans: list[tuple[int, Array]] = []
        # Triton adds two parameters, for scratch memory that is not used
        self.parameters = [*self._place(arguments), 0, 0]
        self.shared_size = max(16, -(-shared // 16) * 16)
        self.shared = self._memory(self.shared_size * programs, "shared")
        # groups of copies started by `cp.async` for which no thread has waited
        self.copies: list[list[Callable[[], None]]] = [[]]

    def _memory(self, size: int, space: str) -> Memory:
        return Memory(size, space, self.clock, self.findings)

    def _place(self, arguments: Sequence[Any]) -> list[Any]:
        """Place the arrays in global memory; returns the values of the kernel's parameters."""
        parameters, end = [], GAP
        for argument in arguments:
            if isinstance(argument, np.ndarray):
                self.spans.append((end, argument))
                parameters.append(BASE + end)
                end += -(-(argument.nbytes + GAP) // GAP) * GAP
            else:
                parameters.append(argument)
        self.memory = self._memory(end, "global")
        for start, array in self.spans:
            span = slice(start, start + array.nbytes)
            self.memory.bytes[span] = array.reshape(-1).view(np.uint8)
            self.memory.readable[span] = True
        return parameters

    def run(self) -> "Machine":
        """Execute to the end and copy the results back to the arrays.

        Raises:
            MemoryAccessError: An address is out of bounds or misaligned.
            RuntimeError: Only part of a warp executes a whole-warp instruction.
            NotImplementedError: An instruction is not supported.
        """
        with np.errstate(all="ignore"):
            Flow(self).run()
        for start, array in self.spans:
            array.reshape(-1).view(np.uint8)[:] = self.memory.bytes[start : start + array.nbytes]
        return self

    # operands

    def register(self, name: str) -> Array:
        """All threads' values of a register."""
        if name not in self.registers:
            kind = self.program.registers[name]
            storage = np.bool_ if kind == "pred" else UNSIGNED[values.width(kind)]
            self.registers[name] = np.zeros(self.count, storage)
        return self.registers[name]

    def read(self, operand: str, kind: str, lanes: Lanes) -> Array:
        """An operand's value for each thread, or one for all, in the NumPy type of `kind`."""
        dtype = np.dtype(values.dtype(kind))
        if operand in self.special:
            return self.special[operand][lanes].astype(dtype)
        if operand.startswith("%"):
            found = self.register(operand)[lanes]
            if dtype == np.bool_:
                return found
            return found.astype(UNSIGNED[dtype.itemsize], copy=False).view(dtype)
        if operand == "global_smem":  # start of shared memory
            return np.zeros(1, dtype)
        if operand.startswith("0f"):
            return np.array([int(operand[2:], 16)], np.uint32).view(dtype)
        number = int(operand.rstrip("U"), 0)
        if dtype == np.bool_:
            return np.array([bool(number)])
        bits = number & ((1 << 8 * dtype.itemsize) - 1)
        return np.array([bits], UNSIGNED[dtype.itemsize]).view(dtype)

    def write(self, name: str, value: Array, lanes: Lanes) -> None:
        """Set a register; in wider ones, numbers are zero- or sign-extended."""
        if name == "_":
            return
        register = self.register(name)
        if register.dtype != np.bool_ and value.dtype != register.dtype:
            if value.dtype.itemsize == register.dtype.itemsize:
                value = np.ascontiguousarray(value).view(register.dtype)
            else:
                value = value.astype(register.dtype)
        register[lanes] = value

    def address(self, operand: str, lanes: Lanes) -> Array:
        """The byte address [register + offset], for each thread."""
        found = re.fullmatch(r"\[\s*([%\w]+)\s*(?:\+\s*(-?\d+))?\s*\]", operand)
        if found is None:
            raise NotImplementedError(f"address {operand}")
        base = self.read(found[1], "u64" if self._is_wide(found[1]) else "u32", lanes)
        threads = self.numbers[lanes]
        return np.broadcast_to(base.astype(np.int64), threads.shape) + int(found[2] or 0)

    def _is_wide(self, name: str) -> bool:
        return self.program.registers.get(name) == "b64"

    def space(self, name: str, at: Array, threads: Array) -> tuple[Memory, Array]:
        """A memory space and the offsets of addresses in it."""
        if name == "global":
            return self.memory, at - BASE
        outside = (at < 0) | (at >= self.shared_size)
        own = self.clock.program[threads] * self.shared_size
        # an address outside of the program's own part becomes one outside of all
        return self.shared, np.where(outside, -1, at + own)

    def warps(self, lanes: Lanes) -> Array:
        """Threads as (warps, 32); they must be whole warps."""
        threads = self.numbers[lanes]
        if len(threads) % 32 or (threads.reshape(-1, 32) % 32 != np.arange(32)).any():
            raise RuntimeError("an instruction of a whole warp is executed by a part of one")
        return threads.reshape(-1, 32)

    # instructions

    def execute(self, instruction: Instruction, lanes: Lanes, place: int) -> None:
        """Execute an instruction that does not change the control flow, for some threads."""
        name, kind = instruction.parts[0], instruction.parts[-1]
        special = getattr(self, f"_{name}", None)
        if special is not None:
            special(instruction, lanes, place)
        elif name in _WITHOUT_EFFECT:
            pass
        elif kind in ("bf16", "bf16x2", "f16x2"):
            self._half(instruction, lanes)
        else:
            table = values.FLOATING if kind.startswith("f") else values.WHOLE
            if name not in table:
                raise NotImplementedError(str(instruction))
            target, *operands = instruction.operands
            read = [self.read(operand, kind, lanes) for operand in operands]
            self.write(target, table[name](*read), lanes)

    def _half(self, instruction: Instruction, lanes: Lanes) -> None:
        """Arithmetic on one or two 16-bit numbers, in float32 and rounded once."""
        name, kind = instruction.parts[0], instruction.parts[-1]
        target, *operands = instruction.operands
        one = kind.removesuffix("x2")
        widen, narrow = values.widen_half(one), values.round_half(one)
        bits = [self.read(operand, f"b{8 * values.width(kind)}", lanes) for operand in operands]

        def compute(half: Callable[[Array], Array]) -> Array:
            wide = [widen(half(b)).astype(np.float64) for b in bits]
            return narrow(values.FLOATING[name](*wide).astype(np.float32))

        if kind == one:
            self.write(target, compute(lambda b: b), lanes)
        else:
            halves = (compute(half) for half in (values.low_half, values.high_half))
            self.write(target, values.pack(*halves), lanes)

    def _mov(self, instruction: Instruction, lanes: Lanes, place: int) -> None:
        kind = instruction.parts[-1]
        target, source = instruction.operands
        if not (target + source).startswith("{") and not source.startswith("{"):
            self.write(target, self.read(source, kind, lanes), lanes)
            return
        group = members(source if source.startswith("{") else target)
        bits = 8 * values.width(kind) // len(group)
        whole = UNSIGNED[values.width(kind)]
        if source.startswith("{"):
            packed = np.zeros(1, whole)
            for index, name in enumerate(group):
                part = self.read(name, f"b{bits}", lanes).astype(whole)
                packed = packed | (part << whole(bits * index))
            self.write(target, packed, lanes)
        else:
            packed = self.read(source, f"b{8 * values.width(kind)}", lanes)
            for index, name in enumerate(group):
                part = (packed >> whole(bits * index)).astype(UNSIGNED[bits // 8])
                self.write(name, part, lanes)

    def _cvt(self, instruction: Instruction, lanes: Lanes, place: int) -> None:
        _, *modes, target, source = instruction.parts
        register, *operands = instruction.operands
        read = [self.read(operand, source, lanes) for operand in operands]
        if target.endswith("x2"):
            narrow = values.round_half(target.removesuffix("x2"))
            high, low = map(narrow, read)
            self.write(register, values.pack(low, high), lanes)
        else:
            self.write(register, values.convert(target, tuple(modes), source, read[0]), lanes)

    def _setp(self, instruction: Instruction, lanes: Lanes, place: int) -> None:
        _, name, *_, kind = instruction.parts
        target, *operands = instruction.operands
        x, y = (self.read(operand, kind, lanes) for operand in operands)
        found = values.compare(name, x, y, floating=kind.startswith("f"))
        self.write(target, np.broadcast_to(found, self.numbers[lanes].shape), lanes)

    def _selp(self, instruction: Instruction, lanes: Lanes, place: int) -> None:
        target, yes, no, predicate = instruction.operands
        kind = instruction.parts[-1]
        chosen = self.read(predicate, "pred", lanes)
        found = np.where(chosen, self.read(yes, kind, lanes), self.read(no, kind, lanes))
        self.write(target, found, lanes)

    def _mul(self, instruction: Instruction, lanes: Lanes, place: int) -> None:
        self._multiply_add(instruction, lanes)

    def _mad(self, instruction: Instruction, lanes: Lanes, place: int) -> None:
        self._multiply_add(instruction, lanes)

    def _multiply_add(self, instruction: Instruction, lanes: Lanes) -> None:
        """A product of integers, plus another, or a product of floating-point numbers."""
        part, kind = instruction.parts[1], instruction.parts[-1]
        target, x, y, *z = instruction.operands
        if kind in ("bf16", "bf16x2", "f16x2"):
            self._half(instruction, lanes)
            return
        factors = self.read(x, kind, lanes), self.read(y, kind, lanes)
        if kind.startswith("f"):
            self.write(target, np.multiply(*factors), lanes)
            return
        found = values.multiply(part, *factors)
        if z:
            wide = f"{kind[0]}{8 * found.dtype.itemsize}"
            found = found + self.read(z[0], wide, lanes)
        self.write(target, found, lanes)

    def _shl(self, instruction: Instruction, lanes: Lanes, place: int) -> None:
        self._shift(instruction, lanes)

    def _shr(self, instruction: Instruction, lanes: Lanes, place: int) -> None:
        self._shift(instruction, lanes)

    def _shift(self, instruction: Instruction, lanes: Lanes) -> None:
        direction, kind = instruction.parts
        target, x, count = instruction.operands
        counts = self.read(count, "u32", lanes)
        self.write(target, values.shift(direction, self.read(x, kind, lanes), counts), lanes)

    def _bfe(self, instruction: Instruction, lanes: Lanes, place: int) -> None:
        target, x, start, length = instruction.operands
        limits = (self.read(operand, "u32", lanes) for operand in (start, length))
        found = values.extract_bits(self.read(x, instruction.parts[-1], lanes), *limits)
        self.write(target, found, lanes)

    def _prmt(self, instruction: Instruction, lanes: Lanes, place: int) -> None:
        target, *operands = instruction.operands
        read = (self.read(operand, "u32", lanes) for operand in operands)
        self.write(target, values.permute_bytes(*read), lanes)

    def _shfl(self, instruction: Instruction, lanes: Lanes, place: int) -> None:
        warps = self.warps(lanes)
        mode = instruction.parts[2]
        target, source, distance = instruction.operands[:3]
        lane = np.arange(32)
        value, step = (
            np.broadcast_to(self.read(operand, kind, lanes), warps.size).reshape(warps.shape)
            for operand, kind in ((source, "b32"), (distance, "s32"))
        )
        origin = {
            "bfly": lane ^ step,
            "idx": (step & 31) + 0 * lane,
            "up": lane - step,
            "down": lane + step,
        }[mode]
        origin = np.where((origin < 0) | (origin > 31), lane, origin)
        found = np.take_along_axis(value, origin.astype(np.int64), axis=1)
        self.clock.shuffles[warps[:, 0] // 32] += 1
        self.write(target.split("|")[0], found.reshape(-1), lanes)

    def _bar(self, instruction: Instruction, lanes: Lanes, place: int) -> None:
        """A barrier of each warp; flow.py handles those of whole programs."""
        if instruction.parts[1] != "warp":
            raise NotImplementedError(str(instruction))
        warp = self.warps(lanes)[:, 0] // 32
        self.clock.warp_barriers[warp] += 1
        self.clock.shuffles[warp] += 1

    # memory

    def _ld(self, instruction: Instruction, lanes: Lanes, place: int) -> None:
        group, source = instruction.operands
        size, count = values.width(instruction.parts[-1]), _vector(instruction)
        if "param" in instruction.parts:
            self.write(group, self._parameter(source, size), lanes)
            return
        threads = self.numbers[lanes]
        space, at = self.space(_space_of(instruction), self.address(source, lanes), threads)
        loaded = space.load(at, size, count, threads, place)
        for name, value in zip(members(group), loaded, strict=True):
            self.write(name, value, lanes)

    def _parameter(self, operand: str, size: int) -> Array:
        index = re.search(r"param_(\d+)", operand)
        value = self.parameters[int(cast(Any, index)[1])]
        if isinstance(value, float):
            value = int(np.float32(value).view(np.uint32))
        return np.array([value & ((1 << 8 * size) - 1)], UNSIGNED[size])

    def _st(self, instruction: Instruction, lanes: Lanes, place: int) -> None:
        target, group = instruction.operands
        kind = f"b{8 * values.width(instruction.parts[-1])}"
        threads = self.numbers[lanes]
        space, at = self.space(_space_of(instruction), self.address(target, lanes), threads)
        stored = [self.read(name, kind, lanes) for name in members(group)]
        space.store(at, [np.broadcast_to(v, at.shape) for v in stored], threads, place)

    def _red(self, instruction: Instruction, lanes: Lanes, place: int) -> None:
        self._add_atomically(instruction, *instruction.operands, lanes=lanes, place=place)

    def _atom(self, instruction: Instruction, lanes: Lanes, place: int) -> None:
        """Does not return the old value, which Triton does not use here."""
        self._add_atomically(instruction, *instruction.operands[1:], lanes=lanes, place=place)

    def _add_atomically(
        self, instruction: Instruction, target: str, group: str, *, lanes: Lanes, place: int
    ) -> None:
        if "add" not in instruction.parts or instruction.parts[-1] != "f32":
            raise NotImplementedError(str(instruction))
        threads = self.numbers[lanes]
        space, at = self.space(_space_of(instruction), self.address(target, lanes), threads)
        added = [self.read(name, "f32", lanes) for name in members(group)]
        space.add(at, [np.broadcast_to(v, at.shape) for v in added], threads, place)

    def _cp(self, instruction: Instruction, lanes: Lanes, place: int) -> None:
        """A copy to shared memory, which completes when a thread waits for it."""
        if "commit_group" in instruction.parts:
            self.copies.append([])
        elif "wait_group" in instruction.parts or "wait_all" in instruction.parts:
            newest = int(instruction.operands[0]) if instruction.operands else 0
            for _ in range(len(self.copies) - 1 - newest):
                for arrive in self.copies.pop(0):
                    arrive()
        else:
            self.copies[-1].append(self._begin_copy(instruction, lanes, place))

    def _begin_copy(self, instruction: Instruction, lanes: Lanes, place: int) -> Callable[[], None]:
        """Read the source of a copy; calling the result writes it."""
        target, source, size, *taken = instruction.operands
        threads = self.numbers[lanes]
        element = min(8, int(size, 0))
        arriving = [
            np.zeros(threads.shape, UNSIGNED[element]) for _ in range(int(size, 0) // element)
        ]
        real = np.ones(threads.shape, np.bool_)
        if taken:  # bytes to read; the rest is zero
            real = np.broadcast_to(self.read(taken[0], "u32", lanes) > 0, threads.shape)
        if real.any():
            memory, at = self.space("global", self.address(source, lanes)[real], threads[real])
            loaded = memory.load(at, element, len(arriving), threads[real], place)
            for part, value in zip(arriving, loaded, strict=True):
                part[real] = value
        shared, to = self.space("shared", self.address(target, lanes), threads)
        return lambda: shared.store(to, arriving, threads, place)

    # matrices

    def _ldmatrix(self, instruction: Instruction, lanes: Lanes, place: int) -> None:
        group, source = instruction.operands
        for name, places in zip(
            members(group), self._matrices(instruction, source, lanes), strict=True
        ):
            loaded = [
                self.shared.load(at, size, 1, threads, place)[0] for at, size, threads in places
            ]
            whole = loaded[0] if len(loaded) == 1 else values.pack(*loaded)
            self.write(name, whole, lanes)

    def _stmatrix(self, instruction: Instruction, lanes: Lanes, place: int) -> None:
        target, group = instruction.operands
        for name, places in zip(
            members(group), self._matrices(instruction, target, lanes), strict=True
        ):
            whole = self.read(name, "b32", lanes)
            parts = (
                [whole] if len(places) == 1 else [values.low_half(whole), values.high_half(whole)]
            )
            for (at, _, threads), part in zip(places, parts, strict=True):
                self.shared.store(at, [part], threads, place)

    def _matrices(
        self, instruction: Instruction, operand: str, lanes: Lanes
    ) -> list[list[tuple[Array, int, Array]]]:
        """For each matrix of an instruction: offsets, bytes and threads of its accesses."""
        warps = self.warps(lanes)
        threads = warps.reshape(-1)
        count = next(int(part[1]) for part in instruction.parts if part in ("x1", "x2", "x4"))
        rows = self.address(operand, lanes).reshape(warps.shape)
        matrices = []
        for index in range(count):
            found = tensor_cores.matrix_addresses(
                rows[:, 8 * index : 8 * index + 8], transposed="trans" in instruction.parts
            )
            matrices.append(
                [
                    (self.space("shared", at.reshape(-1), threads)[1], size, threads)
                    for at, size in found
                ]
            )
        return matrices

    def _mma(self, instruction: Instruction, lanes: Lanes, place: int) -> None:
        warps = self.warps(lanes)
        shape = next(part for part in instruction.parts if part.startswith("m16"))

        def fragments(operand: str, kind: str) -> list[Array]:
            return [
                np.broadcast_to(self.read(name, kind, lanes), warps.size).reshape(warps.shape)
                for name in members(operand)
            ]

        target, a, b, c = instruction.operands
        factors = fragments(a, "b32"), fragments(b, "b32")
        sums = tensor_cores.multiply(shape, instruction.parts[-2], *factors, fragments(c, "f32"))
        for name, value in zip(members(target), sums, strict=True):
            self.write(name, value.reshape(-1), lanes)

    def _wgmma(self, instruction: Instruction, lanes: Lanes, place: int) -> None:
        """A product of four warps, with factors in shared memory or the left one in registers."""
        if instruction.parts[1] != "mma_async":
            return
        kind = instruction.parts[-1]
        groups = self.numbers[lanes].reshape(-1, self.per_program)
        if self.per_program != 128:
            raise NotImplementedError("wgmma by other than four warps")
        target, a, b, scale, *options = instruction.operands
        # 32-bit numbers cannot be transposed; without these options, the last are the signs
        turns = [False, False] if kind == "tf32" else [bool(int(option)) for option in options[-2:]]

        def register(name: str) -> Array:
            return self.read(name, "b32", lanes).reshape(-1, 4, 32)

        if a.startswith("{"):
            left = tensor_cores.group_fragment([register(name) for name in members(a)], kind)
        else:
            left = self._tile(a, 64, groups, lanes, place, kind, transposed=turns[0])
        columns = tensor_cores.group_columns(instruction.opcode)
        right = self._tile(b, columns, groups, lanes, place, kind, transposed=turns[1])
        product = left.astype(np.float64) @ right.swapaxes(1, 2)
        accumulate = self.read(scale, "pred", lanes)
        if accumulate.any() != accumulate.all():
            raise NotImplementedError("wgmma that only some programs add up")
        for index, name in enumerate(members(target)):
            value = tensor_cores.group_result(product, index)
            if accumulate.all():
                value = value + register(name).view(np.float32)
            self.write(name, value.astype(np.float32).reshape(-1), lanes)

    def _tile(
        self,
        descriptor: str,
        rows: int,
        groups: Array,
        lanes: Lanes,
        place: int,
        kind: str,
        *,
        transposed: bool,
    ) -> Array:
        """A factor (programs, rows, K) described by a descriptor of shared memory, in float32."""
        size = 4 if kind == "tf32" else 2
        described = self.read(descriptor, "u64", lanes).reshape(groups.shape)[:, 0]
        tile = tensor_cores.describe_tile(described, rows, size, transposed=transposed)
        # the four warps read together; one of their threads represents all
        threads = np.broadcast_to(groups[:, 0, None, None], tile.shape).reshape(-1)
        shared, at = self.space("shared", tile.reshape(-1), threads)
        bits = shared.load(at, size, 1, threads, place)[0].reshape(tile.shape)
        if kind == "tf32":
            return values.round_tf32(bits).view(np.float32)
        return values.widen_half(kind)(bits)


def _vector(instruction: Instruction) -> int:
    """Elements per access."""
    return next((int(part[1]) for part in instruction.parts if part in ("v2", "v4", "v8")), 1)


def _space_of(instruction: Instruction) -> str:
    return "global" if "global" in instruction.parts else "shared"
