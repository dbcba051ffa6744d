"""Vectors for the numba kernels: a type whose values stay in registers.

A loop over channels that LLVM vectorizes first checks whether its arrays overlap, ends with a loop
for the last channels, and keeps what it accumulates in memory. Code written in vectors has none of
that. A vector has one or several parts of 16 lanes, and LLVM computes a part in one operation of
512 bits, two of 256 or four of 128, whatever the processor has.

`+`, `-`, `*` and `/` take vectors and float32 numbers; a product and a sum become one operation.
Numbers are repeated in all lanes, and vectors of one part in all parts. `exp2`, `fabs`, `at_least`
and `at_most` take vectors or numbers. How many parts a vector in memory has is the length of a
tuple, `PARTS_1` or `PARTS_4`, so that numba compiles a function for either.
"""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, njit, types, uint64
from numba.core import cgutils
from numba.core.typeconv import Conversion
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, lower_cast, models, register_model

COUNT = 16
LANES = np.uint64(COUNT)
PARTS_1, PARTS_4 = (0,), (0, 0, 0, 0)
_FLOAT, _INT, _LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_PART = ir.VectorType(_FLOAT, COUNT)
# minimax for 2**f on [0, 1), exactly 1 at 0, relative error 8.3e-8; highest power first
_EXP2 = (
    0.0018669525161385536,
    0.009017480537295341,
    0.055799514055252075,
    0.2401645928621292,
    0.6931512951850891,
    1.0,
)
# adding 1.5 * 2**23 to a float moves its integer to the low bits
_TO_LOW_BITS = 12582912.0
_CONTRACT = ("contract",)
# for type checkers, which neither know that numba adds an argument nor that these are decorators
builtin: Any = intrinsic
_infer_global: Any = infer_global


class Vector(types.Type):
    """`parts` times 16 lanes of float32."""

    def __init__(self, parts: int) -> None:
        super().__init__(f"vector{parts}")
        self.parts = parts

    def can_convert_from(self, typingctx: Any, other: Any) -> Any:
        """Numbers and vectors of one part are repeated."""
        return Conversion.promote if other in (float32, VECTOR) else None


VECTOR = Vector(1)


@register_model(Vector)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, ir.VectorType(_FLOAT, COUNT * kind.parts))


def _shuffle(builder: Any, one: Any, other: Any, lanes: Sequence[int]) -> Any:
    """A vector of these lanes of two vectors."""
    mask = ir.Constant(ir.VectorType(_INT, len(lanes)), list(lanes))
    return builder.shuffle_vector(one, other, mask)


def _repeat(builder: Any, value: Any, parts: int) -> Any:
    """A number or a vector of one part in all parts."""
    if value.type == _FLOAT:
        nothing = ir.Constant(_PART, ir.Undefined)
        value = builder.insert_element(nothing, value, ir.Constant(_INT, 0))
        return _shuffle(builder, value, value, [0] * COUNT * parts)
    return _shuffle(builder, value, value, [*range(COUNT)] * parts)


def _split(builder: Any, vector: Any) -> list[Any]:
    """The parts of a vector."""
    starts = range(0, vector.type.count, COUNT)
    return [_shuffle(builder, vector, vector, range(s, s + COUNT)) for s in starts]


def _join(builder: Any, parts: Sequence[Any]) -> Any:
    """A vector of two or four parts, or the only one."""
    while len(parts) > 1:
        lanes = range(2 * parts[0].type.count)
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [_shuffle(builder, *pair, lanes) for pair in pairs]
    return parts[0]


@lower_cast(types.Float, Vector)
@lower_cast(Vector, Vector)
def _cast(context: Any, builder: Any, source: Any, target: Any, value: Any) -> Any:
    return _repeat(builder, value, target.parts)


def _define_operator(function: Any, instruction: str) -> None:
    @_infer_global(function)
    class Operator(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            vectors = [kind for kind in args if isinstance(kind, Vector)]
            if not vectors or any(kind != float32 for kind in args if kind not in vectors):
                return None
            widest = max(vectors, key=lambda kind: kind.parts)
            return signature(widest, widest, widest)

    @lower_builtin(function, Vector, Vector)
    def lower(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        # a quotient is computed from an estimate of the reciprocal
        return getattr(builder, instruction)(*operands, flags=("arcp", "contract"))


_define_operator(operator.add, "fadd")
_define_operator(operator.sub, "fsub")
_define_operator(operator.mul, "fmul")
_define_operator(operator.truediv, "fdiv")


def _element(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    """Address of an element of an array."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [at])


def _shifted(builder: Any, place: Any, stride: Any, times: int) -> Any:
    """The address after `times` strides."""
    return builder.gep(place, [builder.mul(stride, ir.Constant(_LONG, times))])


def _read(builder: Any, place: Any) -> Any:
    return builder.load(builder.bitcast(place, _PART.as_pointer()), align=4)


def _write(builder: Any, part: Any, place: Any) -> None:
    builder.store(part, builder.bitcast(place, _PART.as_pointer()), align=4)


@builtin
def load_parts(typing_context: Any, array: Any, at: Any, stride: Any, like: Any) -> Any:
    """The parts at indices `at`, `at` + `stride` and so on; as many as the tuple `like` is long."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _element(context, builder, signature.args[0], *arguments[:2])
        places = (_shifted(builder, place, arguments[2], part) for part in range(len(like)))
        return _join(builder, [_read(builder, place) for place in places])

    return Vector(len(like))(array, uint64, uint64, like), generate


@builtin
def store_parts(typing_context: Any, array: Any, at: Any, stride: Any, vector: Any) -> Any:
    """Write the parts of a vector to indices `at`, `at` + `stride` and so on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _element(context, builder, signature.args[0], *arguments[:2])
        for number, part in enumerate(_split(builder, arguments[3])):
            _write(builder, part, _shifted(builder, place, arguments[2], number))
        return context.get_dummy_value()

    return types.void(array, uint64, uint64, vector), generate


@builtin
def spread(typing_context: Any, array: Any, at: Any, like: Any) -> Any:
    """A vector with a part for each of the elements from `at`, which all of its lanes repeat."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _element(context, builder, signature.args[0], *arguments[:2])
        places = (builder.gep(place, [ir.Constant(_LONG, part)]) for part in range(len(like)))
        return _join(builder, [_repeat(builder, builder.load(place), 1) for place in places])

    return Vector(len(like))(array, uint64, like), generate


@builtin
def add_parts(typing_context: Any, sum_: Any, vector: Any) -> Any:
    """A vector of one part, to which all parts of another are added."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        result, other = arguments
        for part in _split(builder, other):
            result = builder.fadd(result, part, flags=_CONTRACT)
        return result

    return VECTOR(VECTOR, vector), generate


@builtin
def store_totals(typing_context: Any, array: Any, at: Any, vector: Any) -> Any:
    """Write the sum of each part's lanes to the elements from `at`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _element(context, builder, signature.args[0], *arguments[:2])
        zero = ir.Constant(_FLOAT, -0.0)
        for number, part in enumerate(_split(builder, arguments[2])):
            name = _overloaded("vector.reduce.fadd", _PART)
            sum_ = _call(builder, name, _FLOAT, zero, part, flags=("reassoc",))
            builder.store(sum_, builder.gep(place, [ir.Constant(_LONG, number)]))
        return context.get_dummy_value()

    return types.void(array, uint64, vector), generate


def _buffer(builder: Any, content: Any) -> Any:
    """Memory that holds one part, as an address of floats."""
    memory = cgutils.alloca_once(builder, _PART)
    builder.store(content, memory)
    return builder.bitcast(memory, _FLOAT.as_pointer())


def _copy(builder: Any, source: Any, target: Any, count: Any) -> None:
    """Copy floats one by one."""
    with cgutils.for_range(builder, count) as loop:
        value = builder.load(builder.gep(source, [loop.index]))
        builder.store(value, builder.gep(target, [loop.index]))


@builtin
def _load_some(typing_context: Any, array: Any, at: Any, count: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _element(context, builder, signature.args[0], *arguments[:2])
        memory = _buffer(builder, ir.Constant(_PART, [0.0] * COUNT))
        _copy(builder, place, memory, arguments[2])
        return _read(builder, memory)

    return VECTOR(array, uint64, uint64), generate


@builtin
def _store_some(typing_context: Any, array: Any, at: Any, vector: Any, count: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _element(context, builder, signature.args[0], *arguments[:2])
        _copy(builder, _buffer(builder, arguments[2]), place, arguments[3])
        return context.get_dummy_value()

    return types.void(array, uint64, VECTOR, uint64), generate


# as in cpu_math.py
_OPTIONS: dict[str, Any] = {"nogil": True, "forceinline": True, "_nrt": False}
_function = njit(**_OPTIONS)


@_function
def load(array: Any, at: Any) -> Any:
    """The 16 elements from index `at`."""
    return load_parts(array, at, LANES, PARTS_1)


@_function
def store(array: Any, at: Any, vector: Any) -> None:
    """Write the 16 elements from index `at`."""
    store_parts(array, at, LANES, vector)


@_function
def load_first(array: Any, at: Any, count: Any) -> Any:
    """The elements from index `at`, and zeros if `count` is less than 16."""
    return load(array, at) if count >= LANES else _load_some(array, at, count)


@_function
def store_first(array: Any, at: Any, vector: Any, count: Any) -> None:
    """Write the elements from index `at`, at most `count`."""
    if count >= LANES:
        store(array, at, vector)
    else:
        _store_some(array, at, vector, count)


@builtin
def repeat(typing_context: Any, number: Any) -> Any:
    """A vector of one part whose lanes are all the same."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _repeat(builder, arguments[0], 1)

    return VECTOR(float32), generate


def _call(builder: Any, name: str, result: Any, *arguments: Any, flags: Sequence[str] = ()) -> Any:
    """Call one of LLVM's own functions by its full name."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, arguments, fastmath=flags)


def _overloaded(name: str, kind: Any) -> str:
    """Name of LLVM's function for numbers or for vectors."""
    return f"llvm.{name}.{'f32' if kind == _FLOAT else f'v{kind.count}f32'}"


def _constant(kind: Any, value: float) -> Any:
    """A number, or a vector that repeats it."""
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


@builtin
def fabs(typing_context: Any, x: Any) -> Any:
    """The absolute value."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (value,) = arguments
        return _call(builder, _overloaded("fabs", value.type), value.type, value)

    return x(x), generate


def _limit(builder: Any, comparison: str, value: Any, bound: Any) -> Any:
    """The bound where a value compares so with it; nan stays nan."""
    return builder.select(builder.fcmp_ordered(comparison, value, bound), bound, value)


@builtin
def at_least(typing_context: Any, x: Any, least: Any) -> Any:
    """The larger of a value and a number; nan stays nan."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _limit(builder, "<", *arguments)

    return x(x, x), generate


@builtin
def at_most(typing_context: Any, x: Any, most: Any) -> Any:
    """The smaller of a value and a number; nan stays nan."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _limit(builder, ">", *arguments)

    return x(x, x), generate


def _power(builder: Any, f: Any) -> Any:
    """2**f for f in [0, 1)."""
    p = _constant(f.type, _EXP2[0])
    for coefficient in _EXP2[1:]:
        p = builder.fmul(p, f, flags=_CONTRACT)
        p = builder.fadd(p, _constant(f.type, coefficient), flags=_CONTRACT)
    return p


def _exp2_of_avx512(builder: Any, x: Any) -> Any:
    """One instruction subtracts the floor of x, and one multiplies by its power of two."""
    everywhere, rounding, downward = ir.Constant(ir.IntType(16), -1), 4, 9
    rest = everywhere, ir.Constant(_INT, rounding)
    name = "llvm.x86.avx512.mask.{}.ps.512".format
    parts = []
    for part in _split(builder, x):
        f = _call(builder, name("reduce"), _PART, part, ir.Constant(_INT, downward), part, *rest)
        p = _power(builder, f)
        parts.append(_call(builder, name("scalef"), _PART, p, part, p, *rest))
    return _join(builder, parts)


def _exp2_of_any(builder: Any, x: Any) -> Any:
    """With the bits of the exponent, for x clamped to [-126, 127]."""
    x = _limit(builder, "<", x, _constant(x.type, -126.0))
    x = _limit(builder, ">", x, _constant(x.type, 127.0))
    whole = _call(builder, _overloaded("floor", x.type), x.type, x)
    p = _power(builder, builder.fsub(x, whole))
    bits = _INT if x.type == _FLOAT else ir.VectorType(_INT, x.type.count)
    exponent = builder.bitcast(builder.fadd(whole, _constant(x.type, _TO_LOW_BITS)), bits)
    scaled = builder.add(builder.bitcast(p, bits), builder.shl(exponent, _constant(bits, 23)))
    return builder.bitcast(scaled, x.type)


@builtin
def exp2(typing_context: Any, x: Any) -> Any:
    """2**x to 1.5e-7 relative, exact at 0; nan stays nan.

    Results are at least 2**-126 and at most 2**127, but vectors with AVX-512 have no such limits.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (value,) = arguments
        features = context.codegen().magic_tuple()[2].split(",")
        wide = value.type != _FLOAT and {"+avx512f", "+avx512dq"} <= set(features)
        return (_exp2_of_avx512 if wide else _exp2_of_any)(builder, value)

    return x(x), generate
